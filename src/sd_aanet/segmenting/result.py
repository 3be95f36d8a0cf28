"""What was found in a picture of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.transforms import Restored
from sd_aanet.images import Array8


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture, at the picture's own size. Maps are made when they are asked for.

    Attributes:
        names: of the things that were looked for, N.
        labels: uint8 (H, W), 0 where there is none of them, n where the n-th is: that of the highest probability, where
            it is over one half.
        score: of each thing, in [0, 1], how sure it is that the picture shows it at all (`FewShotMethod.presence`).
        present: whether the score is high enough for a thing that is there; the masks stay as they are.
        restored: the probability of each thing, a strip of rows at a time.
        looked_at: the attention of the first thing, a strip at a time; None where the method has no such map.
    """

    names: tuple[str, ...]
    labels: Array8
    score: Mapping[str, float]
    present: Mapping[str, bool]
    restored: Mapping[str, Restored]
    looked_at: Restored | None

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
