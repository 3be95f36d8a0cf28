"""Masks as COCO describes them: lengths of runs of 0 and of 1 in turn, from the top left down each column.

A list of lengths, or packed: each length in characters of 5 bits and one that says whether another follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_MOST = 7
"""Characters of a length, which has 32 bits."""


def pack_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> bytes:
    """The union of polygons x, y, x, y, ... of three corners or more, as COCO's own tools draw them."""
    from pycocotools import mask

    packed: bytes = mask.merge(mask.frPyObjects(polygons, height, width))["counts"]
    return packed


def pack(lengths: Sequence[int], height: int, width: int) -> bytes:
    """Lengths that were a list."""
    from pycocotools import mask

    packed: bytes = mask.frPyObjects({"counts": lengths, "size": [height, width]}, height, width)["counts"]
    return packed


def area(packed: bytes) -> int:
    """How many pixels are 1."""
    from pycocotools import mask

    return int(mask.area({"counts": packed, "size": [1, 1]}))  # whatever the size


def unpack(masks: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The lengths of packed masks; of many at once, as that is much faster.

    Returns:
        The lengths of all masks, one mask after the other, and how many each mask has.

    Raises:
        ValueError: the characters pack no lengths.
    """
    digits = np.frombuffer(b"".join(masks), np.uint8).astype(np.int64) - ord("0")
    last = digits < 32  # of its length
    stops = np.cumsum([len(packed) for packed in masks])
    if not all(masks) or not last[stops - 1].all() or not ((digits >= 0) & (digits < 64)).all():
        raise ValueError("characters that pack no run lengths")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    if (ends - starts).max() > _MOST:
        raise ValueError("a run length of more than 32 bits")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts)
    lengths = np.add.reduceat((digits & 31) << 5 * place, starts)
    lengths -= (digits[ends - 1] >> 4 & 1) << 5 * (ends - starts)  # the highest bit is the sign
    counts = np.diff(np.searchsorted(ends, stops, side="right"), prepend=0)
    _add_up(lengths, counts)
    if lengths.min() < 0 or lengths.max() >= 2**32:
        raise ValueError("a run length below 0 or of more than 32 bits")
    return lengths.astype(np.uint32), counts


def _add_up(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """From the fourth of a mask on, a length is stored as what it has more than the one two before it: undo that."""
    mask = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)
    for first in (1, 2):
        chain = (place >= first) & (place % 2 == first % 2)
        sums = np.cumsum(lengths[chain])
        members = np.bincount(mask[chain], minlength=len(counts))
        before = np.concatenate(([0], sums))[np.cumsum(members) - members]
        lengths[chain] = sums - np.repeat(before, members)


def paint(label: NDArray[np.uint8], lengths: Iterable[int], value: int) -> None:
    """Set the pixels that are 1.

    Args:
        label: (W, H), C-contiguous: the picture's columns; changed in place.
        lengths: of the runs. A last run of zeros may be left out.
        value: to set, 0 to 255.
    """
    pixels = label.reshape(-1).data
    colour = bytes((value,))
    start = 0
    runs = iter(lengths)
    for zeros, ones in zip(runs, runs, strict=False):
        start += zeros
        pixels[start : start + ones] = colour * ones
        start += ones
