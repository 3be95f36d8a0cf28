"""The prior mask (PFENet): where the query looks most like anything in a support's foreground. No parameters.

A support position outside the mask has feature zero, so its similarity to anything is zero: only the columns of the
foreground enter the product, and one zero stands for all others. A quarter of a picture is foreground, or less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-7


@dataclass(frozen=True)
class Columns:
    """The foreground of a support's high features.

    Attributes:
        features: (n, C), each position's feature times its mask; float32 or wider, since eps = 1e-7 means nothing in
            half precision.
        background: whether any position lies outside.
    """

    features: Tensor
    background: bool


def foreground_columns(supports: Iterable[Tensor], mask: Tensor) -> tuple[Columns, ...]:
    """The columns of supports that a mask does not make zero.

    Args:
        supports: N times (C, h, w), high features, made from their masked stage before.
        mask: (N, 1, h, w) in [0, 1], the foreground, resized to the grid.
    """
    columns = []
    for feature, weight in zip(supports, mask[:, 0], strict=True):
        inside = weight > 0
        chosen = feature.permute(1, 2, 0)[inside].to(torch.promote_types(feature.dtype, torch.float32))  # (n, C)
        columns.append(Columns(chosen * weight[inside, None].to(chosen.dtype), len(chosen) < inside.numel()))
    return tuple(columns)


def prior_masks(query: Tensor, supports: Sequence[Columns]) -> Tensor:
    """Cosine similarity of each query position with its most similar support position, min-max normalised.

    Args:
        query: (C, h, w), high features of a query.
        supports: K.

    Returns:
        (K, h, w) in [0, 1], in the columns' dtype.
    """
    masks = []
    with torch.autocast(query.device.type, enabled=False):
        q = query.to(supports[0].features.dtype).flatten(1)  # (C, hw)
        norms = q.norm(dim=0)  # (hw,)
        for support in supports:
            s = support.features  # (n, C)
            cosine = (s @ q) / (s.norm(dim=1)[:, None] * norms + EPS)  # (n, hw)
            if support.background:
                cosine = torch.cat([cosine, cosine.new_zeros(1, q.shape[1])])
            best = cosine.amax(0)  # (hw,)
            low, high = best.amin(), best.amax()
            masks.append((best - low) / (high - low + EPS))
    return torch.stack(masks).view(-1, *query.shape[1:])
