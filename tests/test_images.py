"""Images and masks in whatever form they come: what they mean, and one clear line for those that cannot be read."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import mask, picture, refused
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import (
    Array8,
    check_image,
    check_same_size,
    foreground_of,
    image_size,
    read_image,
    read_label,
    read_mask,
    read_support,
)

ORIENTATION = 0x0112


# Files of data sets


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
    assert read_image(path, upright=False).shape == (32, 48, 3)
    assert image_size(path, upright=False) == (32, 48)
    turned = read_image(path)
    assert turned.shape[:2] == image_size(path) == ((48, 32) if orientation > 4 else (32, 48))
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
    with refused(DataError, "the query holds more than 8 bits a pixel (mode I;16)"):
        read_image(Image.open(tmp_path / "a.png"), "the query")


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, read_label, read_mask, image_size, check_image):
        with pytest.raises(DataError, match=r"a\.png cannot be read .*exceeds limit") as raised:
            read(tmp_path / "a.png")
        assert raised.value.defect == "unreadable"


def problem(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
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
        for read in (read_image, image_size, check_image):
            message = problem(read, path)
            assert message is None or ("\n" not in message and str(path) in message)


def test_sizes_that_differ_and_those_that_are_only_turned() -> None:
    check_same_size("a.jpg", (3, 4), "a.png", (3, 4))
    line = r"^mask a\.png is 5x3 but its image a\.jpg is 4x3, expected the same width and height: .* the image's size$"
    with pytest.raises(DataError, match=line):
        check_same_size("a.jpg", (3, 4), "a.png", (3, 5))
    with pytest.raises(DataError, match=r"at the image's size as a viewer shows it \(EXIF\)$"):
        check_same_size("a.jpg", (3, 4), "a.png", (4, 3))


# Supports and queries of a user


def test_files_pictures_and_arrays_mean_the_same(tmp_path: Path) -> None:
    image, drawn = picture(0), mask()
    Image.fromarray(image).save(tmp_path / "image.png")
    palette = Image.fromarray(drawn, mode="P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(drawn * 255).save(tmp_path / "painted.png")
    Image.fromarray(drawn.astype(bool)).save(tmp_path / "bits.png")
    Image.fromarray(drawn.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    Image.merge("LA", [Image.new("L", (90, 60), 255), Image.fromarray(drawn * 255)]).save(tmp_path / "layer.png")
    masks = [tmp_path / f"{name}.png" for name in ("palette", "painted", "bits", "deep", "layer")]
    masks += [str(masks[0]), palette, Image.fromarray(drawn), drawn, drawn.astype(bool), drawn.astype(np.int64) * 7]
    for source in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image), image):
        for meaning in masks:
            read, values = read_support(source, meaning)
            np.testing.assert_array_equal(read, image)
            np.testing.assert_array_equal(values, drawn)


def test_photographs_are_turned_as_a_viewer_turns_them(tmp_path: Path) -> None:
    shown = picture(0, 60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by 90 degrees clockwise
    stored = Image.fromarray(np.rot90(shown).copy())
    stored.save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), shown)
    with Image.open(tmp_path / "phone.png") as opened:
        np.testing.assert_array_equal(read_image(opened), shown)
    read_support(tmp_path / "phone.png", mask(60, 90))


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (8, 9, 4)])
def test_arrays_may_be_grey_or_have_an_alpha_channel(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert read_image(values).shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("present", "class_id", "meaning"),
    [
        ((0, 1), None, (0, 1)),
        ((0, 1, 255), None, (0, 1, 255)),
        ((0, 255), None, (0, 1)),
        ((0, 15), None, (0, 1)),
        ((0, 15, 255), None, (0, 1, 255)),
        ((3,), None, (1,)),
        ((1, 255), None, (1, 255)),
        ((0, 1, 15, 255), 15, (0, 0, 1, 255)),
        ((0, 1, 15, 255), 1, (0, 1, 0, 255)),
        ((0, 1, 255), 255, (0, 0, 1)),
        ((0, 26001), None, (0, 1)),
    ],
)
def test_which_value_is_the_object(present: tuple[int, ...], class_id: int | None, meaning: tuple[int, ...]) -> None:
    found = foreground_of(np.array([present]), class_id)
    assert found.dtype == np.uint8
    assert tuple(found[0].tolist()) == meaning


@pytest.mark.parametrize(
    ("present", "class_id", "words"),
    [
        ((0, 0), None, ("no foreground", "only 0")),
        ((255, 255), None, ("no foreground", "only 255")),
        ((0, 1), 7, ("no foreground of class_id=7", "only 0, 1")),
        ((0, 3, 7, 255), None, ("2 classes", "3, 7", "class_id")),
        (tuple(range(200)), None, ("199 classes", "... 199", "JPEG")),
    ],
)
def test_masks_without_one_object(present: tuple[int, ...], class_id: int | None, words: tuple[str, ...]) -> None:
    with refused(DataError, "'m.png'", *words):
        foreground_of(np.array([present]), class_id, "'m.png'")


def test_background_is_no_class() -> None:
    with refused(ConfigError, "class_id=0"):
        foreground_of(np.array([[0, 1]]), 0)


def test_pictures_and_masks_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture(0)).save(tmp_path / "whole.jpg")
    Image.fromarray(picture(0)[..., 0]).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:900])
    Image.fromarray(mask()).convert("RGB").save(tmp_path / "colours.png")
    Image.fromarray(mask(30, 40)).save(tmp_path / "small.png")
    Image.fromarray(mask() * 255).save(tmp_path / "drawn.jpg")
    good = picture(0)
    for name, words in {
        "absent.png": ["does not exist"],
        "text.png": ["cannot be read"],
        "half.png": ["cannot be read", "replace it"],
    }.items():
        with refused(DataError, name, *words):
            read_image(tmp_path / name)
        with refused(DataError, name, *words):
            read_support(good, tmp_path / name)
    with refused(DataError, str(tmp_path), "cannot be read"):
        read_image(tmp_path)
    with refused(DataError, "colours.png", "holds colours (mode RGB)", "palette or 8-bit grey"):
        read_support(good, tmp_path / "colours.png")
    for jpeg in (tmp_path / "drawn.jpg", Image.open(tmp_path / "drawn.jpg")):
        with refused(DataError, "what JPEG made of its values", "PNG"):
            read_support(good, jpeg)
    with refused(DataError, "small.png", "40x30", "90x60", "whole.jpg"):
        read_support(tmp_path / "whole.jpg", tmp_path / "small.png")
    with refused(DataError, "query", "float64", "uint8"):
        read_image(np.zeros((8, 8, 3)), "query")  # type: ignore[arg-type]
    with refused(DataError, "support 2", "(60, 90, 3)"):
        read_support(good, good, name="support 2")
