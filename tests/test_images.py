"""What a user's pictures and masks mean, in whatever form they come, and one clear line for those that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import mask, picture, refused
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import foreground_of, read_picture, read_support


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
    np.testing.assert_array_equal(read_picture(tmp_path / "phone.png"), shown)
    with Image.open(tmp_path / "phone.png") as opened:
        np.testing.assert_array_equal(read_picture(opened), shown)
    read_support(tmp_path / "phone.png", mask(60, 90))


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (8, 9, 4)])
def test_arrays_may_be_grey_or_have_an_alpha_channel(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert read_picture(values).shape == (8, 9, 3)


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
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(mask()).convert("RGB").save(tmp_path / "colours.png")
    Image.fromarray(mask(30, 40)).save(tmp_path / "small.png")
    good = picture(0)
    for name, words in {"absent.png": ["does not exist"], "text.png": ["cannot be read"], "half.jpg": ["read"]}.items():
        with refused(DataError, name, *words):
            read_picture(tmp_path / name)
        with refused(DataError, name, *words):
            read_support(good, tmp_path / name)
    with refused(DataError, str(tmp_path), "cannot be read"):
        read_picture(tmp_path)
    with refused(DataError, "colours.png", "holds colours (mode RGB)", "palette or grey"):
        read_support(good, tmp_path / "colours.png")
    with refused(DataError, "small.png", "40x30", "90x60", "whole.jpg"):
        read_support(tmp_path / "whole.jpg", tmp_path / "small.png")
    with refused(DataError, "query", "float64", "uint8"):
        read_picture(np.zeros((8, 8, 3)), "query")  # type: ignore[arg-type]
    with refused(DataError, "support 2", "(60, 90, 3)"):
        read_support(good, good, name="support 2")
