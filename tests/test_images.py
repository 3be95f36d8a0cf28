"""Images and masks in whatever form they come: what they mean, and one clear line for those that cannot be read."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from examples import mask, picture, refused
from sd_aanet import images
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import (
    Array8,
    check_image,
    check_same_size,
    image_size,
    read_image,
    read_label,
    read_mask,
)
from sd_aanet.segmenting.marks import read_support
from sd_aanet.segmenting.supports import foreground_of

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


@pytest.mark.parametrize("light", ["object", "background"])
def test_masks_whose_palette_has_the_light_colour_first_are_no_indices(light: str, tmp_path: Path) -> None:
    """As reducing a painted mask to two colours leaves it by chance: the background was taken for the object."""
    shown = np.zeros((30, 40), bool)
    shown[5:15, 5:20] = True
    colours = np.where(shown == (light == "object"), 255, 0).astype(np.uint8)
    reduced = Image.fromarray(np.stack([colours] * 3, -1)).quantize(2)
    assert (reduced.getpalette() or [])[:6] == [255, 255, 255, 0, 0, 0]
    reduced.save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    for read in (read_label, lambda path: read_support(tmp_path / "a.png", path)):
        with pytest.raises(DataError, match=r"mask\.png has a palette with the light colour at 0"):
            read(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), colours > 0), "which is said to be light on dark"


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


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_are_scaled_by_their_range_whoever_reads_them(suffix: str, order: str, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((grey.astype(np.uint16) * 257).astype(order)).save(path)
    expected = np.stack([grey] * 3, -1)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I;16")
        np.testing.assert_array_equal(read_image(opened), expected)
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, upright=False), expected)
    Image.fromarray((grey > 99).astype(np.uint16) * 65535).save(path)
    np.testing.assert_array_equal(read_mask(path), grey > 99)


@pytest.mark.parametrize(("kind", "words"), [(np.int32, "32-bit whole numbers"), (np.float32, "floating-point")])
def test_numbers_without_a_range_are_named_and_not_made_white_or_black(
    kind: type, words: str, label: Array8, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(label.astype(kind)).save(path)
    for read in (read_image, check_image, read_mask):
        with refused(DataError, f"{path} holds {words}", "say nothing of their range, expected 8 or 16 bits a channel"):
            read(path)
    with Image.open(path) as opened, refused(DataError, f"the query holds {words}"):
        read_image(opened, "the query")


def test_a_large_picture_is_the_same_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    deep = (values[..., 0].astype(np.uint16) * 257, np.stack([values[..., 0]] * 3, -1))
    for number, (stored, expected) in enumerate([(values, values), (values[..., 0], deep[1]), deep]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(stored).save(path)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_STRIP", 100)
            np.testing.assert_array_equal(read_image(path), expected)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_STRIP", 100)
        np.testing.assert_array_equal(foreground_of(mask(value=7)), mask())


def test_a_picture_that_would_fill_the_memory_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in (40, 60):  # Pillow warns, and refuses only what is twice as large
        Image.new("L", (side, 50)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
        for read in (read_image, read_label, read_mask, image_size, check_image):
            with pytest.raises(
                DataError,
                match=r"a\.png cannot be read .*exceeds limit.*at most 1500 pixels.*set SD_AANET_MAX_PIXELS to",
            ) as raised:
                read(tmp_path / "a.png")
            assert raised.value.defect == "unreadable"
            assert "\n" not in str(raised.value)


def test_how_many_pixels_are_read_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    Image.new("L", (60, 60)).save(tmp_path / "a.png")
    monkeypatch.setenv("SD_AANET_MAX_PIXELS", "3600")
    assert read_image(tmp_path / "a.png").shape == (60, 60, 3)
    monkeypatch.setenv("SD_AANET_MAX_PIXELS", "many")
    with refused(ConfigError, "SD_AANET_MAX_PIXELS=many, expected a number of pixels"):
        read_image(tmp_path / "a.png")


def problem(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "avif", "tif", "gif", "jp2", "dds", "blp"])
def test_damaged_files_are_named_whatever_the_damage(
    suffix: str, label: Array8, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    kind = {"jpg": "jpeg", "jp2": "jpeg2000", "tif": "tiff"}.get(suffix, suffix)
    stored = Image.fromarray(label * 80).convert("P" if suffix == "blp" else "RGB" if suffix == "dds" else "L")
    stored.save(buffer, kind, exif=exif)
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
    assert not recwarn.list  # Pillow has one for each tag


def test_what_may_start_a_program_is_no_picture(label: Array8, tmp_path: Path) -> None:
    for kind in ("EPS", "DDS", "XBM"):
        Image.fromarray(label).convert({"XBM": "1", "EPS": "L", "DDS": "RGB"}[kind]).save(tmp_path / "a.png", kind)
        for read in (read_image, read_label, read_mask, image_size, check_image):
            with refused(
                DataError, "a.png cannot be read (it is not an image), expected a whole image file (JPEG, PNG"
            ):
                read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "YCbCr", "RGBX", "I;16B", "F"])
def test_pictures_of_any_mode_are_read_or_named(mode: str) -> None:
    for read in (read_image, lambda picture: read_support(np.zeros((8, 9, 3), np.uint8), picture)):
        message = None
        try:
            read(Image.new(mode, (9, 8)))
        except DataError as error:
            message = str(error)
        assert message is None or ("\n" not in message and ("the image" in message or "the mask of support" in message))


@pytest.mark.parametrize("shape", [(0, 9), (8, 0, 3), (0, 0, 3)])
def test_what_has_no_pixel_is_named(shape: tuple[int, ...]) -> None:
    with refused(DataError, "the image has no pixel"):
        read_image(np.zeros(shape, np.uint8))
    with refused(DataError, "the mask of support has no pixel"):
        read_support(picture(0), np.zeros(shape[:2], np.uint8))
    with refused(DataError, "the image has no pixel"):
        read_image(Image.new("RGB", (0, 7)))


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    for read in (read_image, read_label, read_mask, image_size, check_image):
        with refused(DataError, "cannot be read (embedded null byte)"):
            read("a\0.png")


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_what_jpeg_made_of_a_mask_is_no_mask_whatever_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(mask() * 255).save(path, kind, compression="jpeg", quality=75)
    for read in (read_label, lambda path: read_support(picture(0), path, class_id=255)):
        with refused(DataError, "mask.png holds what JPEG made of its values"):
            read(path)


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).normal(110, 40, (60, 90, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(photograph).save(tmp_path / "a.png")
    with refused(DataError, "a.png is neither dark nor light in 9", "give its mask, not the photograph"):
        read_mask(tmp_path / "a.png")
    Image.fromarray(photograph[..., 0]).save(tmp_path / "grey.png")
    for class_id in (None, 1, 120, 255):
        with refused(DataError, "grey.png has soft edges or noise", "hard edges"):
            read_support(picture(0), tmp_path / "grey.png", class_id)
    soft = Image.fromarray(mask() * 255).filter(ImageFilter.GaussianBlur(1))
    soft.save(tmp_path / "soft.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "soft.png"), np.array(soft) > 127)


@pytest.mark.parametrize("class_id", [None, 255, 1, 128])
@pytest.mark.parametrize("kind", ["scaled", "blurred", "half", "JPEG"])
def test_soft_masks_are_refused_with_a_way_out_that_works(kind: str, class_id: int | None) -> None:
    drawn = mask() * np.uint8(255)
    soft = Image.fromarray(drawn)
    if kind == "scaled":
        soft = soft.resize((91, 61), Image.Resampling.BILINEAR)
    elif kind == "blurred":
        soft = soft.filter(ImageFilter.GaussianBlur(2))
    elif kind == "JPEG":
        buffer = io.BytesIO()
        soft.save(buffer, "jpeg", quality=75)
        soft = Image.open(buffer).convert("L")
    values = np.array(soft)
    if kind == "half":
        values[10, 15:60] = 128
    with refused(DataError, "'m.png' has soft edges or noise", "save it as PNG with hard edges"):
        foreground_of(values, class_id, "'m.png'")


def test_classes_are_no_soft_edges() -> None:
    """Also many of them, small ones, and those with a line of 255 around."""
    values = np.kron(np.arange(100, dtype=np.uint8).reshape(10, 10), np.ones((6, 6), np.uint8))
    np.testing.assert_array_equal(foreground_of(values, 7), values == 7)
    values[::6] = 255
    np.testing.assert_array_equal(foreground_of(values, 7) == 1, values == 7)


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
        ((0, 3), np.int64(3), (0, 1)),
    ],
)
def test_which_value_is_the_object(present: tuple[int, ...], class_id: int | None, meaning: tuple[int, ...]) -> None:
    found = foreground_of(np.kron([present], np.ones((5, 5), np.int64)), class_id)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.kron([meaning], np.ones((5, 5), np.uint8)))


@pytest.mark.parametrize(
    ("present", "class_id", "words"),
    [
        ((0, 0), None, ("no foreground", "only 0")),
        ((255, 255), None, ("no foreground", "only 255")),
        ((0, 1), 7, ("no foreground of class_id=7", "only 0, 1")),
        ((0, 3, 7, 255), None, ("2 classes", "3, 7", "class_id")),
        (tuple(range(200)), None, ("199 classes", "... 199", "class_id")),
    ],
)
def test_masks_without_one_object(present: tuple[int, ...], class_id: int | None, words: tuple[str, ...]) -> None:
    with refused(DataError, "'m.png'", *words):
        foreground_of(np.kron([present], np.ones((5, 5), np.int64)), class_id, "'m.png'")


@pytest.mark.parametrize("class_id", [0, -1, "1", 1.0, True, [1]])
def test_what_is_no_class(class_id: Any) -> None:
    with refused(ConfigError, f"class_id={class_id!r}, expected a whole number"):
        foreground_of(np.array([[0, 1]]), class_id)


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


def test_tensors_are_pictures_and_masks() -> None:
    array = picture(0)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for same in (tensor, tensor.float() / 255, tensor.double() / 255):
        np.testing.assert_array_equal(read_image(same), array)
    for wrong in (
        tensor.float(),
        tensor.long(),
        tensor[:2],
        tensor[0],
        torch.zeros(3, 0, 4),
        torch.full((3, 4, 4), torch.nan),
    ):
        with refused(DataError, "the image is a tensor", "expected"):
            read_image(wrong)
    marked = torch.from_numpy(mask(60, 90))
    for values in (marked, marked[None], marked.bool(), marked.long()):
        np.testing.assert_array_equal(read_support(tensor, values)[1], mask(60, 90))
    with refused(DataError, "float32"):
        read_support(tensor, marked.float())
