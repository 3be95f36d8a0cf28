"""The few tensor operations that every part of the network shares."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

POOL_EPS = 0.0005
"""Added to a mask's area before dividing by it (PFENet, and so the published SD-AANet)."""


def resize(x: Tensor, size: tuple[int, int] | int) -> Tensor:
    """Bilinear resizing of (N, C, H, W) with aligned corners, as everywhere in the method."""
    size = (size, size) if isinstance(size, int) else size
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def masked_average_pool(feature: Tensor, mask: Tensor) -> Tensor:
    """Masked average pooling: sum(feature * mask) / (sum(mask) + 0.0005).

    Args:
        feature: (N, C, h, w).
        mask: (N, 1, h, w) in [0, 1].

    Returns:
        (N, C), in the wider of the two dtypes.
    """
    area = mask.sum((2, 3)) + POOL_EPS  # (N, 1)
    return (feature * mask).sum((2, 3)) / area  # (N, C)
