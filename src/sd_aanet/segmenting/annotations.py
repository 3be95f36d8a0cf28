"""Masks of pictures as files of annotation tools: COCO's JSON and CVAT's XML; for labelme's see `labelme`.

A mask becomes one object: what was found is where a class is, not how many of it there are. Its parts are polygons that
a tool can edit; a mask with holes, which these formats' polygons cannot say, is written pixel by pixel. All sizes and
coordinates are those of the upright picture (EXIF), as these tools show it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sd_aanet import __version__
from sd_aanet.data.sources.run_lengths import pack_mask
from sd_aanet.errors import DataError
from sd_aanet.files import written_whole
from sd_aanet.segmenting.polygons import Ring, polygons

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Found(NamedTuple):
    """Where a class is in a picture.

    Attributes:
        mask: (H, W), 1 or True is the class.
        score: how sure that is, in [0, 1]; None where nobody says.
    """

    mask: NDArray[np.integer] | NDArray[np.bool_]
    score: float | None = None


@dataclass(frozen=True)
class Labelled:
    """A picture and what it shows.

    Attributes:
        file_name: its path, from the folder of all pictures, as the files name it.
        size: height and width.
        found: by class; a mask without a pixel is as none.
    """

    file_name: str
    size: tuple[int, int]
    found: Mapping[str, Found]


class Thing(NamedTuple):
    """An object to be written.

    Attributes:
        number: of its class, from 1.
        name: of its class.
        mask: bool (H, W), not empty.
        bounds: top, left, bottom, right; the latter two behind its last pixels.
        score: see `Found`.
        rings: that say the mask; None where only pixels do.
    """

    number: int
    name: str
    mask: NDArray[np.bool_]
    bounds: tuple[int, int, int, int]
    score: float | None
    rings: list[Ring] | None

    def cut_out(self) -> NDArray[np.bool_]:
        top, left, bottom, right = self.bounds
        return self.mask[top:bottom, left:right]


def things(picture: Labelled, classes: Sequence[str], tolerance: float, centres: bool = False) -> Iterator[Thing]:
    """What a picture shows, in the order of the classes."""
    numbers = {name: n for n, name in enumerate(classes, start=1)}
    for name, (values, score) in sorted(picture.found.items(), key=lambda item: numbers[item[0]]):
        if values.shape != tuple(picture.size):
            raise ValueError(f"mask {values.shape} does not fit {picture.file_name} of {picture.size}")
        mask = values == 1
        rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        if rows:
            parts = polygons(mask, tolerance, centres)
            rings = None if any(part.holes for part in parts) else [part.outer for part in parts]
            bounds = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
            yield Thing(numbers[name], name, mask, bounds, score, rings)


def write_coco(path: str | Path, pictures: Iterable[Labelled], classes: Sequence[str], tolerance: float = 0) -> None:
    """One JSON in COCO's format for instances, of which COCO's own tools and `dataset=folder` read the masks back.

    Args:
        path: the file.
        pictures: those without an object have an entry, too.
        classes: names; the first becomes category 1.
        tolerance: see `polygons`; with 0 masks are read back to the pixel.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        height, width = picture.size
        images.append({"id": image_id, "file_name": posix(picture.file_name), "height": height, "width": width})
        for thing in things(picture, classes, tolerance):
            top, left, bottom, right = thing.bounds
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": thing.number,
                "iscrowd": 0,
                "area": int(np.count_nonzero(thing.mask)),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": _coco_segmentation(thing),
            }
            annotations.append(annotation | score_of(thing))
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(classes, start=1)]
    info = {"description": f"made by sd-aanet {__version__}"}
    write_json(
        Path(path),
        {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories},
    )


def write_cvat(path: str | Path, pictures: Iterable[Labelled], classes: Sequence[str], tolerance: float = 0) -> None:
    """One XML in the format "CVAT for images 1.1", which has no place for scores.

    Args:
        path: the file.
        pictures: those without an object have an entry, too.
        classes: names: the labels of the task.
        tolerance: see `polygons`.

    Raises:
        DataError: a name holds what XML cannot.
    """
    lines: list[str] = []
    count = 0
    for count, picture in enumerate(pictures, start=1):
        height, width = picture.size
        lines.append(_tag("image", id=count - 1, name=posix(picture.file_name), width=width, height=height) + ">")
        for thing in things(picture, classes, tolerance):
            lines += (f"  {line}" for line in _cvat_shapes(thing))
        lines.append("</image>")
    labels = [f"<label><name>{_text(name)}</name><type>any</type><attributes></attributes></label>" for name in classes]
    head = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "<version>1.1</version>",
        f"<meta><task><name>sd-aanet</name><size>{count}</size><mode>annotation</mode>",
        *("<labels>", *labels, "</labels>"),
        "</task></meta>",
    ]
    with written_whole(Path(path)) as temporary:
        temporary.write_text("\n".join([*head, *lines, "</annotations>", ""]), encoding="utf-8")


def _coco_segmentation(thing: Thing) -> Any:
    # Numbers of 0 and 1 alone might be shares of the sides: a pixel in the corner is no polygon.
    if thing.rings is None or max(thing.bounds) <= 1:
        return {"size": list(thing.mask.shape), "counts": pack_mask(thing.mask).decode()}
    return [ring.ravel().tolist() for ring in thing.rings]


def _cvat_shapes(thing: Thing) -> Iterator[str]:
    common = {"label": thing.name, "source": "auto", "occluded": 0}
    top, left, bottom, right = thing.bounds
    if thing.rings is None:
        pixels = thing.cut_out().ravel()  # row by row; COCO goes down each column
        edges = np.flatnonzero(np.diff(pixels, prepend=False))
        lengths = np.diff(edges, prepend=0, append=len(pixels))
        rle = ", ".join(map(str, lengths.tolist()))
        place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        yield _tag("mask", **common, rle=rle, **place, z_order=0) + "></mask>"
        return
    if len(thing.rings) > 1:
        common["group_id"] = thing.number
    for ring in thing.rings:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist())
        yield _tag("polygon", **common, points=points, z_order=0) + "></polygon>"


def _tag(tag: str, /, **attributes: object) -> str:
    """The beginning of an XML tag."""
    return " ".join([f"<{tag}", *(f'{key}="{_text(value)}"' for key, value in attributes.items())])


def _text(value: object) -> str:
    """A value as XML holds it, in tags and between them."""
    text = str(value)
    if strange := _NO_XML.search(text):
        raise DataError(f"the name {text!r} holds {strange[0]!r}, which XML cannot hold: rename it")
    return re.sub("[\t\n\r]", lambda found: f"&#{ord(found[0])};", escape(text))


def score_of(thing: Thing) -> dict[str, float]:
    """A field more of an entry, where there is one."""
    return {} if thing.score is None else {"score": round(float(thing.score), 6)}


def posix(name: str) -> str:
    """A path as these files write it on any system."""
    return PurePath(name).as_posix()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
