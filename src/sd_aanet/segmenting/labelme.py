"""Masks of pictures as labelme's files, and back, corrected by hand."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sd_aanet.errors import UNREADABLE, DataError
from sd_aanet.images import most_pixels
from sd_aanet.segmenting.annotations import Found, Labelled, Thing, posix, score_of, things, write_json

_VERSION = "5.5.0"
"""Of labelme, whose format is written: the first one with masks is 5.3."""
_CORNERS = {
    "polygon": (3, math.inf),
    "oriented_rectangle": (4, 4),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "mask": (2, 2),
}
"""The shapes that have an area, and how many points each has."""
_SLACK = 10
"""Pixels that a shape may leave its picture."""


def write_labelme(
    folder: str | Path,
    pictures: Iterable[Labelled],
    classes: Sequence[str],
    images: str | None = None,
    tolerance: float = 0,
) -> None:
    """A JSON a picture, named as the picture; those without an object have one, too.

    The parts of a class have one `group_id`, by which labelme's converters make one object of them.

    Args:
        folder: of the files.
        pictures: as they come; one is held at a time.
        classes: names, which say the order.
        images: the folder of the pictures, from `folder`; None where the files will lie beside their pictures.
        tolerance: see `polygons`. With 0 what labelme draws is the masks; with 0.5 IoU is 0.996, of real masks of
            375 px, and with 1 it is 0.98.

    Raises:
        DataError: two pictures have the same name but for its end.
    """
    seen: dict[PurePath, str] = {}
    for picture in pictures:
        shown = PurePath(posix(picture.file_name))
        name = shown.with_suffix(".json")
        if name in seen:
            raise DataError(
                f"labelme's file {name} would be that of {seen[name]} and of {picture.file_name}, expected names that "
                "differ by more than their end: rename one"
            )
        seen[name] = picture.file_name
        up = [".."] * (len(name.parts) - 1)
        height, width = picture.size
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": [*itertools.chain(*map(_shapes, things(picture, classes, tolerance, centres=True)))],
            "imagePath": shown.name if images is None else PurePath(*up, images, shown).as_posix(),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(Path(folder, name), content)


def read_labelme(path: str | Path) -> Labelled:
    """What a file says of its picture, whose path is that in the file; masks are bool, as labelme draws them.

    Raises:
        DataError: it is missing, no JSON or not labelme's, or has a shape without an area (point, line), one outside of
            the picture, or one without a name.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except UNREADABLE as error:
        problem = getattr(error, "strerror", None) or error
        raise DataError(f"annotations {path} cannot be read as JSON ({problem}): save them again") from None
    try:
        return _labelled(content)
    except _Malformed as error:
        raise DataError(f"annotations {path}: {error}: correct it in labelme and save it again") from None


class _Malformed(Exception):
    """What is wrong in a file."""


def _shapes(thing: Thing) -> list[dict[str, Any]]:
    top, left, bottom, right = thing.bounds
    shapes: list[dict[str, Any]]
    if thing.rings is None:
        png = io.BytesIO()
        Image.fromarray(thing.cut_out()).save(png, format="PNG")
        corners = [[left, top], [right - 1, bottom - 1]]  # its first pixel and its last one
        shapes = [{"shape_type": "mask", "points": corners, "mask": base64.b64encode(png.getvalue()).decode()}]
    else:
        shapes = [{"shape_type": "polygon", "points": ring.tolist(), "mask": None} for ring in thing.rings]
    group = thing.number if len(shapes) > 1 else None
    own: dict[str, Any] = {"label": thing.name, "group_id": group, "description": "", "flags": {}}
    return [own | shape | score_of(thing) for shape in shapes]


def _labelled(content: Any) -> Labelled:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise _Malformed("has no list 'shapes', expected labelme's format")
    height, width = _side(content, "imageHeight"), _side(content, "imageWidth")
    if height * width > (most_pixels() or math.inf):
        raise _Malformed(f"imageWidth and imageHeight make {width}x{height} pixels, expected at most {most_pixels()}")
    if not isinstance(content.get("imagePath"), str):
        raise _Malformed("has no 'imagePath', expected the picture's path")
    masks: dict[str, NDArray[np.bool_]] = {}
    for n, shape in enumerate(content["shapes"]):
        try:
            label, mask = _drawn(shape, (height, width))
        except _Malformed as error:
            raise _Malformed(f"shapes[{n}]{error}") from None
        masks[label] = masks[label] | mask if label in masks else mask
    return Labelled(content["imagePath"], (height, width), {label: Found(mask) for label, mask in masks.items()})


def _side(content: dict[str, Any], key: str) -> int:
    side = content.get(key)
    if isinstance(side, int) and 0 < side < 2**16:
        return side
    raise _Malformed(f"{key} is {side}, expected the picture's, in pixels")


def _drawn(shape: Any, size: tuple[int, int]) -> tuple[str, NDArray[np.bool_]]:
    """A shape's label, and where it is."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        raise _Malformed(" has no label, expected the name of a class")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in _CORNERS:
        raise _Malformed(f".shape_type is {kind!r}, expected one with an area ({', '.join(_CORNERS)})")
    least, most = _CORNERS[kind]
    if not isinstance(points, list) or not least <= len(points) <= most or not all(map(_is_point, points)):
        raise _Malformed(f".points are no {least} points x, y{'' if least == most else ' or more'} of a {kind}")
    for x, y in points:
        if not (-_SLACK <= x <= size[1] + _SLACK and -_SLACK <= y <= size[0] + _SLACK):
            raise _Malformed(f".points has {x:g}, {y:g}, expected a place in the picture of {size[1]}x{size[0]} pixels")
    if kind == "mask":
        return shape["label"], _pasted(shape.get("mask"), points[0], size)
    picture = Image.new("1", size[::-1])
    draw, corners = ImageDraw.Draw(picture), [(x, y) for x, y in points]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = corners
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1, outline=1)
    elif kind == "circle":
        (x, y), (radius) = corners[0], math.dist(*corners)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    else:
        draw.polygon(corners, fill=1, outline=1)
    return shape["label"], np.array(picture)


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and {*map(type, point)} <= {int, float}


def _pasted(mask: Any, corner: Sequence[float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A picture of a mask, whose first pixel is at `corner`."""
    left, top = (max(0, round(place)) for place in corner)
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask, validate=True)), formats=("PNG",)) as png:
            right, bottom = left + png.width, top + png.height
            if right <= size[1] and bottom <= size[0]:
                whole = np.zeros(size, bool)
                whole[top:bottom, left:right] = np.array(png.convert("L")) > 0
                return whole
    except Exception as error:  # of a damaged picture it is of almost any kind
        raise _Malformed(f".mask cannot be read ({' '.join(str(error).split())}), expected a PNG in base64") from None
    raise _Malformed(f".mask ends at {right}, {bottom}, expected a place in the picture of {size[1]}x{size[0]} pixels")
