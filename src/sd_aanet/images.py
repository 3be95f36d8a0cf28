"""What a user's own pictures and masks are, as files, Pillow images or arrays, and what they mean."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sd_aanet.data.sources.base import Array8
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, a Pillow image, or an array: uint8 (H, W, 3) RGB or (H, W) grey."""
Mask = str | os.PathLike[str] | Image.Image | NDArray[np.integer] | NDArray[np.bool_]
"""A file, a Pillow image, or an array (H, W) of class indices or booleans; see `foreground_of`."""

_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_SHOWN = 8


def read_picture(picture: Picture, name: str = "image") -> Array8:
    """A picture as uint8 (H, W, 3) RGB, turned the way a viewer shows it (EXIF).

    Args:
        picture: a file, a Pillow image or an array.
        name: what errors call a picture that is no file.

    Raises:
        DataError: the file is missing or unreadable, or the array is not uint8 (H, W), (H, W, 3) or (H, W, 4).
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
            raise DataError(f"{name} is an array {picture.dtype} {picture.shape}: expected uint8 (H, W, 3), RGB")
        return np.ascontiguousarray(picture[..., :3] if picture.ndim == 3 else np.stack([picture] * 3, -1))
    return np.array(_decode(picture, name).convert("RGB"))


def read_support(
    image: Picture, mask: Mask, class_id: int | None = None, name: str = "support"
) -> tuple[Array8, Array8]:
    """An example as the network will understand it.

    Returns:
        The picture, uint8 (H, W, 3), and its mask, uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: as `FewShotSegmenter.remember`.
    """
    pixels = read_picture(image, f"the image of {name}")
    mask_name = _name(mask, f"the mask of {name}")
    values = _indices(mask, mask_name)
    if values.shape != pixels.shape[:2]:
        (height, width), (image_height, image_width) = values.shape, pixels.shape[:2]
        raise DataError(
            f"{mask_name} is {width}x{height} but {_name(image, f'the image of {name}')} is "
            f"{image_width}x{image_height} as a viewer shows it: save the mask at its picture's size"
        )
    return pixels, foreground_of(values, class_id, mask_name)


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


def _indices(mask: Mask, name: str) -> NDArray[np.integer] | NDArray[np.bool_]:
    """The values of a mask, (H, W)."""
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            raise DataError(f"{name} is an array {mask.dtype} {mask.shape}: expected integers or booleans (H, W)")
        return mask
    picture = _decode(mask, name)
    if picture.mode == "LA":  # a painting program's grey layer: what is transparent was not painted
        grey, alpha = np.moveaxis(np.array(picture), -1, 0)
        return np.where(alpha >= 128, grey, np.uint8(0))
    if picture.mode not in _INDEX_MODES:
        raise DataError(
            f"{name} holds colours (mode {picture.mode}), expected one class index a pixel: "
            "save it as a palette or grey PNG"
        )
    return np.array(picture)


def _decode(source: str | os.PathLike[str] | Image.Image, name: str) -> Image.Image:
    """A whole image in memory, turned the way a viewer shows it."""
    name = _name(source, name)
    try:
        with Image.open(source) if not isinstance(source, Image.Image) else source.copy() as file:
            return ImageOps.exif_transpose(file) if file.getexif() else file.copy()
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path") from None
    # Pillow reports a damaged file as OSError, SyntaxError or ValueError, by format and by place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{name} cannot be read ({line}): expected a whole image file") from None


def _name(source: object, otherwise: str) -> str:
    return f"'{os.fspath(source)}'" if isinstance(source, str | os.PathLike) else otherwise


def _listed(values: list[int]) -> str:
    more = f", ... {values[-1]}" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
