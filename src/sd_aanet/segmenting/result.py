"""What was found in a picture of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sd_aanet.data.transforms import Restored
from sd_aanet.errors import DataError
from sd_aanet.files import written_whole
from sd_aanet.images import Array8
from sd_aanet.pictures import colour_of, overlay
from sd_aanet.segmenting.polygons import Outline, polygons


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture, at the picture's own size. Maps are made when they are asked for.

    Attributes:
        image: uint8 (H, W, 3), the picture.
        names: of the things that were looked for, N.
        labels: uint8 (H, W), 0 where there is none of them, n where the n-th is: that of the highest probability, where
            it is over one half.
        score: of each thing, in [0, 1], how sure it is that the picture shows it at all (`FewShotMethod.presence`).
        least: tells of a thing the score from which on it counts as there.
        restored: the probability of each thing, a strip of rows at a time.
        looked_at: the attention of the first thing, a strip at a time; None where the method has no such map.
    """

    image: Array8
    names: tuple[str, ...]
    labels: Array8
    score: Mapping[str, float]
    least: Callable[[str], float]
    restored: Mapping[str, Restored]
    looked_at: Restored | None

    @cached_property
    def present(self) -> Mapping[str, bool]:
        """Whether each thing is there; the masks stay as they are.

        Asked for the first time after supports have changed, it takes about as long as remembering them did.
        """
        return {name: score >= self.least(name) for name, score in self.score.items()}

    @cached_property
    def unsure(self) -> Mapping[str, float]:
        """Of each thing, in [0, 1], how unsure its outline is: one minus the IoU that the probability expects of it.

        Where nothing is found, `score`: how much speaks for the thing being there all the same.
        """
        return {name: _unsure(restored.wide, self.score[name]) for name, restored in self.restored.items()}

    @cached_property
    def masks(self) -> Mapping[str, Array8]:
        """Of each thing, uint8 (H, W), 1 where it is, else 0."""
        return {name: (self.labels == n).astype(np.uint8) for n, name in enumerate(self.names, start=1)}

    @property
    def mask(self) -> Array8:
        """Of all things together, uint8 (H, W), 1 where one of them is, else 0."""
        return (self.labels > 0).astype(np.uint8)

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """float32 (H, W) in [0, 1], that one of the things is there: of several, the highest."""
        first, *others = (restored.whole() for restored in self.restored.values())
        for other in others:
            np.maximum(first, other, out=first)
        return first

    def overlay(self, drawn: Array8 | None = None) -> Image.Image:
        """The picture with each thing in a colour of its own.

        Args:
            drawn: where to draw, `image` itself or a copy of it; None makes one, and large pictures take much memory.
        """
        drawn = self.image.copy() if drawn is None else drawn
        for n in range(1, len(self.names) + 1):
            mask = self.labels if len(self.names) == 1 else (self.labels == n).astype(np.uint8)
            drawn = overlay(drawn, mask, colour_of(n), drawn)
        return Image.fromarray(drawn)

    def polygons(self, tolerance: float = 0) -> dict[str, list[Outline]]:
        """The outlines of each thing; see `polygons.polygons`."""
        return {name: polygons(mask, tolerance) for name, mask in self.masks.items()}

    def drawn_mask(self) -> Image.Image:
        """The labels as a palette picture, in the overlay's colours."""
        picture = Image.fromarray(self.labels, mode="P")
        colours = [colour_of(n) for n in range(1, len(self.names) + 1)]
        picture.putpalette([0, 0, 0, *(value for colour in colours for value in colour)])
        return picture

    def save(self, folder: str | Path, name: str = "picture") -> None:
        """Write `<name>_mask.png` (a palette PNG of the labels) and `<name>_overlay.png`.

        Raises:
            DataError: the folder cannot be written.
        """
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for ending, picture in (("mask", self.drawn_mask()), ("overlay", self.overlay())):
                with written_whole(Path(folder) / f"{name}_{ending}.png") as temporary:
                    picture.save(temporary, format="PNG", compress_level=1)
        except OSError as error:
            raise DataError(f"folder '{folder}' cannot be written ({error}): choose another one") from None

    @cached_property
    def attention(self) -> NDArray[np.float32] | None:
        """What the method looked at, float32 (H, W), from 0, its least in this picture, to 1, its most, or None.

        Of SD-AANet, SAAM's affinity attention, which only the decoder reads: the object stands out by being high or by
        being low.
        """
        return None if self.looked_at is None else self.looked_at.whole()


def labelled(restored: Sequence[Restored], size: tuple[int, int]) -> Array8:
    """The labels (H, W) of a picture, of the probabilities of N things; nothing else is ever whole in memory."""
    labels = np.empty(size, np.uint8)
    for strips in zip(*(some.strips() for some in restored), strict=True):
        rows = strips[0][0]
        each = np.stack([strip for _, strip in strips])  # (N, rows, W)
        labels[rows] = np.where(each.max(0) > 0.5, each.argmax(0) + 1, 0)
    return labels


def _unsure(probability: Tensor, score: float) -> float:
    """Of a map of any resolution: its mask is right where the map says so, and is joined by what it misses."""
    inside = probability > 0.5
    found = int(inside.sum())
    missed = float(probability[~inside].sum())
    return 1 - float(probability[inside].sum()) / (found + missed) if found else score
