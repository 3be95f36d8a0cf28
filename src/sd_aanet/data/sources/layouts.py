"""The two layouts that a folder of one's own may have: its pictures, its classes, and its label maps."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.listing import by_last_part, composed, files_below, read_lines
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

    def file(self, key: str) -> str:
        return self._masks[key]

    def read(self, key: str) -> Array8:
        label = read_label(self._masks[key])
        # With one class such a mask was painted: as in `sd-aanet predict`, 255 is the object then.
        painted = len(self.classes) == 1 and np.flatnonzero(np.bincount(label.ravel())).tolist() == [0, IGNORE]
        return (label == IGNORE).astype(np.uint8) if painted else label


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
        names = {_plain(name): number for number, name in enumerate(self.annotations.images)}
        found = _located(names, files)
        if not found:
            raise DataError(
                f"none of the {len(names)} pictures of {path}, such as {next(iter(names))}, is in {folder}: put "
                "them beside it or into images/"
            )
        self.places = {place: files[place] for place in found.values()}
        self.images = {files[place]: names[name] for name, place in found.items()}
        missing = [f"picture {name} of {path} is not in {folder}" for name in names if name not in found]
        self.strays = [DataError(f"{line}: put it beside it or into images/", "missing") for line in missing]
        self.strays += [*self.annotations.strays(), *self._others(files)]

    def _others(self, files: Mapping[str, str]) -> list[DataError]:
        """Pictures that lie with the annotated ones, but are not annotated."""
        folders = {posixpath.dirname(place) for place in self.places}
        return [
            _stray(f"picture {path} is not in {self.path}")
            for place, path in files.items()
            if posixpath.dirname(place) in folders and place not in self.places and _is_picture(place)
        ]


def _stray(line: str) -> DataError:
    return DataError(f"{line}, so that it is left out", "stray")


def _is_picture(place: str) -> bool:
    return place.lower().endswith(SUFFIXES)


def _pictures(folder: Path) -> dict[str, str]:
    return {place: path for place, path in files_below(folder).items() if _is_picture(place)}


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
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the name of class n in line n: write it")
    names = read_lines(path)
    while names and (names[0].startswith("_") or names[0] == "background"):
        names.pop(0)
    twice = _twice(names)
    if not names or twice or len(names) >= IGNORE:
        problem = f"names '{twice[0]}' twice" if twice else f"holds {len(names)} names"
        raise DataError(f"{path} {problem}, expected 1 to {IGNORE - 1} different names, one per line: correct it")
    return tuple(names)


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
