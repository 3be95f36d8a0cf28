"""Images and masks of data sets and of users: how they are read, and what is wrong with one in one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor, uint8

from sd_aanet.errors import ConfigError, DataError, SDAANetError

Array8 = NDArray[np.uint8]
Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A file, a Pillow image, an array: uint8 (H, W, 3) RGB or (H, W) grey, or a tensor: (3, H, W) RGB, uint8 or float in
[0, 1]."""
Mask = str | os.PathLike[str] | Image.Image | NDArray[np.integer] | NDArray[np.bool_] | Tensor
"""A file, a Pillow image, or an array or a tensor (H, W) of class indices or booleans; see `supports.foreground_of`."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder."""
_FIRST_ON_ITS_SIDE = 5
"""Of EXIF's orientations; from it on they lay the image on its side."""
_DARK = 127
_BYTES, _WORDS = ("1", "L", "P"), ("I;16", "I;16B", "I")
"""Modes of masks of class indices, of up to 8 bits and of more."""
_DEEP = {"I": "32-bit whole numbers", "F": "floating-point numbers"}
"""Modes of pictures that say nothing of their range."""
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Of files, whatever their names: of Pillow's others, some start a program, and few have been attacked so often."""
_STRIP = 2**22
"""Pixels that are converted at once."""
_MIDDLE, _UNCLEAR = (64, 191), 0.2
"""Neither dark nor light, and the share of such pixels from which on nothing was painted light on dark."""
MAX_PIXELS = "SD_AANET_MAX_PIXELS"
"""The environment's variable for the most pixels of a picture."""


def most_pixels() -> int | None:
    """The most pixels that a picture may have, so that none fills the memory: $SD_AANET_MAX_PIXELS, else Pillow's own.

    Raises:
        ConfigError: the variable is no number.
    """
    own = os.environ.get(MAX_PIXELS)
    if own:
        if not own.isdecimal() or not int(own):
            raise ConfigError(f"{MAX_PIXELS}={own}, expected a number of pixels: set it to 200000000, or unset it")
        Image.MAX_IMAGE_PIXELS = int(own)  # Pillow's own check refuses a picture before we could look at it
    return Image.MAX_IMAGE_PIXELS


def read_image(source: Picture, name: str = "the image", upright: bool = True) -> Array8:
    """An image as uint8 (H, W, 3) RGB.

    Args:
        source: a file, a Pillow image or an array.
        name: what errors call an image that is no file.
        upright: turn it the way a viewer shows it (EXIF).

    Raises:
        DataError: the file is missing, truncated, no image, too large (see `most_pixels`), or has more than 16 bits a
            channel, which have no defined range; or the array is not uint8 (H, W), (H, W, 3) or (H, W, 4), or empty.
    """
    if isinstance(source, Tensor):
        source = _of_tensor(source, name)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))):
            raise DataError(f"{name} is an array {source.dtype} {source.shape}: expected uint8 (H, W, 3), RGB")
        _check_not_empty(source.shape, name)
        return np.ascontiguousarray(source[..., :3] if source.ndim == 3 else np.stack([source] * 3, -1))
    with _opened(source, "image", name) as (file, called):
        _check_depth(file, called)
        _check_not_empty(file.size, called)
        return _pixels(_turned(file, upright))


def check_image(path: str | Path) -> None:
    """Raise what `read_image` would, as far as it shows without decoding: header, checksums, depth."""
    with _opened(path, "image") as (file, called):
        _check_depth(file, called)
        file.verify()


def read_label(path: str | Path, upright: bool = False) -> Array8:
    """A mask of class indices (a palette or grey PNG), uint8 (H, W).

    Args:
        path: of the file.
        upright: turn it the way a viewer shows it, as its picture (EXIF).

    Raises:
        DataError: the file is missing, truncated, no image, holds colours or more than 8 bits, or is a JPEG, whose
            values are not those that were saved.
    """
    with _opened(path, "mask") as (file, called):
        return np.array(_turned(_indices(file, called, _BYTES), upright), dtype=np.uint8)


