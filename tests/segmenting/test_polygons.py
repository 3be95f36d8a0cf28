"""Outlines of masks: drawn back by COCO's tools and by Pillow, they are the masks again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sd_aanet.segmenting.polygons import Outline, Ring, polygons

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def by_coco(ring: Ring, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    drawn = coco_mask.decode(coco_mask.frPyObjects([ring.ravel().tolist()], *shape))
    return np.asarray(drawn[..., 0]).astype(bool)


def drawn(parts: list[Outline], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    whole = np.zeros(shape, bool)
    for part in parts:
        inside = by_coco(part.outer, shape)
        for hole in part.holes:
            inside &= ~by_coco(hole, shape)
        whole |= inside
    return whole


def disc(size: int = 97, radius: float = 37.3) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - size / 2, y - size / 2) < radius


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@given(MASKS)
def test_exact_rings_are_the_mask(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(drawn(polygons(mask), mask.shape), mask)


@given(MASKS)
def test_rings_through_centres_are_the_mask_where_what_they_touch_is_coloured(mask: NDArray[np.bool_]) -> None:
    parts = polygons(mask, centres=True)
    if any(part.holes for part in parts):
        return
    picture = Image.new("1", mask.shape[::-1])
    for part in parts:
        assert len(part.outer) > 2
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in part.outer.tolist()], fill=1, outline=1)
    assert not (np.array(picture) < mask).any()
    assert np.count_nonzero(np.array(picture) != mask) <= 1 + mask.size // 20


def test_a_rectangle_has_its_four_corners() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 5:25] = 1
    (part,) = polygons(mask)
    assert {tuple(corner) for corner in part.outer.tolist()} == {(5, 10), (25, 10), (25, 30), (5, 30)}
    assert len(part.outer) == 4
    assert part.outer.dtype == np.float64
    (part,) = polygons(mask, centres=True)
    assert {tuple(corner) for corner in part.outer.tolist()} == {(5.5, 10.5), (24.5, 10.5), (24.5, 29.5), (5.5, 29.5)}


def test_parts_and_their_holes() -> None:
    mask = np.zeros((30, 50), bool)
    mask[2:20, 2:20] = mask[5:15, 30:45] = True
    mask[5:8, 5:8] = mask[10:12, 10:15] = False
    mask[6, 6] = True  # a part in a hole
    parts = polygons(mask)
    assert sorted(len(part.holes) for part in parts) == [0, 0, 2]


def test_ignored_pixels_are_none_of_the_object() -> None:
    mask = np.full((9, 9), 255, np.uint8)
    assert polygons(mask) == []
    mask[3, 4] = 1
    assert np.array_equal(drawn(polygons(mask), mask.shape), mask == 1)


@pytest.mark.parametrize(("tolerance", "least", "most"), [(0.75, 0.99, 0.7), (1, 0.98, 0.5)])
def test_a_simplified_ring_has_fewer_corners(tolerance: float, least: float, most: float) -> None:
    mask = disc()
    (exact,), (simple,) = polygons(mask), polygons(mask, tolerance)
    assert len(simple.outer) < most * len(exact.outer)
    assert iou(drawn([simple], mask.shape), mask) > least


def test_a_small_part_stays_a_polygon_however_much_is_simplified() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    (part,) = polygons(mask, tolerance=5)
    assert len(part.outer) > 2
