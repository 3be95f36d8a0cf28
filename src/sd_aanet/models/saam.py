"""SAAM, the supervised affinity attention module: learns to see where a picture resembles a prototype.

One extractor looks at a feature map beside the prototype of the episode's class. For the supports, whose masks are
known, a classifier on top of it is supervised; for the query, another reads its attention off.

Everything here is the plain network; three rewritings, exact to rounding, save most of its products:
- the feature map's share of the first 3x3 convolution is made once a picture, whatever it is compared with;
- the prototype is the same at every position, so its share takes only nine values;
- the pyramid's branches are resized from 50 cells, so their share of the last 3x3 convolution is linear in those cells.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.models.functional import resize

BINS = (1, 2, 3, 6)
"""Sides of the pyramid's grids."""


def spread_conv3x3(vector: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A 3x3 convolution with padding 1 over a vector spread to a constant map.

    Zero padding makes the result differ at the border only: nine values (corners, edges, centre), which a map of
    3x3 has all.

    Args:
        vector: (N, C).
        weight: (O, C, 3, 3).
        size: (h, w) of the constant map, each at least 2.

    Returns:
        (N, O, h, w).
    """
    nine = F.conv2d(vector[:, :, None, None].expand(-1, -1, 3, 3), weight, padding=1)  # (N, O, 3, 3)
    x = nine.permute(0, 2, 3, 1)  # (N, 3, 3, O): channels last in memory
    for dim, side in zip((1, 2), size, strict=True):
        first, middle, last = x.split(1, dim)
        # Not by an index, whose gradient is slow.
        x = torch.cat([first, middle.expand([side - 2 if d == dim else -1 for d in range(4)]), last], dim)
    return x.permute(0, 3, 1, 2)  # (N, O, h, w)


def resized_conv3x3(cells: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A 3x3 convolution with padding 1 over a small grid resized to `size`: `conv2d(resize(cells, size), weight)`.

    Args:
        cells: (N, C, b, b).
        weight: (O, C, 3, 3).
        size: (h, w).

    Returns:
        (N, O, h, w).
    """
    taps = torch.einsum("ncx,oct->noxt", cells.flatten(2), weight.flatten(2))  # (N, O, b*b, 9)
    spread = taps.flatten(2) @ _basis(cells.shape[-1], size, taps.dtype, cells.device)  # (N, O, hw)
    return spread.view(*spread.shape[:2], *size)


@functools.lru_cache(maxsize=32)
def _basis(side: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """How each cell, through each tap, reaches each position: every one-hot grid resized, shifted nine times."""
    with torch.inference_mode(False), torch.no_grad():  # kept, and training must be able to use it
        one_hot = torch.eye(side * side, dtype=torch.promote_types(dtype, torch.float32), device=device)
        basis = F.unfold(resize(one_hot.view(-1, 1, side, side), size), 3, padding=1)  # (b*b, 9, hw)
        return basis.flatten(0, 1).to(dtype)  # (b*b * 9, hw)


class AffinityExtractor(nn.Module):
    """The extractor E(feature, prototype): 3x3 convolution, pyramid pooling, 3x3 convolution.

    Args:
        channels: C of the feature map and of the prototype; the extractor's width is 4 C, its output C.
        dropout: rate of the last Dropout2d.
    """

    def __init__(self, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        self.pools = nn.ModuleList(nn.Conv2d(4 * channels, channels, 1, bias=False) for _ in BINS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in BINS)
        self.fuse = nn.Conv2d(8 * channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)

    def on_feature(self, feature: Tensor) -> Tensor:
        """The feature map's share of the first convolution: (N, C, h, w) -> (N, 4C, h, w)."""
        return F.conv2d(feature, self.conv.weight[:, : feature.shape[1]], self.conv.bias, padding=1)

    def forward(self, on_feature: Tensor, prototype: Tensor) -> Tensor:
        """`on_feature` of N feature maps, (N, 4C, h, w), and their prototypes (N, C) -> (N, C, h, w)."""
        size = (on_feature.shape[-2], on_feature.shape[-1])
        on_prototype = self.conv.weight[:, -prototype.shape[1] :]  # (4C, C, 3, 3)
        x = F.relu(on_feature + spread_conv3x3(prototype, on_prototype, size))  # (N, 4C, h, w)
        on_x, *on_pools = self.fuse.weight.split([4 * prototype.shape[1]] + [prototype.shape[1]] * len(BINS), dim=1)
        fused = F.conv2d(x, on_x, padding=1)  # (N, C, h, w)
        for side, pool, norm, weight in zip(BINS, self.pools, self.norms, on_pools, strict=True):
            cells = F.adaptive_avg_pool2d(x, side)  # (N, 4C, side, side)
            cells = F.relu(norm(pool(cells)))  # (N, C, side, side)
            fused = fused + resized_conv3x3(cells, weight, size)  # (N, C, h, w)
        out: Tensor = self.dropout(F.relu(self.norm(fused)))  # (N, C, h, w)
        return out


class SAAM(nn.Module):
    """Supervised affinity attention (method: Head, step 4).

    Args:
        channels: C of the projected features.
        dropout: rate inside the extractor.
        bounded: pass the attention through a sigmoid. The published network does not: its attention is a plain logit.
    """

    def __init__(self, channels: int = 256, dropout: float = 0.1, bounded: bool = False) -> None:
        super().__init__()
        self.extractor = AffinityExtractor(channels, dropout)
        self.support_classifier = nn.Conv2d(channels, 2, 1)
        self.attention_classifier = nn.Conv2d(channels, 1, 1)
        self.bounded = bounded

    def segment_support(self, feature: Tensor, prototype: Tensor) -> Tensor:
        """Logits of the supports from their own prototypes: (N, C, h, w), (N, C) -> (N, 2, h, w)."""
        logits: Tensor = self.support_classifier(self.extractor(self.extractor.on_feature(feature), prototype))
        return logits

    def attend(self, on_feature: Tensor, prototype: Tensor) -> Tensor:
        """The query's attention from the mean prototype.

        Args:
            on_feature: (B, 4C, h, w), see `AffinityExtractor.on_feature`.
            prototype: (B, C).

        Returns:
            (B, 1, h, w).
        """
        attention: Tensor = self.attention_classifier(self.extractor(on_feature, prototype))
        return attention.sigmoid() if self.bounded else attention
