"""PASCAL-5i: the 20 classes of PASCAL VOC in folds of five, read from VOC's own folder layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sd_aanet.data.source import Array8, ImageSource, Split, check_same_size, read_image, read_label
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError

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

QUIET_BELOW = 200
"""Fewer files than this are read without a progress bar: it would flash by."""


class Pascal5i(ImageSource):
    """PASCAL-5i: fold i of four holds out the classes 5i+1 .. 5i+5, in VOC's order.

    Labels come from `SegmentationClassAug` (VOC united with SBD) or, where that folder is absent, from
    `SegmentationClass`. A line of a list is an image id, or the pair of paths that the field's own
    lists hold.

    Args:
        root: the folder with JPEGImages, SegmentationClassAug and ImageSets/Segmentation/{train,val}.txt.
        split: "train" or "val".
        folds: how many folds; must divide 20. The benchmark has 4.

    Raises:
        DataError: a folder or list is missing, or the list is empty or malformed.
        ConfigError: `folds` does not divide 20.
    """

    name = "pascal5i"
    classes = CLASSES

    def __init__(self, root: str | Path, split: Split, folds: int = 4) -> None:
        if folds < 1 or len(CLASSES) % folds:
            raise ConfigError(f"folds={folds}, expected a divisor of the {len(CLASSES)} classes: use folds=4")
        self.split = split
        self.folds = folds
        root = Path(root).expanduser()
        if not root.is_dir():
            raise DataError(
                f"dataset root {root} is no folder, expected VOC's layout (JPEGImages, SegmentationClassAug, "
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
        self._ids = _read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")

    def __len__(self) -> int:
        return len(self._ids)

    def key(self, i: int) -> str:
        return self._ids[i]

    def image(self, i: int) -> Array8:
        return read_image(self._image_path(i))

    def mask(self, i: int, class_id: int) -> Array8:
        label = self._label(i)
        return np.where(label == IGNORE, label, label == class_id).astype(np.uint8)

    def pixels(self) -> NDArray[np.int64]:
        # Pillow decodes outside the interpreter's lock: threads help, and need no pickling.
        with ThreadPoolExecutor(max_workers=4) as pool:
            counts = tqdm(
                pool.map(self._count, range(len(self))),
                total=len(self),
                desc=f"Reading the {self.split} masks",
                unit="mask",
                disable=len(self) < QUIET_BELOW,
            )
            return np.stack(list(counts))

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        count = len(CLASSES) // self.folds
        return tuple(range(fold * count + 1, (fold + 1) * count + 1))

    def _image_path(self, i: int) -> Path:
        return self._images / f"{self._ids[i]}.jpg"

    def _label(self, i: int) -> Array8:
        """The indices of every pixel, checked against the image's size (of which only the header is read)."""
        image, mask = self._image_path(i), self._masks / f"{self._ids[i]}.png"
        label = read_label(mask)
        check_same_size(image, _size_of(image), mask, label.shape)
        return label

    def _count(self, i: int) -> NDArray[np.int64]:
        counts = np.bincount(self._label(i).ravel(), minlength=256)
        strange = np.flatnonzero(counts[len(CLASSES) + 1 : IGNORE])
        if len(strange):
            raise DataError(
                f"mask {self._masks / self._ids[i]}.png holds the index {len(CLASSES) + 1 + strange[0]}, "
                f"expected 0 to {len(CLASSES)} or {IGNORE} (ignore): save it with VOC's class indices"
            )
        return counts[1 : len(CLASSES) + 1].astype(np.int64)


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except OSError:
        height, width, _ = read_image(path).shape  # raises the error that says what is wrong
        return height, width


def _read_list(path: Path) -> tuple[str, ...]:
    """The image ids of a list: the stem of the first path of each line, the second path's being the same."""
    if not path.is_file():
        raise DataError(f"image list {path} does not exist, expected one image id a line: check dataset.root")
    ids: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stems = {Path(word).stem for word in line.split()}
        if len(stems) > 1:
            raise DataError(
                f"image list {path} pairs files of different names in {line!r}, expected an id or "
                "'JPEGImages/x.jpg SegmentationClassAug/x.png': correct the line"
            )
        ids.extend(stems)
    if not ids:
        raise DataError(f"image list {path} is empty, expected one image id a line: fill it or check dataset.root")
    return tuple(ids)
