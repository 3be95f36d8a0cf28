"""The two layouts that a folder of one's own may have: its pictures, its classes, and its label maps."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from sd_aanet.data.coco import CocoAnnotations
from sd_aanet.data.listing import by_last_part, composed, files_below, read_lines
from sd_aanet.data.source import SUFFIXES, Array8, read_label
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError

LAYOUT = "images/, masks/ and classes.txt, or pictures and one annotations file in COCO's format (*.json)"


class Layout(Protocol):
    """What a layout tells of a folder.

    Attributes:
        classes: names of the classes 1..C.
        pictures: the labelled ones, {key: path}, sorted; a key is the path from images/, or else from the root, without
            its suffix.
        strays: see `ImageSource.strays`.
    """

    classes: tuple[str, ...]
    pictures: dict[str, str]
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
        raise DataError(f"dataset root {root} is no folder, expected {LAYOUT}: set dataset.root to it")
    return MaskLayout(root) if (root / "masks").is_dir() else CocoLayout(root)


class MaskLayout:
    """A mask for each picture, of the same name, and a list of classes."""

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
        self.strays = [
            *(
                _stray(f"picture {path} has no mask in {masks}")
                for key, path in found.items()
                if key not in self._masks
            ),
            *(
                _stray(f"mask {path} has no picture in {images}")
                for key, path in self._masks.items()
                if key not in found
            ),
        ]

    def file(self, key: str) -> str:
        return self._masks[key]

    def read(self, key: str) -> Array8:
        label = read_label(self._masks[key])
        # With one class such a mask was painted: as in `sd-aanet predict`, 255 is the object then.
        painted = len(self.classes) == 1 and np.flatnonzero(np.bincount(label.ravel())).tolist() == [0, IGNORE]
        return (label == IGNORE).astype(np.uint8) if painted else label


class CocoLayout:
    """Pictures, and one file of annotations in COCO's format."""

    def __init__(self, root: Path) -> None:
        self._json = _annotations_file(root)
        self._annotations = CocoAnnotations.open(self._json)
        # Exporters list categories that no object has, such as a parent of all others.
        used = sorted(self._annotations.used)
        if not used:
            raise DataError(f"annotations {self._json} hold no outlined object, only boxes or none: export polygons")
        self.classes = tuple(composed(self._annotations.categories[place][1]) for place in used)
        self._class_of = np.zeros(IGNORE + 1, np.uint8)
        self._class_of[IGNORE] = IGNORE
        self._class_of[np.array(used) + 1] = np.arange(1, len(used) + 1)
        files = files_below(root)
        names = {_plain(name): place for place, name in enumerate(self._annotations.images)}
        found = _located(names, files)
        if not found:
            raise DataError(
                f"none of the {len(names)} pictures of {self._json}, such as {next(iter(names))}, is in {root}: put "
                "them beside it or into images/"
            )
        self.pictures = _by_key({place: files[place] for place in found.values()})
        self._places = {_key(place): names[name] for name, place in found.items()}
        self.strays = [
            *self._missing(names, found, root),
            *self._annotations.strays(),
            *self._others(found, files),
        ]

    def file(self, key: str) -> str:
        return str(self._json)

    def read(self, key: str) -> Array8:
        label: Array8 = self._class_of[self._annotations.label(self._places[key])]
        return label

    def _missing(self, names: Iterable[str], found: Mapping[str, str], root: Path) -> list[DataError]:
        return [
            DataError(
                f"picture {name} of {self._json} is nowhere in {root}: put it beside it or into images/", "missing"
            )
            for name in names
            if name not in found
        ]

    def _others(self, found: Mapping[str, str], files: Mapping[str, str]) -> list[DataError]:
        """Pictures that lie with the annotated ones, but are not annotated."""
        folders, known = {posixpath.dirname(place) for place in found.values()}, set(found.values())
        return [
            _stray(f"picture {path} is not in {self._json}")
            for place, path in files.items()
            if posixpath.dirname(place) in folders and place not in known and _is_picture(place)
        ]


def _stray(line: str) -> DataError:
    return DataError(f"{line}, so that it is left out", "stray")


def _is_picture(place: str) -> bool:
    return place.lower().endswith(SUFFIXES)


def _pictures(folder: Path) -> dict[str, str]:
    return {place: path for place, path in files_below(folder).items() if _is_picture(place)}


def _key(place: str) -> str:
    return posixpath.splitext(place.removeprefix("images/"))[0]


def _by_key(files: Mapping[str, str]) -> dict[str, str]:
    """{key: path} from {place: path}, sorted."""
    found: dict[str, str] = {}
    for place, path in files.items():
        key = _key(place)
        if key in found:
            raise DataError(f"{found[key]} and {path} have one name, '{key}', expected one each: rename one")
        found[key] = path
    return dict(sorted(found.items()))


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the name of class n in line n: write it")
    names = read_lines(path)
    while names and (names[0].startswith("_") or names[0] == "background"):
        names.pop(0)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice or len(names) >= IGNORE:
        problem = f"names '{twice[0]}' twice" if twice else f"holds {len(names)} names"
        raise DataError(f"{path} {problem}, expected 1 to {IGNORE - 1} different names, one a line: correct it")
    return tuple(names)


def _annotations_file(root: Path) -> Path:
    found = sorted(path for path in (*root.glob("*.json"), *root.glob("annotations/*.json")) if path.name[0] != ".")
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} JSON files, such as {found[0].name}" if found else "neither masks/ nor a JSON file"
    below = sorted(path.parent for path in root.glob("*/*.json") if path.name[0] != ".")
    fix = f"set dataset.root to one, such as {below[0]}" if below and not found else "set dataset.root to such a folder"
    raise DataError(f"dataset root {root} holds {what}, expected {LAYOUT}: {fix}")


def _plain(name: str) -> str:
    """A picture's name as annotations have it (Windows writes backslashes), as `files_below` has it."""
    return posixpath.normpath(composed(name.replace("\\", "/")))


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
