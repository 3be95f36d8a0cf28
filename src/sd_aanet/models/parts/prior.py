"""The prior mask (PFENet): where the query looks most like anything in a support's foreground. No parameters.

A support position outside the mask has feature zero, so its similarity to anything is zero: only the columns of the
foreground enter the product, and one zero stands for all others. A quarter of a picture is foreground, or less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_aanet.episode import Batch
from sd_aanet.models.parts.functional import wide

EPS = 1e-7


@dataclass(frozen=True)
class Columns(Batch):
    """The foreground of a support's high features.

    Attributes:
        features: (n, C), each position's feature times its mask; float32 or wider, since eps = 1e-7 means nothing in
            half precision.
        norms: (n,), of them.
        background: whether any position lies outside.
    """

    features: Tensor
    norms: Tensor
    background: bool


@dataclass(frozen=True)
class Sought(Batch):
    """A query's high features, and their norms, which all shots share.

    Attributes:
        features: (C, h, w), float32 or wider.
        norms: (hw,).
    """

    features: Tensor
    norms: Tensor


def sought(queries: Iterable[Tensor]) -> tuple[Sought, ...]:
    """Queries' high features, N times (C, h, w), as `prior_mask` takes them."""
    widened = [query.to(wide(query)) for query in queries]
    return tuple(Sought(query, query.flatten(1).norm(dim=0)) for query in widened)


def foreground_columns(supports: Iterable[Tensor], mask: Tensor) -> tuple[Columns, ...]:
    """The columns of supports that a mask does not make zero.

    Args:
        supports: N times (C, h, w), high features, made from their masked stage before.
        mask: (N, 1, h', w') in [0, 1], the foreground's share, on the grid of the high features.
    """
    columns = []
    for feature, weight in zip(supports, mask[:, 0], strict=True):
        inside = weight > 0
        chosen = feature.permute(1, 2, 0)[inside].to(wide(feature))  # (n, C)
        chosen = chosen * weight[inside, None].to(chosen.dtype)
        columns.append(Columns(chosen, chosen.norm(dim=1), len(chosen) < inside.numel()))
    return tuple(columns)


def prior_masks(queries: Tensor, supports: Tensor, mask: Tensor) -> Tensor:
    """`prior_mask` of N pairs with all columns, foreground or not: more products, but no number depends on a mask.

    Args:
        queries, supports: (N, C, h, w), high features.
        mask: (N, 1, h, w) in [0, 1], see `foreground_columns`.

    Returns:
        (N, h, w) in [0, 1].
    """
    q, s = queries.to(wide(queries)).flatten(2), (supports * mask).to(wide(queries)).flatten(2)  # (N, C, hw)
    norms = s.norm(dim=1)[:, :, None] * q.norm(dim=1)[:, None]  # (N, hw, hw)
    best = (s.transpose(1, 2) @ q / (norms + EPS)).amax(1)  # (N, hw)
    low, high = best.amin(1, keepdim=True), best.amax(1, keepdim=True)
    prior: Tensor = ((best - low) / (high - low + EPS)).unflatten(1, queries.shape[2:])
    return prior


def prior_mask(query: Sought, support: Columns) -> Tensor:
    """Cosine similarity of each query position with its most similar support position, min-max normalised.

    Returns:
        (h, w) in [0, 1].
    """
    with torch.autocast(query.features.device.type, enabled=False):
        q = query.features.flatten(1)  # (C, hw)
        cosine = (support.features @ q) / (support.norms[:, None] * query.norms + EPS)  # (n, hw)
        if support.background:
            cosine = torch.cat([cosine, cosine.new_zeros(1, q.shape[1])])
        best = cosine.amax(0)  # (hw,)
        low, high = best.amin(), best.amax()
        return ((best - low) / (high - low + EPS)).view(query.features.shape[1:])
