"""Images and masks of data sets and of users: how they are read, and what is wrong with one in one line."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError

Array8 = NDArray[np.uint8]
Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, a Pillow image, or an array: uint8 (H, W, 3) RGB or (H, W) grey."""
Mask = str | os.PathLike[str] | Image.Image | NDArray[np.integer] | NDArray[np.bool_]
"""A file, a Pillow image, or an array (H, W) of class indices or booleans; see `foreground_of`."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder."""
_FIRST_ON_ITS_SIDE = 5
"""Of EXIF's orientations; from it on they lay the image on its side."""
_DARK = 127
_SHOWN = 8
_BYTES, _WORDS = ("1", "L", "P"), ("I;16", "I;16B", "I")
"""Modes of masks of class indices, of up to 8 bits and of more."""
_DEEP = "more than 8 bits a pixel"
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, by format and by place."""


def read_image(source: Picture, name: str = "the image", upright: bool = True) -> Array8:
    """An image as uint8 (H, W, 3) RGB.

    Args:
        source: a file, a Pillow image or an array.
        name: what errors call an image that is no file.
        upright: turn it the way a viewer shows it (EXIF).

    Raises:
        DataError: the file is missing, truncated, no image, or has more than 8 bits a channel; or the array is not
            uint8 (H, W), (H, W, 3) or (H, W, 4).
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))):
            raise DataError(f"{name} is an array {source.dtype} {source.shape}: expected uint8 (H, W, 3), RGB")
        return np.ascontiguousarray(source[..., :3] if source.ndim == 3 else np.stack([source] * 3, -1))
    with _opened(source, "image", name) as (file, called):
        _check_depth(file, called)
        return np.array(_turned(file, upright).convert("RGB"))


def check_image(path: str | Path) -> None:
    """Raise what `read_image` would, as far as it shows without decoding: header, checksums, depth."""
    with _opened(path, "image") as (file, called):
        _check_depth(file, called)
        file.verify()


def read_label(path: str | Path) -> Array8:
    """A mask of class indices (a palette or grey PNG) as stored, uint8 (H, W).

    Raises:
        DataError: the file is missing, truncated, no image, holds colours or more than 8 bits, or is a JPEG, whose
            values are not those that were saved.
    """
    with _opened(path, "mask") as (file, called):
        return np.array(_indices(file, called, _BYTES), dtype=np.uint8)


def read_mask(path: str | Path) -> Array8:
    """A mask of one object, painted light on dark or as 0 and 1, in grey or in colours: uint8 (H, W) of 0 and 1.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    with _opened(path, "mask") as (file, _):
        grey = np.array(file if file.mode in ("P", "1") else file.convert("L"), dtype=np.uint8)
    return (grey > (_DARK if grey.max(initial=0) > 1 else 0)).astype(np.uint8)


def image_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        DataError: see `read_image`.
    """
    with _opened(path, "image") as (file, _):
        turned = upright and file.getexif().get(ExifTags.Base.Orientation, 1) >= _FIRST_ON_ITS_SIDE
        return (file.width, file.height) if turned else (file.height, file.width)


def check_same_size(
    image: object, image_size: tuple[int, ...], mask: object, mask_size: tuple[int, ...], name: str = "support"
) -> None:
    """Raise DataError unless an image and its mask have one size.

    Args:
        image, mask: where they come from.
        image_size, mask_size: (height, width).
        name: what errors call a pair that is not of files.
    """
    if image_size != mask_size:
        turned = " as a viewer shows it (EXIF)" if image_size == mask_size[::-1] else ""
        raise DataError(
            f"{_called(mask, 'mask', f'the mask of {name}')} is {mask_size[1]}x{mask_size[0]} but "
            f"{_called(image, 'its image', f'the image of {name}')} is {image_size[1]}x{image_size[0]}, expected the "
            f"same width and height: export the mask again at the image's size{turned}",
            defect="size",
        )


def read_support(
    image: Picture, mask: Mask, class_id: int | None = None, name: str = "support"
) -> tuple[Array8, Array8]:
    """An example as the network will understand it, upright.

    Returns:
        The image, uint8 (H, W, 3), and its mask, uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: as `FewShotSegmenter.remember`.
    """
    pixels = read_image(image, f"the image of {name}")
    called = _called(mask, "mask", f"the mask of {name}")
    values = _values(mask, called)
    check_same_size(image, pixels.shape[:2], mask, values.shape, name)
    return pixels, foreground_of(values, class_id, called)


