"""Marks of users: the masks that come of them, and one clear line where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from examples import mask, picture, refused
from sd_aanet.errors import DataError
from sd_aanet.segmenting.marks import Box, Mark, Points, mask_of
from sd_aanet.segmenting.polygons import polygons

H, W = 60, 90


def scene(height: int = 97, width: int = 129, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A red disc of noisy colour on noisy green, and where it is."""
    y, x = np.mgrid[:height, :width]
    shown = (np.hypot(x - 0.4 * width, y - 0.5 * height) < 0.28 * height).astype(np.uint8)
    colours = np.where(shown[..., None] == 1, (190, 60, 50), (60, 150, 80))
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8), shown


def box_of(shown: NDArray[np.uint8]) -> Box:
    y, x = np.nonzero(shown)
    return Box(int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)


def iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(((a == 1) & (b == 1)).sum() / ((a == 1) | (b == 1)).sum())


# What says every pixel


def test_masks_are_as_they_were(tmp_path: Path) -> None:
    Image.fromarray(mask() * 255).save(tmp_path / "mask.png")
    marks: list[Mark] = [mask(), mask() == 1, mask(value=7), tmp_path / "mask.png", Image.fromarray(mask())]
    for mark in marks:
        assert np.array_equal(mask_of(picture(0), mark), mask())
    ignored = mask()
    ignored[0] = 255
    assert np.array_equal(mask_of(picture(0), ignored), ignored)
    assert np.array_equal(mask_of(picture(0), mask(value=7) + mask(value=0), class_id=7), mask())


def run_lengths(shown: NDArray[np.uint8]) -> dict[str, Any]:
    found: dict[str, Any] = coco_mask.encode(np.asfortranarray(shown))
    return found


def test_run_lengths_in_all_their_ways() -> None:
    shown = (np.random.default_rng(0).random((H, W)) < 0.3).astype(np.uint8)
    packed = run_lengths(shown)
    columns = np.concatenate([[0], shown.ravel(order="F"), [2]])
    lengths = np.diff(np.flatnonzero(np.diff(columns)), prepend=0)
    for counts in (packed["counts"], packed["counts"].decode(), lengths, lengths.tolist(), tuple(lengths)):
        assert np.array_equal(mask_of(picture(0), {"size": (H, W), "counts": counts}), shown)


def test_polygons_in_all_their_ways() -> None:
    expected = np.zeros((H, W), np.uint8)
    expected[10:30, 20:50] = 1
    corners = [(20, 10), (50, 10), (50, 30), (20, 30)]
    flat = [float(n) for corner in corners for n in corner]
    marks: list[Mark] = [[flat], [corners], corners, flat, [np.array(corners)], (tuple(corners),), [np.array(flat)]]
    for mark in marks:
        found = mask_of(picture(0), mark)
        assert np.array_equal(found, expected)
        assert found.dtype == np.uint8
    expected[40:50, 70:80] = 1
    assert np.array_equal(mask_of(picture(0), [corners, [70, 40, 80, 40, 80, 50, 70, 50]]), expected)


def test_our_own_polygons_are_taken() -> None:
    _, shown = scene(H, W)
    assert np.array_equal(mask_of(picture(0), [part.outer for part in polygons(shown)]), shown)


# What is cut out


def test_a_box_finds_the_object_in_it() -> None:
    image, shown = scene()
    found = mask_of(image, box_of(shown))
    assert iou(found, shown) > 0.95
    assert {*np.unique(found)} == {0, 1}
    assert found.dtype == np.uint8


def test_points_find_the_object_that_they_are_on() -> None:
    image, shown = scene()
    for points in (Points([(50, 48)]), Points([(45, 40), (58, 55)], [(110, 20), (10, 90)])):
        found = mask_of(image, points)
        assert iou(found, shown) > 0.95
        assert {*np.unique(found)} == {0, 1}


def test_of_two_alike_the_one_with_a_point_is_found() -> None:
    image, shown = scene()
    two = np.concatenate([image, image], axis=1)
    found = mask_of(two, Points([(50, 48)], [(50 + 129, 48)]))
    assert iou(found, np.concatenate([shown, 0 * shown], axis=1)) > 0.9


