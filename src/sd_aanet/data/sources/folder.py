"""One's own pictures: a folder with masks and a list of classes, or one file in COCO's format."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

from sd_aanet.data import folds as folds_of
from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.labelled import LabelMapSource
from sd_aanet.data.sources.layouts import open_layout
from sd_aanet.data.sources.listing import by_last_part, plain, read_lines
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import Array8
from sd_aanet.rules import number, or_null, text, whole


class Folder(LabelMapSource):
    """A data set of one's own.

    Either `images/`, `masks/` (for each picture a palette or grey PNG of the same name: class indices, 255 = ignore)
    and `classes.txt` (the name of class n in line n; comments, `# ...`, are passed over, and so are at its top names of
    index 0, such as `_background_`). With one class, masks may be painted in 0 and 255. Or pictures, in `images/` or
    not, and one JSON file in COCO's format, as labelme, CVAT, Label Studio and Roboflow export it; its classes are
    those with an outlined object.
    Or what Roboflow makes of a divided data set, `train/` and `valid/`, each with its `_annotations.coco.json`: they
    are the splits "train" and "val", and `test/`, if there is one, is passed over.
    Pictures without a mask are no part of the data set; they are turned the way a viewer shows them (EXIF).

    Where every class is novel, as with one class, nothing is left to train on, and both splits hold every picture:
    train on a benchmark, evaluate here. Otherwise `train.txt` and `val.txt` (a picture's name in each line) divide the
    pictures, or, where there are none, Roboflow's folders, or else their names: the same name is always on the same
    side.

    Args:
        root: the folder.
        split: "train" or "val".
        folds: how many, divided automatically; None for folds.yaml (see `folds.from_file`) or, without it, 4 (fewer
            where there are fewer classes).
        seed: of the automatic folds.
        val_share: of the pictures that go to "val" where no lists or folders say it, in (0, 1).

    Raises:
        DataError: the folder has another layout, a file in it is malformed, or a split is without pictures.
        ConfigError: `folds` or `val_share` cannot work.
    """

    name = "folder"
    rules: ClassVar = {"root": text("mine"), "folds": or_null(whole(1, 4)), "seed": whole(0), "val_share": number(0.3)}
    dividing = ("folds", "seed", "val_share")
    upright = True

    def __init__(
        self, root: str | Path, split: Split, folds: int | None = None, seed: int = 0, val_share: float = 0.3
    ) -> None:
        if not 0 < val_share < 1:
            raise ConfigError(f"dataset.source.val_share={val_share}, expected a share between 0 and 1: set it to 0.3")
        self.split = split
        self.root = root = Path(root).expanduser()
        self._layout = open_layout(root)
        self.classes = self._layout.classes
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
        return self._layout.pictures[self._keys[i]]

    def label_file(self, i: int) -> str:
        return self._layout.file(self._keys[i])

    def read_label(self, i: int) -> Array8:
        return self._layout.read(self._keys[i])

    def strays(self) -> Sequence[DataError]:
        return self._layout.strays

    def _of_split(self, split: Split, val_share: float) -> list[str]:
        keys = list(self._layout.pictures)
        if all(len(fold) == len(self.classes) for fold in self._folds):
            return keys
        lists = {name: self.root / f"{name}.txt" for name in ("train", "val")}
        if any(path.is_file() for path in lists.values()):
            return _read_list(lists[split], self._layout.pictures)
        if self._layout.splits is not None:
            return self._layout.splits[split]
        # By the name, not by a shuffle: a picture that is added moves no other one to the other side.
        chosen = [key for key in keys if (_share(key) < val_share) == (split == "val")]
        if not chosen:
            raise DataError(
                f"val_share={val_share} leaves '{split}' none of the {len(keys)} images of {self.root}: add pictures, "
                "or write train.txt and val.txt"
            )
        return chosen


def _share(key: str) -> float:
    """A number in [0, 1) that is drawn from a name, the same on any machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32


def _read_list(path: Path, keys: Collection[str]) -> list[str]:
    """The keys that a list names, each as a key or as a path, with a suffix or without."""
    if not path.is_file():
        raise DataError(f"image list {path} does not exist, but its counterpart does: write both train.txt and val.txt")
    ends = by_last_part(keys) | {key: key for key in keys}
    listed: set[str] = set()
    lines = read_lines(path)
    for line in lines:
        name = plain(line).removeprefix("images/")
        names = [n for n in (name, posixpath.splitext(name)[0]) if n in ends]
        if names:
            listed.add(ends[names[0]])
        else:
            refuse(
                f"image list {path} names '{line}', which is not an image with a mask, expected an image's name in "
                "each line: correct it",
                defect="missing",
            )
    if not lines:
        refuse(f"image list {path} is empty, expected an image's name in each line: fill it, or remove both")
    return sorted(listed)
