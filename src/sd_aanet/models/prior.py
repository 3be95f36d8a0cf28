"""The prior mask (PFENet): where the query looks most like anything in the supports' foreground. No parameters."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7


def prior_mask(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of each query position with its most similar support position, min-max normalised.

    Args:
        query: (B, C, h, w), high features of the query.
        support: (B, K, C, h, w), high features of the supports, made from their masked stage before.
        mask: (B, K, 1, h, w) in [0, 1], the foreground, resized to the grid.

    Returns:
        (B, 1, h, w) in [0, 1], the mean over the K shots; float32 or wider whatever the input, since eps = 1e-7
        means nothing in half precision.
    """
    batch, height, width = query.shape[0], query.shape[2], query.shape[3]
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q = query.to(wide).flatten(2)[:, None]  # (B, 1, C, hw)
        s = (support.to(wide) * mask.to(wide)).flatten(3)  # (B, K, C, hw)
        norms = s.norm(dim=2)[..., None] * q.norm(dim=2)[:, :, None]  # (B, K, hw of s, hw of q)
        cosine = s.transpose(2, 3) @ q / (norms + EPS)  # (B, K, hw of s, hw of q)
        best = cosine.amax(2)  # (B, K, hw)
        low, high = best.amin(2, keepdim=True), best.amax(2, keepdim=True)
        prior: Tensor = ((best - low) / (high - low + EPS)).mean(1)  # (B, hw)
    return prior.view(batch, 1, height, width)
