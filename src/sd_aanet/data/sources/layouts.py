"""The two layouts that a folder of one's own may have: its pictures, its classes, and its label maps."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.index import any_holds
from sd_aanet.data.sources.listing import by_last_part, composed, files_below, plain, read_lines
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError
from sd_aanet.images import SUFFIXES, Array8, read_label

LAYOUT = "images/, masks/ and classes.txt, or pictures and one annotations file in COCO's format (*.json)"
ROBOFLOW: dict[Split, str] = {"train": "train/", "val": "valid/"}
"""Its folders, each with pictures and their annotations, by split. A third one, test/, is passed over."""
ROBOFLOW_FILE = "_annotations.coco.json"


class Layout(Protocol):
    """What a layout tells of a folder.

    Attributes:
        classes: names of the classes 1..C.
        pictures: the labelled ones, {key: path}, sorted; a key is the path from images/, or else from the root, without
            its suffix.
        splits: the keys of each split where the layout itself divides its pictures, else None.
        strays: see `ImageSource.strays`.
    """

    classes: tuple[str, ...]
    pictures: dict[str, str]
    splits: dict[Split, list[str]] | None
    strays: list[DataError]

    def file(self, key: str) -> str:
        """The file that holds a picture's label."""

    def read(self, key: str) -> Array8:
        """A picture's label map, uint8 (H, W): class ids, 255 = ignore."""


def open_layout(root: Path) -> Layout:
    """Find out which layout a folder has.

    Raises:
        DataError: none, or a file that it needs is missing or malformed.
    """
    if not root.is_dir():
        raise DataError(f"dataset root {root} is not a folder, expected {LAYOUT}: set dataset.root to it")
    return MaskLayout(root) if (root / "masks").is_dir() else CocoLayout(root)


class MaskLayout:
    """A mask for each picture, of the same name, and a list of classes."""

    splits: dict[Split, list[str]] | None = None

    def __init__(self, root: Path) -> None:
        images, masks = root / "images", root / "masks"
        if not images.is_dir():
            raise DataError(f"dataset root {root} lacks the folder images, expected {LAYOUT}: set dataset.root to it")
        self.classes = _class_names(root / "classes.txt")
        found, self._masks = _by_key(_pictures(images)), _by_key(_pictures(masks))
        self.pictures = {key: path for key, path in found.items() if key in self._masks}
        if not self.pictures:
            raise DataError(
                f"none of the {len(found)} pictures in {images} has the name of one of the {len(self._masks)} masks in "
                f"{masks}, expected images/a.jpg and masks/a.png: rename them"
            )
        unmarked = [path for key, path in found.items() if key not in self._masks]
        unseen = [path for key, path in self._masks.items() if key not in found]
        self.strays = [_stray(f"picture {path} has no mask in {masks}") for path in unmarked]
        self.strays += [_stray(f"mask {path} has no picture in {images}") for path in unseen]
        # With one class masks may be painted, in 0 and 255: as in `sd-aanet predict`, 255 is the object then. One that
        # holds only these is no proof, for it may show nothing but what is to be ignored: all together are.
        self._painted = len(self.classes) == 1 and not any_holds(
            _has_index, [self._masks[key] for key in self.pictures], root, f"Looking what the masks of {root} hold"
        )

    def file(self, key: str) -> str:
        return self._masks[key]

    def read(self, key: str) -> Array8:
        label = read_label(self._masks[key], upright=True)
        return np.where(label == IGNORE, 1, label).astype(np.uint8) if self._painted else label


