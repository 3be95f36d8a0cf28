"""Large pictures in overlapping parts, so that small things in them are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.data.transforms import Preprocess, Restored
from sd_aanet.images import Array8
from sd_aanet.rules import check, or_null, whole

OVERLAP = 4
"""Neighbours share at least this part of a side, a quarter: what is near the border of one is inside the other."""
Window = tuple[slice, slice]
"""Rows and columns of a picture."""


class Tiles:
    """How a picture is looked at: as a whole, or in parts of one size.

    Args:
        side: of a part, in the picture's own pixels; None for the whole.

    Raises:
        ConfigError: `side` is no number of pixels.
    """

    def __init__(self, side: int | None = None) -> None:
        check({"tile": side}, {"tile": or_null(whole(33, 1024))})
        self.side = side

    def of(self, size: tuple[int, int]) -> list[Window]:
        """The windows of a picture (H, W), which cover it."""
        rows, columns = (self._spans(length) for length in size)
        return [(row, column) for row, column in product(rows, columns)]

    def pairs(self, image: Array8, mask: Array8) -> Iterator[tuple[Array8, Array8]]:
        """The parts of a picture and of its mask."""
        for rows, columns in self.of((mask.shape[0], mask.shape[1])):
            yield image[rows, columns], mask[rows, columns]

    def joined(
        self, preprocess: Preprocess, parts: Tensor, windows: Sequence[Window], size: tuple[int, int]
    ) -> Restored:
        """One map of a picture (H, W), of the maps (P, S, S) of its windows.

        Where windows overlap the nearer its middle a place is, the more a window counts. The map is as fine as the
        windows' own, no finer than the picture.
        """
        if len(windows) == 1:
            return preprocess.restored(parts[0], size)
        height, width = (window.stop - window.start for window in windows[0])
        scale = min(1.0, preprocess.size / max(height, width))
        sides = [max(1, round(length * scale)) for length in size]
        total, weight = torch.zeros(sides[0], sides[1]), torch.zeros(sides[0], sides[1])
        for part, window in zip(parts, windows, strict=True):
            starts = [round(one.start * scale) for one in window]
            stops = [min(round(one.stop * scale), side) for one, side in zip(window, sides, strict=True)]
            inner = preprocess.restore(part.float().cpu(), (stops[0] - starts[0], stops[1] - starts[1]))
            near = torch.outer(_tent(inner.shape[0]), _tent(inner.shape[1]))
            place = (slice(starts[0], stops[0]), slice(starts[1], stops[1]))
            total[place] += near * inner
            weight[place] += near
        mean = (total / weight)[None, None]
        return Restored(F.interpolate(mean, (sides[0], size[1]), mode="bilinear", align_corners=False)[0, 0], size)

    def _spans(self, length: int) -> list[slice]:
        if self.side is None or length <= self.side:
            return [slice(0, length)]
        step = self.side - self.side // OVERLAP
        number = 1 + -(-(length - self.side) // step)
        starts = np.linspace(0, length - self.side, number).round().astype(int).tolist()
        return [slice(start, start + self.side) for start in starts]


def _tent(length: int) -> Tensor:
    """High in the middle, low but not 0 at both ends."""
    place = torch.arange(length, dtype=torch.float32)
    return torch.minimum(place, length - 1 - place) + 1
