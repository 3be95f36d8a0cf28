"""What a data set has to offer: images, masks, and how many pixels of each class every image holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from sd_aanet.errors import DataError
from sd_aanet.images import Array8
from sd_aanet.rules import Rule

Split = Literal["train", "val"]


class ImageSource(ABC):
    """One split of a labelled data set. Class ids are 1..len(classes); 0 is background.

    Attributes:
        name: what results call the data set.
        classes: the names, so that class `c` is called `classes[c - 1]`.
        split: "train" or "val".
        folds: into how many folds the classes are divided.
        rules: of the data set's own settings, the arguments beside `split`.
        dividing: those of them that say which classes make a fold, and which images a split.
    """

    rules: ClassVar[Mapping[str, Rule]] = {}
    dividing: ClassVar[tuple[str, ...]] = ()

    name: str
    classes: tuple[str, ...]
    split: Split
    folds: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def key(self, i: int) -> str:
        """The name of image `i`, unique in the data set."""

    @abstractmethod
    def image(self, i: int) -> Array8:
        """Image `i`, uint8 (H, W, 3) RGB.

        Raises:
            DataError: the file is missing or unreadable.
        """

    @abstractmethod
    def mask(self, i: int, class_id: int) -> Array8:
        """Where image `i` shows the class: uint8 (H, W), 1 = class, 0 = other, 255 = ignore.

        Raises:
            DataError: the file is missing, unreadable, in colour, or of another size than its image.
        """

    @abstractmethod
    def count(self, i: int) -> NDArray[np.int64]:
        """Pixels of each class in image `i`: int64 (C,), place `c - 1` for class `c`.

        Raises:
            DataError: as `mask`, or the mask holds what is no class; its `defect` says which.
        """

    def pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in each image: int64 (N, C)."""
        return np.stack([self.count(i) for i in range(len(self))])

    @abstractmethod
    def fold_classes(self, fold: int) -> tuple[int, ...]:
        """The novel classes of a fold, which is in range(folds); the other classes are its base classes."""

    def val_classes(self, fold: int) -> tuple[int, ...] | None:
        """The base classes that the benchmark itself holds out of training for validation; None where it names none."""
        return None

    def strays(self) -> Sequence[DataError]:
        """What is wrong outside of the images, as errors that are not raised.

        The `defect` of each is "stray" (a file that belongs to no image, such as a mask without a picture), "missing"
        (a picture that was labelled and is not there), "outline" (objects that have a box and no outline) or
        "covered" (objects outlined twice, as different classes).
        """
        return ()