class CocoLayout:
    """Pictures and one file of annotations in COCO's format, or Roboflow's two folders of that."""

    def __init__(self, root: Path) -> None:
        parts = {folder: _Part(root / folder, path) for folder, path in _annotations_files(root).items()}
        first, *others = parts.values()
        for other in others:
            if other.annotations.categories != first.annotations.categories:
                raise DataError(
                    f"annotations {first.path} and {other.path} have different categories, expected the same in both: "
                    "take both from one export"
                )
        # Exporters list categories that no object has, such as a parent of all others.
        used = sorted(frozenset[int]().union(*(part.annotations.used for part in parts.values())))
        if not used:
            raise DataError(f"annotations {first.path} hold no outlined object, only boxes or none: export polygons")
        self.classes = tuple(composed(first.annotations.categories[place][1]) for place in used)
        for name in _twice(self.classes):
            refuse(
                f"annotations {first.path} have objects of several categories called '{name}', expected different "
                "names: rename or unite these categories"
            )
        self._class_of = np.zeros(IGNORE + 1, np.uint8)
        self._class_of[IGNORE] = IGNORE
        self._class_of[np.array(used) + 1] = np.arange(1, len(used) + 1)
        self._parts = {path: part for part in parts.values() for path in part.images}
        self.pictures = _by_key(
            {f"{folder}{place}": path for folder, part in parts.items() for place, path in part.places.items()}
        )
        self.splits: dict[Split, list[str]] | None = None
        if others:
            self.splits = {
                split: [key for key, path in self.pictures.items() if self._parts[path] is parts[folder]]
                for split, folder in ROBOFLOW.items()
            }
        self.strays = [stray for part in parts.values() for stray in part.strays]

    def file(self, key: str) -> str:
        return str(self._parts[self.pictures[key]].path)

    def read(self, key: str) -> Array8:
        path = self.pictures[key]
        part = self._parts[path]
        label: Array8 = self._class_of[part.annotations.label(part.images[path])]
        return label


class _Part:
    """A file of annotations, and its pictures in a folder.

    Attributes:
        path: the file.
        annotations: what it holds.
        places: {path of a picture from the folder: whole path}.
        images: {whole path of a picture: its number in the annotations}.
        strays: see `ImageSource.strays`.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.path, self.annotations = path, CocoAnnotations(path)
        files = files_below(folder)
        names = {plain(name): number for number, name in enumerate(self.annotations.images)}
        found = _located(names, files)
        if not found:
            raise DataError(
                f"none of the {len(names)} pictures of {path}, such as {next(iter(names))}, is in {folder}: put "
                "them beside it or into images/"
            )
        first: dict[str, str] = {}
        for name, place in found.items():
            if first.setdefault(place, name) != name:
                refuse(
                    f"annotations {path} list the picture {files[place]} twice, as {first[place]} and as {name}, "
                    "expected one entry a picture: unite them"
                )
        self.places = {place: files[place] for place in first}
        self.images = {files[place]: names[name] for place, name in first.items()}
        cases = {place.lower(): place for place in files}
        refuse(*(_missing(name, path, folder, cases) for name in names if name not in found), defect="missing")
        self.strays = [*self.annotations.strays(), *self._others(files)]

    def _others(self, files: Mapping[str, str]) -> list[DataError]:
        """Pictures that lie with the annotated ones, but are not annotated."""
        folders = {posixpath.dirname(place) for place in self.places}
        return [
            _stray(f"picture {path} is not in {self.path}")
            for place, path in files.items()
            if posixpath.dirname(place) in folders and place not in self.places and _is_picture(place)
        ]


def _missing(name: str, annotations: Path, folder: Path, cases: Mapping[str, str]) -> str:
    """The line on an annotated picture that is not there; names are the same on some systems, whatever their case."""
    other = cases.get(name.lower()) or cases.get(f"images/{name}".lower())
    fix = f"call it as {other} is called" if other else "put it beside it or into images/, or take its entry out"
    return f"picture {name} of {annotations} is not in {folder}: {fix}"


def _stray(line: str) -> DataError:
    return DataError(f"{line}, so that it is left out", "stray")


def _is_picture(place: str) -> bool:
    return place.lower().endswith(SUFFIXES)


def _pictures(folder: Path) -> dict[str, str]:
    return {place: path for place, path in files_below(folder).items() if _is_picture(place)}


def _has_index(mask: str) -> bool:
    """Whether a mask holds the index 1; what cannot be read is told when it is."""
    with suppress(DataError):
        return bool((read_label(mask) == 1).any())
    return False


def _by_key(files: Mapping[str, str]) -> dict[str, str]:
    """{key: path} from {place: path}, sorted."""
    found: dict[str, str] = {}
    for place, path in files.items():
        key = posixpath.splitext(place.removeprefix("images/"))[0]
        if key in found:
            refuse(f"{found[key]} and {path} have the same name, '{key}', expected different names: rename one")
        else:
            found[key] = path
    return dict(sorted(found.items()))


def _class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes from 1 on: of plain lines, numbered ones, or CVAT's `name:colour:parts:actions`."""
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the name of class n in line n: write it")
    lines = [line for line in read_lines(path) if not line.startswith("# ")]
    names = _unnumbered(_without_colours(lines), path)
    while names and (names[0].startswith("_") or _is_background(names[0])):
        names.pop(0)
    twice, background = _twice(names), [name for name in names if _is_background(name)]
    if not names or twice or background or len(names) >= IGNORE:
        problem = f"names '{twice[0]}' twice" if twice else f"holds {len(names)} names"
        problem = f"names '{background[0]}' behind a class, though its index is 0" if background else problem
        raise DataError(f"{path} {problem}, expected 1 to {IGNORE - 1} different names, one per line: correct it")
    return tuple(names)


