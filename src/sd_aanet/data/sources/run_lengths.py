"""Masks as COCO describes them: lengths of runs of 0 and of 1 in turn, from the top left down each column.

A list of lengths, or packed: each length in characters of 5 bits and one that says whether another follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


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


def pack_mask(pixels: NDArray[np.bool_]) -> bytes:
    """A mask, (H, W)."""
    from pycocotools import mask

    packed: bytes = mask.encode(np.asfortranarray(pixels, np.uint8))["counts"]
    return packed


def area(packed: bytes) -> int:
    """How many pixels are 1."""
    from pycocotools import mask

    return int(mask.area({"counts": packed, "size": [1, 1]}))  # whatever the size


def unpack(packed: bytes) -> list[int]:
    """The lengths of a packed mask.

    Raises:
        ValueError: the characters pack no lengths.
    """
    lengths: list[int] = []
    value = bits = 0
    for digit in (character - ord("0") for character in packed):
        if not 0 <= digit < 64:
            break
        value |= (digit & 31) << bits
        bits += 5
        if digit < 32:  # the last of its length, whose highest bit is the sign
            value -= (digit >> 4) << bits
            # From the fourth on, a length is stored as what it has more than the one two before it.
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = bits = 0
    else:
        if lengths and not bits:
            if min(lengths) < 0:
                raise ValueError("a run length below 0")
            return lengths
    raise ValueError("characters that pack no run lengths")


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
