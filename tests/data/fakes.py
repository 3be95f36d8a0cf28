"""What the fakes of data sets share: pictures that show their masks, and ways to spoil a picture and its mask.

`cd tests; python -m data.fake_folder FOLDER "truncated mask" colours` writes one of them, its first pictures spoilt so.
"""

import argparse
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array8 = NDArray[np.uint8]
Pair = tuple[Path, Path]
"""A picture and its mask."""


def picture_of(label: Array8, key: str) -> Array8:
    """A picture that is red where a label map shows a class, blue elsewhere; a patch tells it from all others."""
    shown = ((label > 0) & (label < 255)).astype(np.uint8) * 255
    picture = np.stack([shown, np.full_like(shown, 90), 255 - shown], axis=-1)
    for place, value in enumerate(zlib.crc32(key.encode()).to_bytes(4, "big")):
        picture[-8:, 8 * place : 8 * place + 8, 1] = value
    return picture


def write_picture(path: Path, picture: Array8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=95, subsampling=0)


def write_mask(path: Path, label: Array8) -> None:
    """Write a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(label).convert("P")
    mask.putpalette([*range(256)] * 3)
    mask.putdata(label.ravel().tolist())
    mask.save(path)


def cut(path: Path) -> None:
    """Leave the first half of a file: its header is whole."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _resized(path: Path) -> None:
    Image.new("L", (60, 50)).save(path)


def _converted(mask: Path, mode: str) -> None:
    with Image.open(mask) as file:
        converted = file.convert(mode)
    converted.save(mask)


def _deep(mask: Path) -> None:
    with Image.open(mask) as file:
        values = np.array(file, np.uint16)
    Image.fromarray(values * 200).save(mask)


def _filled(mask: Path, value: int) -> None:
    with Image.open(mask) as file:
        size = file.size
    Image.new("L", size, value).save(mask)


def _overwritten(path: Path) -> None:
    path.write_bytes(b"no picture")


SPOIL: dict[str, Callable[[Path, Path], None]] = {
    "missing picture": lambda picture, mask: picture.unlink(),
    "missing mask": lambda picture, mask: mask.unlink(),
    "no picture": lambda picture, mask: _overwritten(picture),
    "no mask": lambda picture, mask: _overwritten(mask),
    "truncated picture": lambda picture, mask: cut(picture),
    "truncated mask": lambda picture, mask: cut(mask),
    "size": lambda picture, mask: _resized(mask),
    "resized": lambda picture, mask: _resized(picture),
    "unknown class": lambda picture, mask: _filled(mask, 77),
    "colours": lambda picture, mask: _converted(mask, "RGB"),
    "alpha": lambda picture, mask: _converted(mask, "RGBA"),
    "deep": lambda picture, mask: _deep(mask),
    "ignored": lambda picture, mask: _filled(mask, 255),
    "empty": lambda picture, mask: _filled(mask, 0),
}
"""Ways to spoil a pair."""


def spoil(pairs: Iterable[Pair], *kinds: str) -> dict[str, Pair]:
    """Spoil as many of the pairs, each in one way.

    Returns:
        {way: the pair}.
    """
    spoilt = dict(zip(kinds, pairs, strict=False))
    for kind, pair in spoilt.items():
        SPOIL[kind](*pair)
    return spoilt


def main(make: Callable[[Path], Path], pairs: Callable[[Path], Iterable[Pair]]) -> None:
    """The command of a fake."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("spoil", nargs="*", choices=[*SPOIL, []])
    given = parser.parse_args()
    spoil(pairs(make(given.folder)), *given.spoil)