def read_values(mask: Mask, name: str = "the mask") -> NDArray[np.integer] | NDArray[np.bool_]:
    """The values of a user's mask, (H, W), upright.

    Args:
        mask: a file, a Pillow image or an array.
        name: what errors call it.

    Raises:
        DataError: as `read_label`, but for 16 bits; or the array is not of integers or booleans (H, W), or empty.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            raise DataError(f"{name} is an array {mask.dtype} {mask.shape}: expected integers or booleans (H, W)")
        _check_not_empty(mask.shape, name)
        return mask
    with _opened(mask, "mask", name) as (file, _):
        if file.mode == "LA":  # a painting program's grey layer: what is transparent was not painted
            grey, alpha = np.moveaxis(np.array(_turned(file)), -1, 0)
            return np.where(alpha >= 128, grey, np.uint8(0))
        return np.array(_turned(_indices(file, name, _BYTES + _WORDS)))


def read_mask(path: str | Path) -> Array8:
    """A mask of one object, painted light on dark or as 0 and 1, in grey or in colours: uint8 (H, W) of 0 and 1.

    Raises:
        DataError: the file is missing, truncated, no image, or one that is neither dark nor light, as a photograph.
    """
    with _opened(path, "mask") as (file, called):
        _check_depth(file, called)
        if _is_reversed(file):
            file = file.convert("L")
        grey = np.array(file if file.mode in ("P", "1") else _shallow(file).convert("L"), dtype=np.uint8)
    unclear = np.mean((grey >= _MIDDLE[0]) & (grey <= _MIDDLE[1]))
    if unclear > _UNCLEAR:
        raise DataError(
            f"{called} is neither dark nor light in {unclear:.0%} of its pixels, expected the object light on dark: "
            "give its mask, not the photograph",
            defect="values",
        )
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
            f"{called_by(mask, 'mask', f'the mask of {name}')} is {mask_size[1]}x{mask_size[0]} but "
            f"{called_by(image, 'its image', f'the image of {name}')} is {image_size[1]}x{image_size[0]}, expected the "
            f"same width and height: export the mask again at the image's size{turned}",
            defect="size",
        )


def _of_tensor(picture: Tensor, name: str) -> Array8:
    """A tensor (3, H, W), as torchvision makes them, as uint8 (H, W, 3)."""
    values = picture.detach().cpu()
    fits = values.ndim == 3 and values.shape[0] == 3
    if fits and values.is_floating_point() and values.numel() and values.min() >= 0 and values.max() <= 1:
        values = (values.float() * 255).round().to(dtype=uint8)
    if not (fits and values.dtype == uint8):
        span = f" from {float(values.min()):g} to {float(values.max()):g}" if values.numel() else ""
        raise DataError(
            f"{name} is a tensor {str(picture.dtype).removeprefix('torch.')} {tuple(picture.shape)}{span}: expected "
            "(3, H, W) RGB, uint8 or float in [0, 1]"
        )
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())


def _indices(file: Image.Image, name: str, modes: Sequence[str]) -> Image.Image:
    """The same file, whose pixels are class indices."""
    if _is_reversed(file):
        raise DataError(
            f"{name} has a palette with the light colour at 0 and black at 1, as reducing colours leaves it by chance: "
            "its indices and its looks disagree: save it as 8-bit grey PNG, with 0 where nothing is",
            defect="values",
        )
    if file.mode not in modes:
        problem = f"{'more than 8 bits a pixel' if file.mode[0] in 'IF' else 'colours'} (mode {file.mode})"
    elif file.format in ("JPEG", "MPO") or file.info.get("compression") in ("jpeg", "tiff_jpeg"):
        problem = "what JPEG made of its values"
    else:
        return file
    raise DataError(
        f"{name} holds {problem}, expected one class index a pixel: save it as a palette or 8-bit grey PNG",
        defect="values",
    )


def _is_reversed(file: Image.Image) -> bool:
    """Whether a mask of two colours has the light one at 0 and black at 1, as reducing colours leaves it by chance."""
    if file.mode != "P" or file.getextrema() != (0, 1):
        return False
    colours = (file.getpalette("RGB") or [])[:6]
    return len(colours) == 6 and min(colours[:3]) > _DARK and max(colours[3:]) == 0


def _check_depth(file: Image.Image, name: str) -> None:
    if file.mode in _DEEP:  # Pillow would make white of all that is over 255
        raise DataError(
            f"{name} holds {_DEEP[file.mode]} (mode {file.mode}), which say nothing of their range, expected 8 or 16 "
            "bits a channel: convert it",
            defect="values",
        )


def _check_not_empty(shape: tuple[int, ...], name: str) -> None:
    if 0 in shape:
        raise DataError(f"{name} has no pixel (shape {shape}): give a picture and its mask, or leave it out")


def _pixels(file: Image.Image) -> Array8:
    """An image as RGB, a strip at a time: to convert, Pillow holds several whole ones."""
    rows = max(1, _STRIP // file.width)
    if rows >= file.height:
        return np.array(_shallow(file).convert("RGB"))
    pixels = np.empty((file.height, file.width, 3), np.uint8)
    for top in range(0, file.height, rows):
        strip = file.crop((0, top, file.width, min(top + rows, file.height)))
        pixels[top : top + rows] = np.asarray(_shallow(strip).convert("RGB"))
    return pixels


def _shallow(file: Image.Image) -> Image.Image:
    """The same image in 8 bits a channel: of 16 bits of grey the upper ones, as Pillow reads 16 bits of colour."""
    return Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if file.mode.startswith("I;16") else file


def _turned(file: Image.Image, upright: bool = True) -> Image.Image:
    return ImageOps.exif_transpose(file) if upright and file.getexif() else file


@contextmanager
def _opened(
    source: str | os.PathLike[str] | Image.Image, what: str, otherwise: str = ""
) -> Iterator[tuple[Image.Image, str]]:
    """An image and what errors call it; what goes wrong while it is decoded becomes one line."""
    name, bound = called_by(source, what, otherwise), most_pixels()
    try:
        if isinstance(source, Image.Image):
            yield source, name
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # a line for each damaged tag
                with Image.open(source, formats=_FORMATS) as file:
                    yield file, name
    except SDAANetError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path, or the list that names it", "missing") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} cannot be read ({str(error).partition(',')[0]}), expected at most {bound} pixels: make it "
            f"smaller, or set {MAX_PIXELS} to as many as memory holds",
            defect="unreadable",
        ) from None
    except Exception as error:  # of a damaged file it is of almost any kind, by format and by place
        problem = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            problem = "it is not an image"
        raise DataError(
            f"{name} cannot be read ({problem}), expected a whole image file ({', '.join(_FORMATS)}): replace it or "
            "leave it out",
            defect="unreadable",
        ) from error


def called_by(source: object, what: str, otherwise: str) -> str:
    """What errors call it: a file by its path."""
    return f"{what} {os.fspath(source)}" if isinstance(source, str | os.PathLike) else otherwise