@pytest.mark.parametrize("size", [(600, 800), (97, 513), (513, 380)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    image, shown = scene(*size)
    assert iou(mask_of(image, box_of(shown)), shown) > 0.9
    y, x = np.argwhere(shown).mean(0)
    assert iou(mask_of(image, Points([(x, y)])), shown) > 0.8


def test_a_thing_may_fill_its_box() -> None:
    image, shown = scene()
    shown[:] = 0
    shown[20:70, 30:100] = 1
    rng = np.random.default_rng(0)
    image[shown == 1] = np.clip(rng.normal((190, 60, 50), 12, (50 * 70, 3)), 0, 255)
    image[shown == 0] = np.clip(rng.normal((60, 150, 80), 12, (shown.size - 50 * 70, 3)), 0, 255)
    assert iou(mask_of(image, box_of(shown)), shown) > 0.98


def test_nothing_is_found_outside_of_a_box() -> None:
    image, _ = scene(600, 800)
    found = mask_of(image, Box(203.5, 251.2, 405.7, 399.9))
    assert found[251:400, 203:406].any()
    found[251:400, 203:406] = 0
    assert not found.any()


@pytest.mark.parametrize("image", [np.full((H, W, 3), 128, np.uint8), picture(3)])
def test_where_colours_say_nothing_something_is_marked(image: NDArray[np.uint8]) -> None:
    found = mask_of(image, Box(20, 10, 70, 50))
    assert 0.05 < np.count_nonzero(found) / (50 * 40) <= 1
    assert mask_of(image, Points([(45, 30)])).any()


@pytest.mark.parametrize("box", [Box(0, 0, W, H), Box(5, 5, 6, 6), Box(-3, -3, W + 3, H + 3), Box(88.5, 58.2, 90, 60)])
def test_boxes_of_any_size_mark_something(box: Box) -> None:
    assert mask_of(picture(1), box).any()


def test_a_thin_box_in_a_large_picture_marks_something() -> None:
    found = mask_of(picture(1, 300, 3000), Box(2, 101, 2990, 103))
    assert found[101:103, 2:2990].any()


@pytest.mark.parametrize("points", [Points([(0, 0)]), Points([(W, H)]), Points([(3, 3)], [(4, 4)])])
def test_points_anywhere_mark_what_they_are_on(points: Points) -> None:
    x, y = points.positive[0]
    assert mask_of(picture(1), points)[min(int(y), H - 1), min(int(x), W - 1)] == 1


def test_small_pictures() -> None:
    for height, width in ((1, 1), (1, 9), (2, 2), (5, 3)):
        image = np.zeros((height, width, 3), np.uint8)
        assert mask_of(image, Box(0, 0, width, height)).any()
        assert mask_of(image, Points([(0, 0)])).any()


def test_the_same_is_found_again() -> None:
    image = picture(5, 200, 300)
    for mark in (Box(50, 40, 200, 160), Points([(150, 100)], [(10, 10)])):
        assert np.array_equal(mask_of(image, mark), mask_of(image, mark))


# Mistakes


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (Box(10, 10, 200, 50), ["box", "support 2", "(10, 10, 200, 50)", "outside", "90x60"]),
        (Box(100, 10, 120, 50), ["box", "outside", "90x60"]),
        (Box(95, 10, 99, 50), ["box", "outside", "90x60"]),
        (Box(20, 10, 20, 50), ["box", "empty", "x0 < x1"]),
        (Box(50, 10, 20, 50), ["box", "empty"]),
        (Box(0.1, 0.2, 0.5, 0.6), ["box", "pixels", "90", "60"]),
        (Box(1, 2, float("nan"), 5), ["box", "nan", "four numbers"]),
        (Box(1, 2, "a", 5), ["box", "'a'", "four numbers"]),  # type: ignore[arg-type]
        (Points([]), ["points", "support 2", "at least one"]),
        (Points([(95, 10)]), ["positive point 95, 10", "support 2", "outside", "90x60"]),
        (Points([(5, 10)], [(5, -1)]), ["negative point 5, -1", "outside"]),
        (Points([(5, 10)], [(5, 10)]), ["5, 10", "positive and negative"]),
        (Points((5, 10)), ["positive points", "pairs x, y"]),  # type: ignore[arg-type]
        (Points([(5, 10, 3)]), ["positive points", "pairs x, y"]),  # type: ignore[list-item]
        (Points([(5, float("inf"))]), ["positive points", "pairs x, y"]),
        (None, ["mask of support 2", "NoneType", "Box"]),
        (3, ["mask of support 2", "int", "Box"]),
        ([{1, 2}], ["mask of support 2", "set", "Box"]),
        ([], ["mask of support 2", "no pixel"]),
        ([[5, 5, 9, 9]], ["mask of support 2", "no pixel", "three corners"]),
        ([[5, 5, 9, 9, 9, 5, 5]], ["mask of support 2", "pairs"]),
        ([[5, 5, 900, 5, 5, 900]], ["mask of support 2", "900", "90"]),
        ([["a", 5, 9, 5, 5, 9]], ["mask of support 2"]),
        ({"size": [50, 90], "counts": [4500]}, ["mask of support 2", "[50, 90]", "[60, 90]"]),
        ({"size": [60, 90], "counts": [5000]}, ["mask of support 2", "5000", "5400"]),
        ({"size": [60, 90], "counts": [5400]}, ["mask of support 2", "no pixel"]),
        ({"size": [60, 90], "counts": b"\xff\xff"}, ["mask of support 2", "counts"]),
        ({"size": [60, 90]}, ["mask of support 2", "counts"]),
        ({"a": 1}, ["mask of support 2", "size"]),
        (np.ones((5, 5), np.uint8), ["mask of support 2", "5x5", "90x60"]),
        (np.ones((60, 90), np.float32), ["mask of support 2", "float32"]),
        (np.zeros((60, 90), np.uint8), ["mask of support 2", "foreground"]),
        ("missing.png", ["missing.png", "does not exist"]),
    ],
)
def test_a_mistake_is_told_in_one_line(mark: Any, words: list[str]) -> None:
    with refused(DataError, *words):
        mask_of(picture(0), mark, name="support 2")


def test_the_picture_is_named_where_its_path_is_known() -> None:
    with refused(DataError, "its image desk.jpg is 90x60"):
        mask_of(picture(0), np.ones((5, 5), np.uint8), source="desk.jpg")
