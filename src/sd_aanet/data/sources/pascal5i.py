"""PASCAL-5i: the 20 classes of PASCAL VOC in folds of five, read from VOC's own folder layout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sd_aanet.data.folds import arranged
from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.labelled import LabelMapSource
from sd_aanet.data.sources.listing import read_lines
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.errors import DataError
from sd_aanet.rules import text, whole

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class Pascal5i(LabelMapSource):
    """PASCAL-5i: fold i of four holds out the classes 5i+1 .. 5i+5, in VOC's order.

    Labels come from `SegmentationClassAug` (VOC united with SBD) or, where that folder is absent, from
    `SegmentationClass`. A line of a list is an image id, or the pair of paths that the field's own
    lists hold; the images are taken in the order of their ids, each once.

    Args:
        root: the folder with JPEGImages, SegmentationClassAug and ImageSets/Segmentation/{train,val}.txt.
        split: "train" or "val".
        folds: how many folds; must divide 20. The benchmark has 4.

    Raises:
        DataError: a folder or list is missing, or the list is empty or malformed.
        ConfigError: `folds` does not divide 20.
    """

    name = "pascal5i"
    rules: ClassVar = {"root": text("VOC2012"), "folds": whole(1, 4)}
    dividing = ("folds",)
    classes = CLASSES

    def __init__(self, root: str | Path, split: Split, folds: int = 4) -> None:
        self._folds = arranged(len(CLASSES), folds, "contiguous")
        self.split = split
        self.folds = folds
        self.root = root = Path(root).expanduser()
        if not root.is_dir():
            raise DataError(
                f"dataset root {root} is not a folder, expected VOC's layout (JPEGImages, SegmentationClassAug, "
                "ImageSets): set dataset.root to it"
            )
        self._images = root / "JPEGImages"
        self._masks = root / "SegmentationClassAug"
        if not self._masks.is_dir():
            self._masks = root / "SegmentationClass"
        for folder in (self._images, self._masks):
            if not folder.is_dir():
                raise DataError(
                    f"folder {folder} is missing, expected VOC's layout (JPEGImages, SegmentationClassAug or "
                    f"SegmentationClass, ImageSets) under {root}: set dataset.root to the folder above them"
                )
        self._ids = read_ids(root / "ImageSets" / "Segmentation" / f"{split}.txt", "check dataset.root")

    def __len__(self) -> int:
        return len(self._ids)

    def key(self, i: int) -> str:
        return self._ids[i]

    def image_file(self, i: int) -> str:
        return f"{self._images}/{self._ids[i]}.jpg"

    def label_file(self, i: int) -> str:
        return f"{self._masks}/{self._ids[i]}.png"


def read_ids(path: Path, fix: str) -> tuple[str, ...]:
    """The image ids of a list, sorted, each once: an id a line, or the paths of a picture and its mask.

    Args:
        path: of the list.
        fix: what to do where there is none.

    Raises:
        DataError: the list is missing, no text, empty, or pairs files of different names.
    """
    if not path.is_file():
        raise DataError(f"image list {path} does not exist, expected one image id per line: {fix}")
    ids: set[str] = set()
    lines = read_lines(path)
    for line in lines:
        stems = {Path(word).stem for word in line.split()}
        if len(stems) > 1:
            refuse(
                f"image list {path} pairs files of different names in {line!r}, expected an id or "
                "'JPEGImages/x.jpg SegmentationClassAug/x.png': correct the line"
            )
        else:
            ids |= stems
    if not lines:
        refuse(f"image list {path} is empty, expected one image id per line: fill it, or {fix}")
    return tuple(sorted(ids))
