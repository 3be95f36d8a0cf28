"""One's own pictures: a folder with masks and a list of classes, or one file in COCO's format."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from sd_aanet.data import folds as folds_of
from sd_aanet.data.coco import CocoAnnotations
from sd_aanet.data.labelled import LabelMapSource
from sd_aanet.data.source import SUFFIXES, Array8, Split, read_label
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError

LAYOUT = "images/, masks/ and classes.txt, or pictures and one annotations file in COCO's format (*.json)"


class Folder(LabelMapSource):
    """A data set of one's own.

    Either `images/`, `masks/` (for each picture a palette or grey PNG of the same stem: class indices, 255 = ignore)
    and `classes.txt` (the name of class n in line n; names of index 0, such as `_background_`, are passed over at its
    top). Or pictures, in `images/` or not, and one JSON file in COCO's format, as labelme, CVAT, Label Studio and
    Roboflow export it. Pictures without a mask are no part of the data set; they are turned the way a viewer shows them
    (EXIF).

    With one fold, as with one class, nothing is left to train on, and both splits hold every picture: train on a
    benchmark, evaluate here. Otherwise `train.txt` and `val.txt` (a stem in each line) divide the pictures, or, where
    there are none, their names do: the same name is always on the same side.

    Args:
        root: the folder.
        split: "train" or "val".
        folds: how many, divided automatically; None for folds.yaml (see `folds.from_file`) or, without it, 4 (fewer
            where there are fewer classes).
        seed: of the automatic folds.
        val_share: of the pictures that go to "val" where no lists say it, in (0, 1).

    Raises:
        DataError: the folder has another layout, or a file in it is malformed.
        ConfigError: `folds` or `val_share` cannot work.
    """

    name = "folder"
    upright = True

    def __init__(
        self, root: str | Path, split: Split, folds: int | None = None, seed: int = 0, val_share: float = 0.3
    ) -> None:
        if not 0 < val_share < 1:
            raise ConfigError(f"dataset.source.val_share={val_share}, expected a share between 0 and 1: set it to 0.3")
        self.split = split
        self.root = root = Path(root).expanduser()
        self._labels: _Labels = _Masks(root) if (root / "masks").is_dir() else _Annotations(root)
        self.classes = self._labels.classes
        own = root / "folds.yaml"
        if folds is None and own.is_file():
            self._folds = folds_of.from_file(own, self.classes)
        else:
            self._folds = folds_of.shuffled(len(self.classes), folds, seed)
        self.folds = len(self._folds)
        self._keys = self._of_split(split, val_share)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        return self._keys[i]

    def image_file(self, i: int) -> str:
        return self._labels.pictures[self._keys[i]]

    def label_file(self, i: int) -> str:
        return self._labels.file(self._keys[i])

    def label_files(self) -> Sequence[str]:
        return sorted({self.label_file(i) for i in range(len(self))})

    def read_label(self, i: int) -> Array8:
        return self._labels.read(self._keys[i])

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        return self._folds[fold]

    def strays(self) -> Sequence[str]:
        return self._labels.strays

    def _of_split(self, split: Split, val_share: float) -> list[str]:
        keys = sorted(self._labels.pictures)
        if not keys:
            raise DataError(f"dataset root {self.root} holds no picture with a mask, expected {LAYOUT}")
        if self.folds == 1:
            return keys
        lists = {name: self.root / f"{name}.txt" for name in ("train", "val")}
        if any(path.is_file() for path in lists.values()):
            return _read_list(lists[split], keys)
        # A checksum of the name, not a shuffle: a picture that is added moves no other one to the other side.
        val = [key for key in keys if zlib.crc32(key.encode()) / 2**32 < val_share]
        return val if split == "val" else [key for key in keys if key not in set(val)]


class _Labels(Protocol):
    """The two layouts. `pictures`: the labelled ones, key -> path. `strays`: see `ImageSource.strays`."""

    classes: tuple[str, ...]
    pictures: dict[str, str]
    strays: list[str]

    def file(self, key: str) -> str: ...

    def read(self, key: str) -> Array8: ...


class _Masks:
    def __init__(self, root: Path) -> None:
        if not (root / "images").is_dir():
            raise DataError(f"dataset root {root} lacks the folder images, expected {LAYOUT}: set dataset.root to it")
        self.classes = _class_names(root / "classes.txt")
        found, self._files = (_by_key(root / "images", SUFFIXES), _by_key(root / "masks", (".png",)))
        self.pictures = {key: path for key, path in found.items() if key in self._files}
        self.strays = [f"picture {path} has no mask in masks/" for key, path in found.items() if key not in self._files]
        self.strays += [
            f"mask {path} has no picture in images/" for key, path in self._files.items() if key not in found
        ]

    def file(self, key: str) -> str:
        return self._files[key]

    def read(self, key: str) -> Array8:
        return read_label(self._files[key])


class _Annotations:
    def __init__(self, root: Path) -> None:
        self._json = _annotations_file(root)
        self._annotations = CocoAnnotations.open(self._json)
        # Exporters list categories that no object has, such as a parent of all others.
        used = [place for place in range(len(self._annotations.categories)) if place in self._annotations.used]
        self.classes = tuple(self._annotations.categories[place][1] for place in used)
        if not self.classes:
            raise DataError(f"annotations {self._json} hold no outlined object: export polygons, not only boxes")
        self._class_of = np.zeros(IGNORE + 1, np.uint8)
        self._class_of[IGNORE] = IGNORE
        self._class_of[np.array(used) + 1] = np.arange(1, len(used) + 1)
        self.pictures, self._places, self.strays = {}, {}, []
        for place, name in enumerate(self._annotations.images):
            candidates = (root / "images" / name, root / name, root / "images" / Path(name).name)
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                self.strays.append(f"picture {name} of {self._json} is neither in images/ nor in {root}")
            else:
                key = str(Path(name).with_suffix(""))
                self.pictures[key], self._places[key] = str(path), place

    def file(self, key: str) -> str:
        return str(self._json)

    def read(self, key: str) -> Array8:
        label: Array8 = self._class_of[self._annotations.label(self._places[key])]
        return label


def _by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """{path in the folder without its suffix: path}, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.name[0] != ".")
    return {path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in paths}


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected the name of class n in line n: write it")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    while names and (names[0].startswith("_") or names[0] == "background"):
        names.pop(0)
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or len(names) >= IGNORE:
        problem = f"names '{twice[0]}' twice" if twice else f"holds {len(names)} names"
        raise DataError(f"{path} {problem}, expected 1 to {IGNORE - 1} different names, one a line: correct it")
    return tuple(names)


def _annotations_file(root: Path) -> Path:
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(found) != 1:
        what = f"{len(found)} JSON files" if found else "neither masks/ nor a JSON file"
        raise DataError(f"dataset root {root} holds {what}, expected {LAYOUT}: set dataset.root to such a folder")
    return found[0]


def _read_list(path: Path, keys: Sequence[str]) -> list[str]:
    if not path.is_file():
        raise DataError(f"image list {path} does not exist, its counterpart does: write both train.txt and val.txt")
    listed = {line.strip().rpartition(".")[0] or line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    listed -= {""}
    unknown = sorted(listed - set(keys))
    if unknown or not listed:
        problem = f"names '{unknown[0]}', which is no picture with a mask" if unknown else "is empty"
        raise DataError(f"image list {path} {problem}, expected a picture's name in each line: correct it")
    return sorted(listed)
