"""Annotations in COCO's JSON format, checked from end to end; what each covers, as run lengths."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from sd_aanet.data.sources import run_lengths
from sd_aanet.data.sources.listing import is_text, plain
from sd_aanet.episode import IGNORE
from sd_aanet.errors import UNREADABLE, DataError
from sd_aanet.images import MAX_PIXELS, most_pixels

_QUIET_BELOW = 4 * 2**20
"""Files of fewer bytes are read without a progress bar: it would flash by."""
_POLYGONS = "polygons [[x, y, x, y, ...], ...] or run lengths {size, counts}"
_BEYOND = (10, 0.05)
"""Pixels, and of a side: so far may an outline leave its image, as some draw over the edge. One of another size leaves
it further."""
_FEWEST = 6
"""Numbers of a polygon: three corners."""
_LONGEST = 65_535
"""Side of an image. A longer one is a slip, and would take all memory."""


class Region(NamedTuple):
    """What one annotation covers.

    Attributes:
        category: its place among the categories.
        crowd: whether it is many objects that were not told apart.
        area: in pixels.
        packed: its run lengths; see `run_lengths`.
    """

    category: int
    crowd: bool
    area: int
    packed: bytes


@dataclass(frozen=True)
class CocoContent:
    """What a file in COCO's format holds.

    Attributes:
        categories: id and name of each, by id.
        images: file names, sorted.
        sizes: height and width of each image.
        regions: of each image, in the file's order.
        boxes_only: annotations without an outline, which are no regions.
        wrong: a line on each malformed entry; it is left out, and so is what names it.
    """

    categories: tuple[tuple[int, str], ...]
    images: tuple[str, ...]
    sizes: list[tuple[int, int]]
    regions: list[list[Region]]
    boxes_only: int
    wrong: list[str]


def read_coco(path: Path) -> CocoContent:
    """Read and check a whole file.

    Raises:
        DataError: the file is missing, no JSON, not in COCO's format, or without a single image in order.
    """
    try:
        quiet = path.stat().st_size < _QUIET_BELOW
        with tqdm(desc=f"Splitting {path.name} by image", unit="annotation", disable=quiet) as bar:
            return _checked(json.loads(path.read_bytes()), bar)
    except _Malformed as error:
        raise DataError(f"annotations {path}: {error.line}") from None
    except UNREADABLE as error:
        problem = getattr(error, "strerror", None) or error
        raise DataError(f"annotations {path} cannot be read as JSON ({problem}): export or fetch them again") from None


def read_segmentation(segmentation: Any, height: int, width: int, name: str) -> bytes | None:
    """The run lengths of one segmentation, polygons or run lengths, checked as those of a file.

    Args:
        segmentation: as JSON has it.
        height: of the picture.
        width: of the picture.
        name: what errors call it.

    Returns:
        None where it outlines nothing.

    Raises:
        DataError: it is malformed, or of a picture of another size.
    """
    try:
        return _packed(segmentation, height, width)
    except _Malformed as error:
        raise DataError(f"{name}{str(error).removeprefix('.segmentation')}: {error.fix}") from None


class _Malformed(Exception):
    """What is wrong inside the file, and what to do."""

    def __init__(self, problem: object, fix: str = "correct it there or export the file again") -> None:
        super().__init__(problem)
        self.line = f"{problem}: {fix}"
        self.fix = fix


def _checked(content: Any, bar: tqdm) -> CocoContent:
    images, annotations, categories = (_list(content, key) for key in ("images", "annotations", "categories"))
    wrong: list[_Malformed] = []
    files = _images(images, wrong)
    classes = _categories(categories, wrong)
    if not files:
        raise wrong[0]
    image_places = _places(images, [file.id for file in files])
    category_places = _places(categories, [category_id for category_id, _ in classes])
    regions: list[list[Region]] = [[] for _ in files]
    boxes_only = 0
    bar.reset(len(annotations))
    for n in range(len(annotations)):
        entry, annotations[n] = annotations[n], None  # parsed, COCO takes GB: what is done with goes
        bar.update()
        with _at(f"annotations[{n}]", wrong):
            place = _known(entry, "image_id", image_places)
            category = _known(entry, "category_id", category_places)
            if place is None or category is None:
                continue
            packed, crowd = _packed(entry.get("segmentation"), *files[place].size), _crowd(entry)
            if packed is None:
                boxes_only += 1
            else:
                regions[place].append(Region(category, crowd, run_lengths.area(packed), packed))
    return CocoContent(
        categories=classes,
        images=tuple(file.name for file in files),
        sizes=[file.size for file in files],
        regions=regions,
        boxes_only=boxes_only,
        wrong=[error.line for error in wrong],
    )


class _File(NamedTuple):
    id: int | str
    name: str
    size: tuple[int, int]


def _images(entries: list[Any], wrong: list[_Malformed]) -> list[_File]:
    """Those in order, by name."""
    if not entries:
        raise _Malformed("'images' is empty, expected an entry for each picture")
    files: list[_File] = []
    seen: tuple[dict[Any, int], dict[Any, int]] = {}, {}
    for n, entry in enumerate(entries):
        with _at(f"images[{n}]", wrong):
            side = f"a whole number from 1 to {_LONGEST}"
            height, width = (_value(entry, key, int, side) for key in ("height", "width"))
            for key, length in (("height", height), ("width", width)):
                if not 1 <= length <= _LONGEST:
                    raise _Malformed(f".{key} is {length}, expected {side}")
            if height * width > (most_pixels() or math.inf):
                raise _Malformed(
                    f" has {width}x{height} pixels, expected at most {most_pixels()}",
                    f"correct it, or set {MAX_PIXELS} to as many as memory holds",
                )
            name = _value(entry, "file_name", str, "the name of a file")
            file = _File(_value(entry, "id", (int, str), "a whole number"), name, (height, width))
            _check_new("images", "id", file.id, n, seen[0])
            _check_new("images", "file_name", plain(file.name), n, seen[1])
            files.append(file)
    return sorted(files, key=lambda file: file.name)


def _categories(entries: list[Any], wrong: list[_Malformed]) -> tuple[tuple[int, str], ...]:
    """Those in order, by id. Two may have one name: exporters call a parent of all as they call its only child."""
    if not 0 < len(entries) < IGNORE:
        raise _Malformed(
            f"'categories' has {len(entries)} entries, expected 1 to {IGNORE - 1} (a mask has 8 bits a pixel)",
            "export only the categories that you need",
        )
    categories: list[tuple[int, str]] = []
    seen: dict[Any, int] = {}
    for n, entry in enumerate(entries):
        with _at(f"categories[{n}]", wrong):
            category_id, name = _value(entry, "id", int, "a whole number"), _value(entry, "name", str, "a name")
            _check_new("categories", "id", category_id, n, seen)
            categories.append((category_id, name))
    return tuple(sorted(categories))


def _places(entries: list[Any], ids: list[Any]) -> dict[Any, int | None]:
    """The place of each id; None where its entry is malformed: to name that one is no mistake of its own."""
    named = (entry.get("id") for entry in entries if isinstance(entry, dict))
    return {named_id: None for named_id in named if isinstance(named_id, (int, str))} | {
        known: place for place, known in enumerate(ids)
    }


def _packed(segmentation: Any, height: int, width: int) -> bytes | None:
    """The run lengths of a segmentation; None where it outlines nothing."""
    if segmentation in (None, [], {}):
        return None
    if isinstance(segmentation, list):
        polygons = [corners for corners in map(_flat, _in_one(segmentation)) if _is_outline(corners, height, width)]
        if polygons and max(map(max, polygons)) <= 1 < min(height, width):
            raise _Malformed(
                ".segmentation holds numbers from 0 to 1 only, expected pixels of the image, not shares of its sides",
                "multiply x by its width and y by its height",
            )
        return run_lengths.pack_polygons(polygons, height, width) if polygons else None
    if isinstance(segmentation, dict):
        return run_lengths.pack(_lengths(segmentation, height, width), height, width)
    raise _Malformed(f".segmentation is {_shown(segmentation)}, expected {_POLYGONS}")


def _in_one(segmentation: list[Any]) -> list[Any]:
    """The polygons of a segmentation, which may be a single one of corners [x, y]."""
    return [segmentation] if len(segmentation) > 2 and all(map(_is_corner, segmentation)) else segmentation


def _flat(polygon: Any) -> Any:
    """A polygon of corners [x, y] as x, y, x, y, ...; any other as it is."""
    if isinstance(polygon, list) and polygon and all(map(_is_corner, polygon)):
        return [number for corner in polygon for number in corner]
    return polygon


def _is_corner(corner: Any) -> bool:
    return isinstance(corner, list) and len(corner) == 2 and {*map(type, corner)} <= {int, float}


def _is_outline(polygon: Any, height: int, width: int) -> bool:
    """Whether a polygon has three corners. Those outside of the image were drawn for another one."""
    if not isinstance(polygon, list) or not {*map(type, polygon)} <= {int, float}:
        raise _Malformed(f".segmentation holds {_shown(polygon)}, expected {_POLYGONS}")
    if len(polygon) < _FEWEST:
        return False
    if len(polygon) % 2:
        raise _Malformed(f".segmentation holds a polygon of {len(polygon)} numbers, expected pairs x, y")
    for axis, side, name in ((polygon[::2], width, "width"), (polygon[1::2], height, "height")):
        slack = max(_BEYOND[0], _BEYOND[1] * side)
        strange = [number for number in axis if not -slack <= number <= side + slack]
        if strange:
            raise _Malformed(
                f".segmentation holds the coordinate {strange[0]}, expected 0 to {side}, the image's {name} in pixels",
                "export the outlines for the pictures' size, in the order x, y",
            )
    return True


def _lengths(segmentation: Mapping[str, Any], height: int, width: int) -> list[int]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise _Malformed(f".segmentation.size is {_shown(size)}, expected the image's [{height}, {width}]")
    try:
        lengths = run_lengths.unpack(counts.encode()) if isinstance(counts, str) else counts
    except ValueError as error:
        raise _Malformed(f".segmentation.counts holds {error}, expected COCO's packed run lengths") from None
    if not isinstance(lengths, list) or not {*map(type, lengths)} <= {int} or min(lengths, default=0) < 0:
        raise _Malformed(f".segmentation.counts is {_shown(counts)}, expected lengths of runs")
    if sum(lengths) != height * width:
        raise _Malformed(
            f".segmentation.counts has runs of {sum(lengths)} pixels in all, expected the image's {height * width}"
        )
    return lengths


def _crowd(entry: Mapping[str, Any]) -> bool:
    crowd = entry.get("iscrowd")  # null as 0: some exporters write all fields
    if crowd not in (None, 0, 1):
        raise _Malformed(f".iscrowd is {_shown(crowd)}, expected 0 or 1")
    return bool(crowd)


def _list(content: Any, key: str) -> list[Any]:
    entries = content.get(key) if isinstance(content, dict) else None
    if isinstance(entries, list):
        return entries
    raise _Malformed(
        f"has no list '{key}', expected COCO's format for instances: images, annotations and categories",
        "choose COCO's format for instance segmentation where you export it",
    )


def _value(entry: Any, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, kind) and not isinstance(value, bool) and value != "" and is_text(str(value)):
        return value
    raise _Malformed(f".{key} is {_shown(value)}, expected {expected}")


def _known(entry: Any, key: str, places: Mapping[Any, int | None]) -> int | None:
    """The place of the image or category that an annotation names, see `_places`."""
    named = _value(entry, key, (int, str), "a whole number")
    if named not in places:
        listed = "images" if key == "image_id" else "categories"
        raise _Malformed(f".{key} is {_shown(named)}, expected the id of one of the {len(places)} '{listed}'")
    return places[named]


def _check_new(listed: str, key: str, value: Any, n: int, seen: dict[Any, int]) -> None:
    """Refuse what an entry before this one, the nth, has already."""
    if value in seen:
        raise _Malformed(
            f".{key} is {_shown(value)}, which {listed}[{seen[value]}] has already, expected all to differ"
        )
    seen[value] = n


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return "missing or null" if value is None else text if len(text) <= 40 else f"{text[:40]}..."


@contextmanager
def _at(where: str, wrong: list[_Malformed]) -> Iterator[None]:
    """Note what is malformed in an entry, and where that is, and go on behind it."""
    try:
        yield
    except _Malformed as error:
        wrong.append(_Malformed(f"{where}{error}", error.fix))
