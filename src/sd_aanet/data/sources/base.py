"""What a data set has to offer: images, masks, and how many pixels of each class every image holds."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sd_aanet.errors import DataError

Array8 = NDArray[np.uint8]
Split = Literal["train", "val"]
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as a picture in a folder."""
_ORIENTATION = 0x0112
"""EXIF's tag; from 5 on its values lay the picture on its side."""
_FIRST_ON_ITS_SIDE = 5
_DARK = 127
_DEEP = "more than 8 bits a pixel"
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, by format and by place."""


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
        (a picture that was labelled and is not there) or "outline" (objects that have a box and no outline).
        """
        return ()


def read_image(path: str | Path, upright: bool = False) -> Array8:
    """Read a picture as uint8 (H, W, 3) RGB.

    Args:
        path: of the file.
        upright: turn it the way a viewer shows it (EXIF).

    Raises:
        DataError: the file is missing, truncated, no image, or has more than 8 bits a channel.
    """

    def colours(file: Image.Image) -> Image.Image:
        if _is_deep(file):  # Pillow would make white of all that is over 255
            raise DataError(
                f"image {path} holds {_DEEP} (mode {file.mode}), expected 8 a channel: convert it", defect="values"
            )
        return _turned(file, upright).convert("RGB")

    return _read(path, "image", colours)


def read_label(path: str | Path) -> Array8:
    """Read a mask of class indices (a palette or grey PNG) as uint8 (H, W).

    Raises:
        DataError: the file is missing, truncated, no image, holds colours or more than 8 bits, or is a JPEG, whose
            values are not those that were saved.
    """

    def indices(file: Image.Image) -> Image.Image:
        if file.mode not in ("P", "L", "1"):
            problem = f"{_DEEP if _is_deep(file) else 'colours'} (mode {file.mode})"
        elif file.format == "JPEG":
            problem = "what JPEG made of its values"
        else:
            return file
        raise DataError(
            f"mask {path} holds {problem}, expected one class index a pixel: save it as a palette or 8-bit grey PNG",
            defect="values",
        )

    return _read(path, "mask", indices)


def read_mask(path: str | Path) -> Array8:
    """Read a mask of one object, painted light on dark or as 0 and 1, in grey or in colours: uint8 (H, W) of 0 and 1.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    grey = _read(path, "mask", lambda file: file if file.mode in ("P", "1") else file.convert("L"))
    mask: Array8 = (grey > (_DARK if grey.max(initial=0) > 1 else 0)).astype(np.uint8)
    return mask


def image_size(path: str | Path, upright: bool = False) -> tuple[int, int]:
    """Height and width of a picture, from its header.

    Raises:
        DataError: see `read_image`.
    """
    try:
        with Image.open(path) as file:
            turned = upright and file.getexif().get(_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE
            return (file.width, file.height) if turned else (file.height, file.width)
    except _DAMAGED:
        height, width, _ = read_image(path).shape  # raises the error that says what is wrong
        return height, width


def check_same_size(
    image: str | Path, image_size: tuple[int, int], mask: str | Path, mask_size: tuple[int, ...]
) -> None:
    """Raise DataError unless an image and its mask, both given as (height, width), have one size."""
    if image_size != mask_size:
        turned = " as a viewer shows it (EXIF)" if image_size == mask_size[::-1] else ""
        raise DataError(
            f"mask {mask} is {mask_size[1]}x{mask_size[0]} but its image {image} is "
            f"{image_size[1]}x{image_size[0]}, expected the same width and height: "
            f"export the mask again at the image's size{turned}",
            defect="size",
        )


def _is_deep(file: Image.Image) -> bool:
    return file.mode[0] in "IF"


def _turned(file: Image.Image, upright: bool) -> Image.Image:
    return ImageOps.exif_transpose(file) if upright and file.getexif() else file


def _read(path: str | Path, what: str, convert: Callable[[Image.Image], Image.Image]) -> Array8:
    """Decode a file."""
    try:
        with Image.open(path) as file:
            return np.array(convert(file), dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(
            f"{what} {path} does not exist: check the data set's folder and its lists", defect="missing"
        ) from None
    except _DAMAGED as error:
        problem = "it is no image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise DataError(
            f"{what} {path} cannot be read ({problem}), expected a whole image file: replace it or take it "
            "off the list",
            defect="unreadable",
        ) from error
