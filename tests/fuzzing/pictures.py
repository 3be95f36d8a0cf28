"""Pictures and masks: files with damaged bytes, odd files that are whole, and arrays, by all that reads them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from examples import picture
from fuzzing.inputs import Input
from networks import tiny
from sd_aanet.data.transforms import Preprocess
from sd_aanet.images import check_image, image_size, read_image, read_label, read_mask, read_values
from sd_aanet.segmenting.marks import read_support
from sd_aanet.segmenting.segmenter import FewShotSegmenter
from sd_aanet.segmenting.supports import foreground_of

MODES = {
    **{"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "GIF": ("P",), "BMP": ("1", "L", "RGB")},
    **{
        "TIFF": ("1", "L", "P", "RGB", "CMYK", "LAB", "I", "I;16", "F"),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGBA",),
    },
    **{"PPM": ("1", "L", "RGB", "I;16"), "JPEG2000": ("L", "RGB"), "AVIF": ("RGB",), "MPO": ("RGB",)},
    **{"DDS": ("RGB",), "BLP": ("P",), "TGA": ("RGB",), "ICO": ("RGB",), "PCX": ("L",), "SGI": ("L",), "IM": ("L",)},
}
"""By format: those that a data set may have, and some that are not to be decoded at all."""
CLASS_IDS = (None, None, None, 1, 255, 2, 0, -1, "1", True, 1.0, float("nan"), 10**30, [1])


def make(valid: Path) -> None:
    folder = valid / "pictures"
    folder.mkdir()
    for kind, modes in MODES.items():
        for mode in modes:
            (folder / f"{kind}_{mode.replace(';', '')}").write_bytes(_saved(_drawn((30, 40), mode), kind))
    first, second = _drawn((30, 40), "P"), _drawn((30, 40), "P")
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        content = io.BytesIO()
        first.save(content, kind, save_all=True, append_images=[second])
        (folder / f"{kind}_several").write_bytes(content.getvalue())
    Image.fromarray(picture(0, 30, 40)).save(folder / "support.png")
    Image.fromarray(_values((30, 40)) % 2).save(folder / "mask.png")


def _values(shape: tuple[int, ...], classes: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, classes, (3, 4), np.uint8)
    return np.array(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.NEAREST))


def _drawn(shape: tuple[int, int], mode: str, step: int = 60) -> Image.Image:
    values = _values(shape) * np.uint8(step)
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16) * 257)
    return (
        Image.fromarray(values).convert("RGB").convert(mode) if mode == "LAB" else Image.fromarray(values).convert(mode)
    )


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def damaged(input: Input) -> None:
    """A file of any format with damaged bytes, by every reader of files."""
    some = sorted((input.valid / "pictures").iterdir())
    path = Path("mask.png") if input.whole else Path(input.chance.choice(("p.png", "p.jpg", "p", "p.tif")))
    source = input.valid / "pictures/mask.png" if input.whole else input.chance.choice(some)
    path.write_bytes(input.bytes_of(source.read_bytes()))
    _read_file(input, path)


def odd(input: Input) -> None:
    """A whole file of an odd size, mode, orientation or content."""
    kind = "PNG" if input.whole else input.chance.choice([*itertools.islice(MODES, 9)])
    mode = "L" if input.whole else input.chance.choice(MODES[kind])
    shape = (30, 40) if input.whole else tuple(input.chance.choice((1, 2, 3, 30, 40, 700)) for _ in range(2))
    step = 1 if input.whole else input.chance.choice((1, 1, 60, 85, 255))
    image = Image.fromarray(_values(shape) % 2) if input.whole else _drawn(shape, mode, step)
    if mode in ("L", "P") and input.often(0.3):
        noise = np.random.default_rng(input.chance.getrandbits(32)).integers(0, 256, shape, np.uint8)
        image = Image.fromarray(np.where(noise > input.chance.randrange(256), noise, np.asarray(image)))
    options: dict[str, Any] = {}
    if not input.whole and kind in ("PNG", "TIFF", "JPEG", "WEBP", "AVIF", "MPO"):
        exif = Image.Exif()
        exif[0x0112] = input.chance.choice((1, 3, 5, 6, 8, 0, 9, 65_535))
        options["exif"] = exif
    if kind == "PNG" and input.often(0.2):
        options["transparency"] = input.chance.choice((0, 1)) if mode in ("L", "P") else None
        options = {name: value for name, value in options.items() if value is not None}
    path = Path("mask.png")
    try:
        path.write_bytes(_saved(image, kind, **options))
    except (OSError, ValueError, TypeError):  # what Pillow cannot write is no input
        path.write_bytes(_saved(image, "TIFF"))
    _read_file(input, path)


def _read_file(input: Input, path: Path) -> None:
    readers: tuple[Callable[[Path], object], ...]
    readers = (read_image, read_label, read_mask, read_values, image_size, check_image)
    support = input.valid / "pictures/support.png"
    for reader in readers:
        input.read(reader, path)
    input.read(read_label, path, upright=True)
    input.read(read_support, support, path, None if input.whole else input.chance.choice(CLASS_IDS))
    input.read(read_support, path, path)
    try:
        opened = Image.open(path)
    except Exception:  # a user's own call
        return
    with opened:
        input.read(read_values if input.often(0.5) else read_image, opened)


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray:
    """Of any type and shape, more often of such as could be meant."""
    kinds = (np.uint8, np.uint8, np.uint8, np.bool_, np.int64, np.uint16, np.int8, np.uint64, np.float32, np.complex64)
    dtype = draw(st.one_of(st.sampled_from(kinds), hnp.scalar_dtypes()))
    side = st.sampled_from((0, 1, 2, 3, 4, 30, 40))
    shape = draw(
        st.one_of(
            st.tuples(side, side), st.tuples(side, side, st.sampled_from((0, 1, 3, 4, 5))), st.lists(side, max_size=3)
        )
    )
    fill = draw(hnp.from_dtype(np.dtype(dtype)))
    values = np.full(tuple(shape), fill, dtype)
    if values.size and values.dtype.kind in "biuf":
        values.flat[: values.size // 2] = draw(st.sampled_from((0, 1, 2, 100)))
    return draw(
        st.sampled_from((values, values[..., ::-1] if values.ndim else values, values.T, np.asfortranarray(values)))
    )


@cache
def segmenter() -> FewShotSegmenter:
    method = tiny("prototype", dtype=torch.float32)
    return FewShotSegmenter(method, Preprocess(33, "squash", method.backbone.mean, method.backbone.std), "cpu")


def arrays(input: Input) -> None:
    """Arrays of any type and shape, by whatever takes arrays, the segmenter last."""
    good, label = picture(1, 30, 40), (_values((30, 40)) > 1).astype(np.uint8)
    drawn = (lambda: label) if input.whole else lambda: input.example(_arrays())
    image, mask = (good, label) if input.whole else (drawn(), drawn())
    number = None if input.whole else input.chance.choice(CLASS_IDS)
    input.read(read_image, image)
    input.read(read_values, mask)
    input.read(read_support, image, mask, number)
    input.read(read_support, good, mask, number)
    if mask.ndim == 2 and mask.size and mask.dtype.kind in "biu":
        input.read(foreground_of, mask, number)
    if input.often(0.3) or input.whole:
        model = segmenter()
        pairs = input.tree(
            [(good, label)], lambda old: input.chance.choice([image, mask, Image.fromarray(good), "x", (good, mask)])
        )
        batch = 4 if input.whole else input.chance.choice((1, 4, 4, 0, -1, 1.5, None, True))
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            input.read(model.remember, pairs, number, batch)
        input.read(lambda: model.remember([(good, label)]))
        input.read(lambda: [*model.segment_all([image, good], batch)])


KINDS = {"pictures, bytes": (1200, damaged), "pictures, odd": (500, odd), "arrays": (700, arrays)}
