"""The few tensor operations that methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import while_loop

from sd_aanet.episode import IGNORE

State = TypeVar("State", bound=tuple[Tensor, ...])

POOL_EPS = 0.0005
"""Added to a mask's area before dividing by it (PFENet, and so the published SD-AANet)."""


def resize(x: Tensor, size: tuple[int, int] | int) -> Tensor:
    """Bilinear resizing of (N, C, H, W) with aligned corners, as everywhere in the field's heads."""
    size = (size, size) if isinstance(size, int) else size
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def share_of(mask: Tensor, value: int, like: Tensor) -> Tensor:
    """How much of each cell of a feature map a mask's value covers.

    Args:
        mask: (N, S, S) int64 of 0, 1 and 255. Ignored pixels are neither of 0 nor of 1.
        value: 0 (everything else) or 1 (the class).
        like: (N, C, h, w), the feature map.

    Returns:
        (N, 1, h, w) in [0, 1], resized bilinearly, in float32 or what is wider of `like`.
    """
    return resize((mask == value)[:, None].to(wide(like)), (like.shape[-2], like.shape[-1]))


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


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels that are not 255, of logits (B, C, H, W); 0, not NaN, where every pixel is."""
    counted = (mask != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.to(wide(logits)), mask, ignore_index=IGNORE, reduction="sum") / counted


def looped(goes_on: Callable[..., Tensor], step: Callable[..., State], state: State, most: int) -> State:
    """`while goes_on(*state): state = step(*state)`, at most so many times; also within a graph that is exported.

    Args:
        goes_on: gives a single boolean.
        step: gives new tensors of the same shapes; it changes none.
        state: tensors.
        most: steps.
    """
    if torch.compiler.is_exporting():
        _, *last = while_loop(
            lambda count, *state: (count < most) & goes_on(*state),
            lambda count, *state: (count + 1, *step(*state)),
            (torch.zeros((), dtype=torch.int64), *state),
        )
        return cast(State, tuple(last))
    for _ in range(most):
        if not goes_on(*state):
            break
        state = step(*state)
    return state


def wide(x: Tensor) -> torch.dtype:
    """The dtype of x, or float32 where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)
