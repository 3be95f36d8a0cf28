"""SAAM, the supervised affinity attention module: learns to see where a picture resembles a prototype.

One extractor looks at a feature map beside the prototype of the episode's class. For the supports, whose masks are
known, a classifier on top of it is supervised; for the query, another reads its attention off.

Everything here is the plain network; three rewritings, exact to rounding, save most of its products:
- the feature map's share of the first 3x3 convolution is made once a picture, whatever it is compared with;
- the prototype is the same at every position, so its share takes only nine values;
- the pyramid's 50 cells are one product with the map, and its branches' share of the last 3x3 convolution is linear in
  those cells.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.models.parts.functional import resize

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


def pyramid(x: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """Adaptive average pooling to several grids, `[adaptive_avg_pool2d(x, side) for side in sides]`, as one product.

    Args:
        x: (N, C, h, w).
        sides: of the grids, b each.

    Returns:
        (N, C, b, b) each.
    """
    inside, areas = _cells(tuple(sides), (x.shape[-2], x.shape[-1]), x.dtype, x.device)
    means = (inside @ x.permute(0, 2, 3, 1).flatten(1, 2) / areas).to(x.dtype)  # (N, cells, C)
    parts = means.split([side * side for side in sides], 1)
    return [part.unflatten(1, (side, side)).permute(0, 3, 1, 2) for part, side in zip(parts, sides, strict=True)]


@functools.lru_cache(maxsize=32)
def _cells(
    sides: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which positions each cell of each grid is the mean of, (cells, hw) in {0, 1}, and how many, (cells, 1)."""
    with torch.inference_mode(False), torch.no_grad():  # kept, and training must be able to use it
        grids = []
        for side in sides:
            rows, columns = (F.adaptive_avg_pool1d(torch.eye(n)[:, None], side)[:, 0] > 0 for n in size)  # (n, side)
            grids.append((rows.T[:, None, :, None] & columns.T[None, :, None]).flatten(2).flatten(0, 1))  # (b*b, hw)
        inside = torch.cat(grids).to(device, dtype)
        return inside, inside.sum(1, keepdim=True, dtype=torch.promote_types(dtype, torch.float32))


def resized_conv3x3(grids: Sequence[Tensor], weights: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """3x3 convolutions with padding 1 over small grids resized to `size`: the sum of `conv2d(resize(grid), weight)`.

    Args:
        grids: (N, C, b, b) each.
        weights: (O, C, 3, 3) each.
        size: (h, w).

    Returns:
        (N, O, h, w).
    """
    taps = []
    for cells, weight in zip(grids, weights, strict=True):
        # As weights lie in memory, which is channels last: nothing of them is copied.
        tap = F.linear(cells.permute(0, 2, 3, 1).flatten(1, 2), weight.permute(0, 2, 3, 1).flatten(0, 2))
        taps.append(tap.unflatten(2, (-1, 9)).transpose(2, 3).flatten(1, 2))  # (N, b*b, O * 9) -> (N, b*b * 9, O)
    sides = tuple(cells.shape[-1] for cells in grids)
    spread: Tensor = _basis(sides, size, taps[0].dtype, taps[0].device) @ torch.cat(taps, 1)  # (N, hw, O)
    return spread.view(-1, *size, spread.shape[2]).permute(0, 3, 1, 2)  # channels last in memory


@functools.lru_cache(maxsize=32)
def _basis(sides: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """How each cell, through each tap, reaches each position: every one-hot grid resized, shifted nine times."""
    with torch.inference_mode(False), torch.no_grad():  # kept, and training must be able to use it
        bases = []
        for side in sides:
            one_hot = torch.eye(side * side, dtype=torch.promote_types(dtype, torch.float32), device=device)
            shifted = F.unfold(resize(one_hot.view(-1, 1, side, side), size), 3, padding=1)  # (b*b, 9, hw)
            bases.append(shifted.flatten(0, 1).T)  # (hw, b*b * 9)
        return torch.cat(bases, 1).to(dtype)


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
        x = F.relu(on_feature + spread_conv3x3(prototype, on_prototype, size), inplace=True)  # (N, 4C, h, w)
        on_x, *on_pools = self.fuse.weight.split([4 * prototype.shape[1]] + [prototype.shape[1]] * len(BINS), dim=1)
        branches = zip(pyramid(x, BINS), self.pools, self.norms, strict=True)
        grids = [F.relu(norm(pool(cells))) for cells, pool, norm in branches]  # (N, C, side, side) each
        fused = F.conv2d(x, on_x, padding=1) + resized_conv3x3(grids, on_pools, size)  # (N, C, h, w)
        out: Tensor = self.dropout(F.relu(self.norm(fused), inplace=True))  # (N, C, h, w)
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
