"""COCO-20i: the 80 classes of COCO in folds of twenty, from COCO's own files or from what `prepare` made of them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sd_aanet.data.folds import arranged
from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.labelled import LabelMapSource
from sd_aanet.data.sources.listing import plain
from sd_aanet.errors import DataError
from sd_aanet.images import Array8, read_label
from sd_aanet.rules import text, whole

CLASSES = 80
YEARS = ("", "2014", "2017")
"""Behind "train" and "val" in names of files and folders: prepared, and COCO's own releases."""


class Coco20i(LabelMapSource):
    """COCO-20i: fold i of four holds out the classes 4x+i+1, x = 0..19, in the order of COCO's category ids.

    Expects `annotations/instances_<split>.json` and a folder `<split>` of images, a year behind both names as COCO has
    it. Masks are read from `masks/<split>` where that folder exists, else made from the annotations when asked for
    (see `CocoAnnotations.label`: crowds are 255).

    Args:
        root: the folder that holds those.
        split: "train" or "val".
        arrangement: "interleaved" (the usual one) or "contiguous" (fold i holds out 20i+1 .. 20i+20).
        folds: how many folds; must divide 80. The benchmark has 4.

    Raises:
        DataError: a folder or file is missing or malformed, or has other than 80 categories.
        ConfigError: an unknown arrangement, or `folds` does not divide 80.
    """

    name = "coco20i"
    rules: ClassVar = {"root": text("coco"), "folds": whole(1, 4), "arrangement": text("interleaved")}
    dividing = ("arrangement", "folds")

    def __init__(self, root: str | Path, split: Split, arrangement: str = "interleaved", folds: int = 4) -> None:
        self._folds = arranged(CLASSES, folds, arrangement)
        self.split = split
        self.folds = folds
        self.root = root = Path(root).expanduser()
        self._json, self._images = _find(root, split)
        self._annotations = CocoAnnotations(self._json)
        self.classes = tuple(name for _, name in self._annotations.categories)
        count = len(set(self.classes))
        if not count == len(self.classes) == CLASSES:
            raise DataError(
                f"{self._json} has {len(self.classes)} categories of {count} names, expected COCO's {CLASSES}: for "
                "other data sets in this format choose dataset=folder"
            )
        masks = root / "masks" / split
        self._masks = masks if masks.is_dir() else None

    def __len__(self) -> int:
        return len(self._annotations.images)

    def key(self, i: int) -> str:
        return posixpath.splitext(plain(self._annotations.images[i]))[0]

    def image_file(self, i: int) -> str:
        return f"{self._images}/{self._annotations.images[i]}"

    def label_file(self, i: int) -> str:
        return str(self._json) if self._masks is None else f"{self._masks}/{self.key(i)}.png"

    def read_label(self, i: int) -> Array8:
        return self._annotations.label(i) if self._masks is None else read_label(self.label_file(i))

    def strays(self) -> Sequence[DataError]:
        return self._annotations.strays()


def _find(root: Path, split: str) -> tuple[Path, Path]:
    """The annotations and the folder of images."""
    for year in YEARS:
        annotations, images = root / "annotations" / f"instances_{split}{year}.json", root / f"{split}{year}"
        if annotations.is_file() and images.is_dir():
            return annotations, images
    raise DataError(
        f"dataset root {root} lacks COCO's layout, expected annotations/instances_{split}2014.json and the folder "
        f"{split}2014 (or 2017, or what sd-aanet prepare coco20i made): set dataset.root to the folder above them"
    )