def _is_background(name: str) -> bool:
    return name.strip("_ ").lower() == "background"


def _without_colours(lines: list[str]) -> list[str]:
    """The names of CVAT's labelmap.txt; other lines as they are."""
    labels = [re.fullmatch(r"(.+?):(\d+,\d+,\d+)?:[^:]*:[^:]*", line) for line in lines]
    return [label[1] for label in labels if label] if labels and all(labels) else lines


def _unnumbered(lines: list[str], path: Path) -> list[str]:
    """Lines without the numbers before them, but where nothing else tells the lines apart: then they are the names."""
    numbered = [found for line in lines if (found := re.fullmatch(r"(\d+)(?:[.)]?\s+|\s*[:,;=]\s*)(\D.*)", line))]
    numbers, names = [int(found[1]) for found in numbered], [found[2] for found in numbered]
    if not lines or len(names) < len(lines) or _twice(names):
        return lines
    first = 0 if names[0].startswith("_") or _is_background(names[0]) else 1
    for place, (number, name) in enumerate(zip(numbers, names, strict=True), start=first):
        if number != place:
            raise DataError(
                f"{path} gives '{name}' the number {number}, expected {place}: only the background is 0, and classes "
                "count from 1, as in the masks"
            )
    return names


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _annotations_files(root: Path) -> dict[str, Path]:
    """{folder: its file of annotations}: one for all of the root, called "", or Roboflow's two."""
    found = sorted(path for path in (*root.glob("*.json"), *root.glob("annotations/*.json")) if path.name[0] != ".")
    if len(found) == 1:
        return {"": found[0]}
    divided = {folder: root / folder / ROBOFLOW_FILE for folder in ROBOFLOW.values()}
    if not found and all(path.is_file() for path in divided.values()):
        return divided
    what = f"{len(found)} JSON files, such as {found[0].name}" if found else "neither masks/ nor a JSON file"
    below = sorted(path.parent for path in root.glob("*/*.json") if path.name[0] != ".")
    fix = f"set dataset.root to one, such as {below[0]}" if below and not found else "set dataset.root to such a folder"
    raise DataError(f"dataset root {root} holds {what}, expected {LAYOUT}: {fix}")


def _located(names: Collection[str], files: Mapping[str, str]) -> dict[str, str]:
    """Where the pictures are: from the root, in images/, or anywhere if no other has the last part of the name."""
    ends, own = by_last_part(files), by_last_part(names)
    found = {}
    for name in names:
        end = posixpath.basename(name)
        elsewhere = ends.get(end) if end in own else None
        place = next((p for p in (name, f"images/{name}") if p in files), elsewhere)
        if place is not None:
            found[name] = place
    return found
