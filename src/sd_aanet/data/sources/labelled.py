"""Data sets whose images each have one map of class indices: the base of most of those on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.folds import Folds
from sd_aanet.data.sources.index import IndexedSource
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError
from sd_aanet.images import Array8, check_same_size, image_size, read_image, read_label


class LabelMapSource(IndexedSource):
    """Images with label maps of 0 (background), 1..C and 255 (ignore), as files unless a subclass makes them.

    Attributes:
        upright: turn pictures the way a viewer shows them (EXIF). The benchmarks' masks are of the pictures as stored.
    """

    upright = False
    _folds: Folds  # of a subclass

    @abstractmethod
    def image_file(self, i: int) -> str:
        """The picture's path."""

    @abstractmethod
    def label_file(self, i: int) -> str:
        """The path of the label map, or of whatever holds it."""

    def read_label(self, i: int) -> Array8:
        """The label map as stored, uint8 (H, W).

        Raises:
            DataError: see `images.read_label`.
        """
        return read_label(self.label_file(i))

    def label_files(self) -> Sequence[str]:
        return list(dict.fromkeys(self.label_file(i) for i in range(len(self))))  # one may hold many labels

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        return self._folds[fold]

    def image(self, i: int) -> Array8:
        return read_image(self.image_file(i), upright=self.upright)

    def label(self, i: int) -> Array8:
        """The class of every pixel, uint8 (H, W), of the image's size (of which only the header is read).

        Raises:
            DataError: a file is missing or unreadable, the sizes differ, or a value is no class.
        """
        image, mask, label = self.image_file(i), self.label_file(i), self.read_label(i)
        check_same_size(image, image_size(image, self.upright), mask, label.shape)
        strange = label[(label > len(self.classes)) & (label != IGNORE)]
        if strange.size:
            raise DataError(
                f"mask {mask} holds the index {strange.min()}, expected 0 to {len(self.classes)} or {IGNORE} (ignore): "
                "save it with the data set's class indices",
                defect="values",
            )
        return label

    def mask(self, i: int, class_id: int) -> Array8:
        label = self.label(i)
        return np.where(label == IGNORE, label, label == class_id).astype(np.uint8)

    def count(self, i: int) -> NDArray[np.int64]:
        counts = np.bincount(self.label(i).ravel(), minlength=IGNORE + 1)
        return counts[1 : len(self.classes) + 1].astype(np.int64)
