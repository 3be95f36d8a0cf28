"""What a user marks an object with, and the mask that comes of it: a mask, polygons, run lengths, a box, points."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sd_aanet.data.sources.coco_json import read_segmentation
from sd_aanet.data.sources.run_lengths import paint, unpack
from sd_aanet.errors import DataError
from sd_aanet.images import Array8, Mask, Picture, called_by, check_same_size, read_image, read_values
from sd_aanet.segmenting.cutting import cut_box, cut_points
from sd_aanet.segmenting.supports import foreground_of


@dataclass(frozen=True)
class Box:
    """A box around the whole object, in pixels of the upright picture, whose top left corner is 0, 0.

    Attributes:
        x0: its left edge.
        y0: its top edge.
        x1: its right edge: where the pixel behind the last begins.
        y1: its bottom edge.
    """

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Points:
    """Places x, y in pixels of the upright picture, whose top left corner is 0, 0.

    Attributes:
        positive: on the object.
        negative: beside it.
    """

    positive: Sequence[tuple[float, float]]
    negative: Sequence[tuple[float, float]] = ()


Mark = Mask | Box | Points | Sequence[Any] | Mapping[str, Any]
"""A mask (a file, a Pillow image or an array (H, W), see `foreground_of`), a `Box`, `Points`, polygons (a list of them,
each x, y, x, y, ... or corners (n, 2), which are filled as COCO's tools do), or COCO's run lengths (a dict of `size`
and `counts`: bytes, a text or a list)."""

_SLACK = (10, 0.05)
"""Pixels, and of a side: so far a box may leave the picture, as when it was drawn over the edge."""


def read_support(
    image: Picture, mark: Mark, class_id: int | None = None, name: str = "support"
) -> tuple[Array8, Array8]:
    """An example as the network will understand it, upright.

    Returns:
        The image, uint8 (H, W, 3), and its mask, uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: as `FewShotSegmenter.remember`.
    """
    pixels = read_image(image, f"the image of {name}")
    return pixels, mask_of(pixels, mark, class_id, name, image)


def mask_of(
    picture: Array8, mark: Mark, class_id: int | None = None, name: str = "support", source: object = None
) -> Array8:
    """The mask that a mark means.

    A box and points say where the object is, not what its outline is: that is found by colour, see `cutting`, and is to
    be looked at.

    Args:
        picture: uint8 (H, W, 3), upright.
        mark: what shows the object.
        class_id: the value of the object in a mask.
        name: what errors call the support.
        source: where the picture comes from, for errors.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore, which only masks have.

    Raises:
        DataError: the mark is of no known kind, malformed, outside of the picture, of another size, or shows nothing.
    """
    height, width = picture.shape[:2]
    if isinstance(mark, str | os.PathLike | Image.Image | np.ndarray | Tensor):
        called = called_by(mark, "mask", f"the mask of {name}")
        values = read_values(mark, called)
        check_same_size(source, (height, width), mark, values.shape, name)
        return foreground_of(values, class_id, called)
    if isinstance(mark, Box):
        return cut_box(picture, _pixels(mark, width, height, name))
    if isinstance(mark, Points):
        return cut_points(picture, *_places(mark, width, height, name))
    if isinstance(mark, Mapping | list | tuple):
        return _filled(_plain(mark, name), height, width, name)
    raise _unknown(mark, name)


def _pixels(box: Box, width: int, height: int, name: str) -> tuple[int, int, int, int]:
    """A box's pixels in the picture."""
    sides = (box.x0, box.y0, box.x1, box.y1)
    called = f"the box of {name} ({', '.join(map(_shown, sides))})"
    if not all(map(_is_number, sides)):
        raise DataError(f"{called} is not of four numbers, expected Box(x0, y0, x1, y1) in pixels: correct it")
    if not (box.x0 < box.x1 and box.y0 < box.y1):
        raise DataError(f"{called} is empty, expected x0 < x1 and y0 < y1: give its top left and bottom right corner")
    if max(sides) <= 1 < min(width, height):
        raise DataError(f"{called} has numbers up to 1, expected pixels: multiply x by {width} and y by {height}")
    for start, end, side in ((box.x0, box.x1, width), (box.y0, box.y1, height)):
        slack = max(_SLACK[0], _SLACK[1] * side)
        if start < -slack or end > side + slack or start >= side or end <= 0:
            raise DataError(
                f"{called} is outside of the picture of {width}x{height} pixels, expected x from 0 to {width} and y "
                f"from 0 to {height}: correct it, in the order x, y"
            )
    left, top = max(0, math.floor(box.x0)), max(0, math.floor(box.y0))
    return left, top, min(width, math.ceil(box.x1)), min(height, math.ceil(box.y1))


def _places(
    points: Points, width: int, height: int, name: str
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The positive places and the negative ones."""
    kinds = []
    for kind, given in (("positive", points.positive), ("negative", points.negative)):
        places = _plain(given, name)
        if not isinstance(places, list) or not all(
            isinstance(place, list) and len(place) == 2 and all(map(_is_number, place)) for place in places
        ):
            raise DataError(
                f"the {kind} points of {name} are {_shown(given)}, expected a list of pairs x, y: correct it"
            )
        for x, y in places:
            if not (0 <= x <= width and 0 <= y <= height):
                raise DataError(
                    f"the {kind} point {_shown(x)}, {_shown(y)} of {name} is outside of the picture of "
                    f"{width}x{height} pixels, expected x from 0 to {width} and y from 0 to {height}: correct it"
                )
        kinds.append([(float(x), float(y)) for x, y in places])
    positive, negative = kinds
    if not positive:
        raise DataError(f"the points of {name} are none on the object, expected at least one: give Points([(x, y)])")
    if both := {*positive} & {*negative}:
        x, y = min(both)
        raise DataError(f"the point {x:g}, {y:g} of {name} is positive and negative, expected one of both: take it off")
    return positive, negative


def _filled(segmentation: Any, height: int, width: int, name: str) -> Array8:
    """Polygons or run lengths, drawn."""
    called = f"the mask of {name}"
    flat = isinstance(segmentation, list) and segmentation and all(map(_is_number, segmentation))
    packed = read_segmentation([segmentation] if flat else segmentation, height, width, called)
    columns = np.zeros((width, height), np.uint8)
    if packed is not None:
        paint(columns, unpack(packed), 1)
    if not columns.any():
        raise DataError(f"{called} covers no pixel: give polygons of three corners or more, or leave it out")
    return np.ascontiguousarray(columns.T)


def _plain(value: Any, name: str) -> Any:
    """A value as JSON has it: lists and numbers, whatever arrays and tuples there were."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if value is None or isinstance(value, str | int | float):
        return value
    raise _unknown(value, name)


def _is_number(value: object) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _shown(value: object) -> str:
    text = f"{value:g}" if _is_number(value) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _unknown(mark: object, name: str) -> DataError:
    return DataError(
        f"the mask of {name} is {type(mark).__name__}, expected a file, an image, an array (H, W), polygons, "
        "COCO's run lengths, a Box or Points: give one of these"
    )
