"""What a data set has to offer: images, masks, and how many pixels of each class every image holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sd_aanet.errors import DataError

Array8 = NDArray[np.uint8]
Split = Literal["train", "val"]


class ImageSource(ABC):
    """One split of a labelled data set. Class ids are 1..len(classes); 0 is background.

    Attributes:
        name: what results call the data set.
        classes: the names, so that class `c` is called `classes[c - 1]`.
        split: "train" or "val".
        folds: into how many folds the classes are divided.
    """

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
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in each image: int64 (N, C), column `c - 1` for class `c`."""

    @abstractmethod
    def fold_classes(self, fold: int) -> tuple[int, ...]:
        """The novel classes of a fold, which is in range(folds); the other classes are its base classes."""


def read_image(path: Path) -> Array8:
    """Read a picture as uint8 (H, W, 3) RGB.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    return _read(path, "image", "RGB")


def read_label(path: Path) -> Array8:
    """Read a mask of class indices (a palette or grey PNG) as uint8 (H, W).

    Raises:
        DataError: the file is missing, truncated, no image, or holds colours or more than 8 bits.
    """
    return _read(path, "mask", None)


def check_same_size(image: Path, image_size: tuple[int, int], mask: Path, mask_size: tuple[int, int]) -> None:
    """Raise DataError unless an image and its mask, both given as (height, width), have one size."""
    if image_size != mask_size:
        raise DataError(
            f"mask {mask} is {mask_size[1]}x{mask_size[0]} but its image {image} is "
            f"{image_size[1]}x{image_size[0]}, expected the same width and height: "
            "export the mask again at the image's size"
        )


def _read(path: Path, what: str, mode: str | None) -> Array8:
    """Decode a file, converted to `mode`; as the indices that it holds where `mode` is None."""
    try:
        with Image.open(path) as file:
            if mode is None and file.mode not in ("P", "L", "1"):
                raise DataError(
                    f"mask {path} holds colours (mode {file.mode}), expected one class index a pixel: "
                    "save it as a palette or 8-bit grey PNG"
                )
            picture = file if mode is None else file.convert(mode)
            return np.array(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist: check the data set's folder and its lists") from None
    # Pillow reports a damaged file as OSError, SyntaxError or ValueError, by format and by place.
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{what} {path} cannot be read ({' '.join(str(error).split())}), expected a whole image file: "
            "replace it or take it off the list"
        ) from error
