"""Reading pictures and masks: what people have, and what is wrong with it in one line."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.fakes import Array8
from sd_aanet.data.sources.base import check_same_size, image_size, read_image, read_label, read_mask
from sd_aanet.errors import DataError

ORIENTATION = 0x0112


@pytest.fixture
def label() -> Array8:
    return np.random.default_rng(0).integers(0, 4, (30, 40), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_indices_are_read_as_they_are(suffix: str, mode: str, label: Array8, tmp_path: Path) -> None:
    file = Image.fromarray(label)
    if mode == "P":
        file = Image.frombytes("P", file.size, label.tobytes())
        file.putpalette([value * 60 % 256 for value in range(256) for _ in range(3)])
    file.save(tmp_path / f"mask.{suffix}")
    assert np.array_equal(read_label(tmp_path / f"mask.{suffix}"), label)


def test_masks_of_one_bit_are_read_as_0_and_1(label: Array8, tmp_path: Path) -> None:
    Image.fromarray(label > 1).save(tmp_path / "mask.png")
    assert np.array_equal(read_label(tmp_path / "mask.png"), label > 1)


@pytest.mark.parametrize(
    ("mode", "name", "problem"),
    [
        ("RGB", "a.png", r"colours \(mode RGB\)"),
        ("RGBA", "a.png", r"colours \(mode RGBA\)"),
        ("LA", "a.png", r"colours \(mode LA\)"),
        ("I;16", "a.png", r"more than 8 bits a pixel \(mode I;16\)"),
        ("F", "a.tif", r"more than 8 bits a pixel \(mode F\)"),
        ("L", "a.jpg", "what JPEG made of its values"),
    ],
)
def test_masks_without_indices_are_named(mode: str, name: str, problem: str, label: Array8, tmp_path: Path) -> None:
    Image.fromarray(label).convert(mode).save(tmp_path / name)
    with pytest.raises(
        DataError, match=rf"{name} holds {problem}, expected one class index.*8-bit grey PNG$"
    ) as raised:
        read_label(tmp_path / name)
    assert raised.value.defect == "values"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
@pytest.mark.parametrize("light", [1, 255])
def test_masks_of_one_object_may_be_painted_in_any_mode(mode: str, light: int, label: Array8, tmp_path: Path) -> None:
    painted = np.where(label > 1, light, 0).astype(np.uint8)
    Image.fromarray(painted).convert(mode).save(tmp_path / "mask.png")
    if (mode, light) != ("1", 1):  # Pillow's own threshold is at 128
        assert np.array_equal(read_mask(tmp_path / "mask.png"), label > 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_a_viewer_shows_them_where_asked(orientation: int, tmp_path: Path) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16, 0] = 255  # red, at the top left
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.JPG"
    Image.fromarray(stored).save(path, "JPEG", exif=exif, quality=95, subsampling=0)
    assert read_image(path).shape == (32, 48, 3)
    assert image_size(path) == (32, 48)
    turned = read_image(path, upright=True)
    assert turned.shape[:2] == image_size(path, upright=True) == ((48, 32) if orientation > 4 else (32, 48))
    y, x = np.argwhere(turned[..., 0] > 200).mean(axis=0) / turned.shape[:2] > 0.5
    # Where the camera's top left corner comes to be, as the EXIF standard has it: (bottom, right).
    corners = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    assert (y, x) == corners[orientation]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_pictures_of_any_mode_become_rgb(mode: str, label: Array8, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(label * 80).convert(mode).save(path)
    assert read_image(path).shape == (30, 40, 3)


def test_pictures_of_more_than_8_bits_are_named_and_not_made_white(label: Array8, tmp_path: Path) -> None:
    Image.fromarray(label.astype(np.uint16) * 9000).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"image .*a\.png holds more than 8 bits a pixel \(mode I;16\), expected 8"):
        read_image(tmp_path / "a.png")


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, read_label, read_mask, image_size):
        with pytest.raises(DataError, match=r"a\.png cannot be read .*exceeds limit") as raised:
            read(tmp_path / "a.png")
        assert raised.value.defect == "unreadable"


def problem(read: Callable[[Path, bool], object], path: Path) -> str | None:
    try:
        read(path, True)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, on what it found
def test_damaged_files_are_named_whatever_the_damage(suffix: str, label: Array8, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    Image.fromarray(label * 80).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), exif=exif)
    draws = random.Random(0)
    path = tmp_path / f"a.{suffix}"
    for _ in range(150):
        damaged = bytearray(buffer.getvalue())
        for _ in range(3):
            damaged[draws.randrange(min(len(damaged), 400))] = draws.randrange(256)
        path.write_bytes(damaged[: draws.randrange(len(damaged))] if draws.random() < 0.3 else damaged)
        for read in (read_image, image_size):
            message = problem(read, path)
            assert message is None or ("\n" not in message and str(path) in message)


def test_sizes_that_differ_and_those_that_are_only_turned() -> None:
    check_same_size("a.jpg", (3, 4), "a.png", (3, 4))
    line = r"^mask a\.png is 5x3 but its image a\.jpg is 4x3, expected the same width and height: .* the image's size$"
    with pytest.raises(DataError, match=line):
        check_same_size("a.jpg", (3, 4), "a.png", (3, 5))
    with pytest.raises(DataError, match=r"at the image's size as a viewer shows it \(EXIF\)$"):
        check_same_size("a.jpg", (3, 4), "a.png", (4, 3))