def foreground_of(
    values: NDArray[np.integer] | NDArray[np.bool_], class_id: int | None = None, name: str = "the mask"
) -> Array8:
    """What a mask means: which of its values is the object.

    With `class_id`: that value is the object, and 255 is ignored unless it is the class. Without: True is; or 1 is,
    beside 0 and 255 (ignored); or 255 is where there is nothing but 0 beside it, as painting programs write it; or
    the only value beside 0 and 255 is.

    Args:
        values: (H, W) integers or booleans.
        class_id: the object's value, from 1.
        name: what errors call the mask.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: no foreground, or several values and no `class_id` to choose among them.
        ConfigError: `class_id` is under 1.
    """
    if class_id is not None and class_id < 1:
        raise ConfigError(f"class_id={class_id}, expected a mask's value from 1 on: 0 is the background")
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    present = np.unique(values).tolist()
    candidates = [value for value in present if value not in (0, IGNORE)]
    if class_id is not None:
        chosen = class_id
    elif len(candidates) > 1:
        raise DataError(
            f"{name} holds {len(candidates)} classes ({_listed(candidates)}), expected one: choose it with "
            "class_id=..., or, if it was painted, save it as PNG with hard edges (no JPEG, no smoothing)"
        )
    else:
        chosen = candidates[0] if candidates else IGNORE
    if chosen not in present or present == [IGNORE]:
        wanted = "" if class_id is None else f" of class_id={class_id}"
        raise DataError(
            f"{name} shows no foreground{wanted}, only {_listed(present)}: mark the object in it, or leave it out"
        )
    meaning = np.where(values == IGNORE, IGNORE, 0).astype(np.uint8)
    meaning[values == chosen] = 1
    return meaning


def _values(mask: Mask, name: str) -> NDArray[np.integer] | NDArray[np.bool_]:
    """The values of a user's mask, (H, W), upright."""
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            raise DataError(f"{name} is an array {mask.dtype} {mask.shape}: expected integers or booleans (H, W)")
        return mask
    with _opened(mask, "mask", name) as (file, _):
        if file.mode == "LA":  # a painting program's grey layer: what is transparent was not painted
            grey, alpha = np.moveaxis(np.array(_turned(file)), -1, 0)
            return np.where(alpha >= 128, grey, np.uint8(0))
        return np.array(_turned(_indices(file, name, _BYTES + _WORDS)))


def _indices(file: Image.Image, name: str, modes: Sequence[str]) -> Image.Image:
    """The same file, whose pixels are class indices."""
    if file.mode not in modes:
        problem = f"{_DEEP if _is_deep(file) else 'colours'} (mode {file.mode})"
    elif file.format == "JPEG":
        problem = "what JPEG made of its values"
    else:
        return file
    raise DataError(
        f"{name} holds {problem}, expected one class index a pixel: save it as a palette or 8-bit grey PNG",
        defect="values",
    )


def _check_depth(file: Image.Image, name: str) -> None:
    if _is_deep(file):  # Pillow would make white of all that is over 255
        raise DataError(f"{name} holds {_DEEP} (mode {file.mode}), expected 8 a channel: convert it", defect="values")


def _is_deep(file: Image.Image) -> bool:
    return file.mode[0] in "IF"


def _turned(file: Image.Image, upright: bool = True) -> Image.Image:
    return ImageOps.exif_transpose(file) if upright and file.getexif() else file


@contextmanager
def _opened(
    source: str | os.PathLike[str] | Image.Image, what: str, otherwise: str = ""
) -> Iterator[tuple[Image.Image, str]]:
    """An image and what errors call it; what goes wrong while it is decoded becomes one line."""
    name = _called(source, what, otherwise)
    try:
        if isinstance(source, Image.Image):
            yield source, name
        else:
            with Image.open(source) as file:
                yield file, name
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path, or the list that names it", "missing") from None
    except _DAMAGED as error:
        problem = "it is not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise DataError(
            f"{name} cannot be read ({problem}), expected a whole image file: replace it or leave it out",
            defect="unreadable",
        ) from error


def _called(source: object, what: str, otherwise: str) -> str:
    return f"{what} {os.fspath(source)}" if isinstance(source, str | os.PathLike) else otherwise


def _listed(values: list[int]) -> str:
    more = f", ... {values[-1]}" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
