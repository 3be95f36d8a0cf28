"""Annotations in COCO's format: labels against drawings made otherwise, exporters' ways, malformed files, the cache."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_coco import COCO_IDS, annotation, coco_json, lengths, make_coco, packed, rectangle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from examples import refused
from sd_aanet.data.sources import run_lengths
from sd_aanet.data.sources.cache import cache_folder, kept
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.refusal import collecting
from sd_aanet.errors import DataError

H, W = 40, 60
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_AANET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a JSON file of one image (or those given) with categories 3, 5 and 9, and what else is named."""

    def write(*annotations: dict[str, Any], **changes: Any) -> Path:
        images = [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}]
        content = coco_json(images, annotations, [(3, "cat"), (5, "dog"), (9, "cow")]) | changes
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def label(path: Path) -> NDArray[np.uint8]:
    return CocoAnnotations(path).label(0)


# Labels


def test_rectangles_are_exact(write: Write) -> None:
    expected = np.zeros((H, W), np.uint8)
    expected[5:20, 10:30] = 2
    expected[38:40, 50:60] = 1
    found = label(
        write(annotation(7, 5, [rectangle(10, 5, 20, 15)]), annotation(7, 3, [rectangle(50, 38, 10, 2)], iscrowd=0))
    )
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_right_but_for_a_pixel_at_their_edges(write: Write, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform((-5, -5), (W + 5, H + 5), (rng.integers(3, 8), 2)).round(2)
    found = label(write(annotation(7, 3, [corners.ravel().tolist()])))
    y, x = np.mgrid[:H, :W] + 0.5
    inside = np.zeros((H, W), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    edges = np.zeros((H, W), np.uint8)
    cv2.polylines(edges, [np.round(corners - 0.5).astype(np.int32)], isClosed=True, color=1)
    far = cv2.dilate(edges, np.ones((3, 3), np.uint8)) == 0
    assert far.mean() > 0.3
    assert np.array_equal(found[far] == 1, inside[far])


def test_an_object_of_several_polygons_is_their_union(write: Write) -> None:
    polygons = [rectangle(2, 2, 10, 10), rectangle(8, 8, 10, 10), rectangle(40, 2, 5, 5)]
    expected = np.zeros((H, W), np.uint8)
    expected[2:12, 2:12] = expected[8:18, 8:18] = expected[2:7, 40:45] = 3
    assert np.array_equal(label(write(annotation(7, 9, polygons))), expected)


@pytest.mark.parametrize("kind", [lengths, packed])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_run_lengths_are_exact(write: Write, kind: Callable[[NDArray[Any]], Any], share: float) -> None:
    mask = np.random.default_rng(1).random((H, W)) < share
    assert np.array_equal(label(write(annotation(7, 5, kind(mask)))), mask * 2)


MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


@given(MASKS)
def test_packed_masks_are_unpacked(mask: NDArray[np.bool_]) -> None:
    member = packed(mask)["counts"].encode()
    own = run_lengths.unpack(member)
    assert own == lengths(mask)["counts"]
    assert run_lengths.pack(own, *mask.shape) == run_lengths.pack_mask(mask) == member
    assert run_lengths.area(member) == mask.sum()
    columns = np.full(mask.shape[::-1], 7, np.uint8)
    run_lengths.paint(columns, own, 200)
    assert np.array_equal(columns.T, np.where(mask, 200, 7))


def test_run_lengths_of_a_large_picture() -> None:
    corners = [0, 1, 60_000 * 60_000 - 2, 1]
    assert run_lengths.unpack(run_lengths.pack(corners, 60_000, 60_000)) == corners


def test_a_pixel_of_several_objects_belongs_to_the_smallest(write: Write) -> None:
    small, middle, large = ([rectangle(10, 10, side, side)] for side in (5, 10, 20))
    expected = np.zeros((H, W), np.uint8)
    for side, value in ((20, 1), (10, 2), (5, 3)):
        expected[10 : 10 + side, 10 : 10 + side] = value
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        annotations = [annotation(7, 9, small), annotation(7, 5, middle), annotation(7, 3, large)]
        assert np.array_equal(label(write(*(annotations[place] for place in order))), expected)
    # The area is that of the drawing, whatever the file says.
    assert np.array_equal(label(write(annotation(7, 9, small, area=9e9), *annotations[1:])), expected)
    equal = (annotation(7, 9, small), annotation(7, 3, small))
    assert label(write(*equal))[12, 12] == 1
    assert label(write(*equal[::-1]))[12, 12] == 3


def test_one_outline_of_two_categories_is_told(write: Write) -> None:
    one, other = [rectangle(5, 5, 10, 10)], [rectangle(6, 5, 10, 10)]
    for category, told in ((3, True), (5, False)):  # twice the same hides nothing
        found = CocoAnnotations(write(annotation(7, 5, one), annotation(7, category, one), annotation(7, 3, other)))
        assert [stray.defect for stray in found.strays()] == ["covered"] * told


def test_crowds_are_ignored_where_no_object_is(write: Write) -> None:
    crowd = np.zeros((H, W), bool)
    crowd[:10] = True
    expected = np.zeros((H, W), np.uint8)
    expected[:10] = 255
    expected[5:35, 20:50] = 1  # larger than the crowd, and yet over it
    annotations = [annotation(7, 3, [rectangle(20, 5, 30, 30)]), annotation(7, 5, lengths(crowd), iscrowd=1)]
    path = write(*annotations)
    assert np.array_equal(label(path), expected)
    assert CocoAnnotations(path).used == {0}
    assert np.array_equal(label(write(*annotations[::-1])), expected)
    assert label(write(annotation(7, 3, [rectangle(0, 0, 5, 5)], iscrowd=True)))[2, 2] == 255


def test_fake_coco_is_as_it_says(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco", 1)
    found = CocoAnnotations(root / "annotations/instances_val2014.json")
    assert tuple(number for number, _ in found.categories) == COCO_IDS
    assert len(found.images) == 81
    assert found.used == set(range(80))
    areas = [np.bincount(found.label(i).ravel(), minlength=256) for i in range(81)]
    assert all(areas[i][i + 1] == 2200 and areas[i][(i + 1) % 80 + 1] == 200 for i in range(80))
    assert [area[255] for area in areas[:4]] == [240, 0, 0, 240]
    assert areas[80][0] == 72 * 96  # a picture without annotations


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations(shared: Path, split: str) -> None:
    path = shared / f"data/tiny_coco/annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    found = CocoAnnotations(path)
    assert [found.categories[place] for place in (0, 1, 11, 79)] == [
        *((1, "person"), (2, "bicycle"), (13, "stop sign"), (90, "toothbrush"))
    ]
    assert len(found.categories) == 80
    assert len(found.images) == 50
    by_name = {image["file_name"]: image for image in content["images"]}
    expected, drawn = np.zeros(80), np.zeros(80)
    for i, name in enumerate(found.images):
        image, shown = by_name[name], found.label(i)
        assert shown.shape == (image["height"], image["width"]) == tuple(found.sizes[i])
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert (shown == 255).any() == any(entry["iscrowd"] for entry in entries)
        own = np.bincount(shown.ravel(), minlength=256)[1:81]
        assert set(np.flatnonzero(own)) <= {COCO_IDS.index(entry["category_id"]) for entry in entries}
        drawn += own
        for entry in entries:
            expected[COCO_IDS.index(entry["category_id"])] += entry["area"] * (not entry["iscrowd"])
    assert found.used == set(np.flatnonzero(expected))
    # Where objects overlap, the larger one loses some of its area.
    assert 0.9 * expected.sum() < drawn.sum() < 1.01 * expected.sum()
    assert (drawn < 1.05 * expected + 100).all()


# Ways of exporters


def test_ids_of_any_kind_and_order(write: Write) -> None:
    images = [
        {"id": "b7", "file_name": "part 2/ä.jpg", "height": 4, "width": 5, "license": 1},
        {"id": 0, "file_name": "part 1/z.jpg", "height": 2, "width": 3},
    ]
    categories = [
        {"id": number, "name": name} for number, name in ((40, "cat"), (0, "things"), (-1, "dog"), (7, "cow"))
    ]
    path = write(annotation("b7", 40, [rectangle(0, 0, 2, 2)]), annotation(0, -1, [rectangle(1, 0, 1, 2)]))
    content = json.loads(path.read_text()) | {"images": images, "categories": categories}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, ensure_ascii=False).encode())  # as editors on Windows do
    found = CocoAnnotations(path)
    assert found.categories == ((-1, "dog"), (0, "things"), (7, "cow"), (40, "cat"))
    assert found.used == {0, 3}
    assert found.images == ("part 1/z.jpg", "part 2/ä.jpg")
    assert found.sizes.tolist() == [[2, 3], [4, 5]]
    assert found.label(0).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert found.label(1)[:2, :2].tolist() == [[4, 4], [4, 4]]
    with pytest.raises(IndexError):
        found.label(2)


def test_what_outlines_nothing_is_counted(write: Write) -> None:
    without = annotation(7, 3, [])
    del without["segmentation"]
    short = annotation(7, 3, [[1, 1, 9, 9], []])
    path = write(without, annotation(7, 3, []), annotation(7, 3, None), annotation(7, 3, {}), short)
    found = CocoAnnotations(path)
    assert found.boxes_only == 5
    assert found.used == frozenset()
    assert not found.label(0).any()
    found = CocoAnnotations(write(annotation(7, 3, [[1, 1, 9, 9], rectangle(0, 0, 2, 2)])))
    assert found.boxes_only == 0
    assert found.label(0).sum() == 4
    assert not CocoAnnotations(write()).label(0).any()


@pytest.mark.parametrize("segmentation", [[[1, 1], [6, 1], [6, 6], [1, 6]], [[[1, 1], [6, 1], [6, 6], [1, 6]]]])
def test_polygons_may_be_lists_of_corners(write: Write, segmentation: Any) -> None:
    expected = np.zeros((H, W), np.uint8)
    expected[1:6, 1:6] = 1
    assert np.array_equal(label(write(annotation(7, 3, segmentation))), expected)
    several = [[[1, 1], [6, 1], [6, 6], [1, 6]], rectangle(20, 20, 2, 3)]
    expected[20:23, 20:22] = 1
    assert np.array_equal(label(write(annotation(7, 3, several))), expected)


def test_outlines_may_leave_their_image_a_little_and_a_crowd_may_be_null(write: Write) -> None:
    expected = np.zeros((H, W), np.uint8)
    expected[30:, :10] = 1
    found = label(write(annotation(7, 3, [[-4, 30, 10, 30, 10, 47.5, -4, 47.5]], iscrowd=None)))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("spelling", ["./a.jpg", "x\\..\\a.jpg", "x/../a.jpg"])
def test_one_picture_is_one_entry_however_it_is_spelt(write: Write, spelling: str) -> None:
    path = write(images=[IMAGE, IMAGE | {"id": 8, "file_name": spelling}])
    with refused(DataError, "images[1].file_name is ", "which images[0] has already"):
        CocoAnnotations(path)


def test_images_that_would_fill_the_memory_are_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    path = write(images=[IMAGE | {"width": 60_000}])
    with refused(DataError, "images[0] has 60000x40 pixels, expected at most 50000", "set SD_AANET_MAX_PIXELS"):
        CocoAnnotations(path)


# Malformed files

IMAGE = {"id": 7, "file_name": "a.jpg", "height": H, "width": W}
CATEGORY = {"id": 3, "name": "cat"}
FILES: list[tuple[dict[str, Any], str]] = [
    ({"images": None}, r"has no list 'images', expected COCO's format .*: choose COCO's format"),
    ({"annotations": {}}, "has no list 'annotations'"),
    ({"categories": "cat"}, "has no list 'categories'"),
    ({"images": []}, "'images' is empty, expected an entry for each picture"),
    ({"images": [7]}, r"images\[0\]\.height is missing"),
    ({"images": [IMAGE | {"width": None}]}, r"images\[0\]\.width is missing or null, expected a whole number from 1"),
    ({"images": [IMAGE | {"height": 40.5}]}, r"images\[0\]\.height is 40\.5, expected a whole number"),
    ({"images": [IMAGE | {"height": 0}]}, r"images\[0\]\.height is 0, expected a whole number from 1 to 65535"),
    ({"images": [IMAGE | {"width": 10**9}]}, r"images\[0\]\.width is 1000000000, expected"),
    ({"images": [IMAGE | {"file_name": ""}]}, r'images\[0\]\.file_name is "", expected the name of a file'),
    ({"images": [IMAGE | {"id": True}]}, r"images\[0\]\.id is true, expected a whole number"),
    ({"images": [IMAGE, IMAGE | {"file_name": "b.jpg"}]}, r"images\[1\]\.id is 7, which images\[0\] has already"),
    ({"images": [IMAGE, IMAGE | {"id": 8}]}, r'images\[1\]\.file_name is "a\.jpg", which images\[0\] has already'),
    ({"categories": []}, "'categories' has 0 entries, expected 1 to 254"),
    (
        {"categories": [{"id": n, "name": str(n)} for n in range(255)]},
        "'categories' has 255 entries, expected 1 to 254 .*: export",
    ),
    ({"categories": [CATEGORY, {"id": "5", "name": "dog"}]}, r'categories\[1\]\.id is "5", expected a whole number'),
    ({"categories": [CATEGORY | {"name": "\ud83d"}]}, r'categories\[0\]\.name is "\\ud83d", expected a name'),
    ({"categories": [{"id": 3}]}, r"categories\[0\]\.name is missing or null, expected a name"),
    ({"categories": [CATEGORY, CATEGORY | {"name": "dog"}]}, r"categories\[1\]\.id is 3, which categories\[0\] has"),
]
SQUARE = rectangle(1, 1, 5, 5)
ENTRIES: list[tuple[object, str]] = [
    ("text", r"image_id is missing"),
    (annotation(8, 3, [SQUARE]), r"image_id is 8, expected the id of one of the 1 'images'"),
    (annotation([7], 3, [SQUARE]), r"image_id is \[7\], expected a whole number"),  # type: ignore[arg-type]
    (annotation(7, 4, [SQUARE]), r"category_id is 4, expected the id of one of the 3 'categories'"),
    (annotation(7, 3, [SQUARE], iscrowd=2), r"iscrowd is 2, expected 0 or 1"),
    (annotation(7, 3, SQUARE), r"segmentation holds 1, expected polygons \[\[x, y"),
    (annotation(7, 3, [[1, 1, 5, "5", 1, 5]]), r'segmentation holds \[1, 1, 5, "5", 1, 5\], expected polygons'),
    (annotation(7, 3, [[*SQUARE, 1]]), r"segmentation holds a polygon of 9 numbers, expected pairs"),
    (
        annotation(7, 3, [[*SQUARE, 1e9, 1]]),
        r"segmentation holds the coordinate 1000000000\.0, expected 0 to 60, .* width",
    ),
    (annotation(7, 3, [[*SQUARE, -1e9, 1]]), r"segmentation holds the coordinate -1000000000\.0, expected 0 to 60"),
    (
        annotation(7, 3, [[*SQUARE, 1, float("nan")]]),
        r"segmentation holds the coordinate nan, expected 0 to 40, .* height",
    ),
    (annotation(7, 3, [[*SQUARE, float("inf"), 1]]), r"segmentation holds the coordinate inf, expected 0 to 60"),
    (
        annotation(7, 3, [rectangle(5, 40, 10, 20)]),
        r"segmentation holds the coordinate 60, expected 0 to 40, .* height",
    ),
    (annotation(7, 3, [[0.1, 0.1, 0.5, 0.1, 0.5, 1]]), r"segmentation holds numbers from 0 to 1 only, expected pixels"),
    (
        annotation(7, 3, [[[1, 1], [5, 1], [5, "5"]]]),
        r'segmentation holds \[\[1, 1\], \[5, 1\], \[5, "5"\]\], expected',
    ),
    (annotation(7, 3, "polygon"), r'segmentation is "polygon", expected polygons \[\[x, y.* or run lengths'),
    (annotation(7, 3, {"size": [W, H], "counts": [W * H]}), r"segmentation\.size is \[60, 40\], expected .*\[40, 60\]"),
    (annotation(7, 3, {"counts": [W * H]}), r"segmentation\.size is missing or null, expected the image's"),
    (annotation(7, 3, {"size": [H, W]}), r"segmentation\.counts is missing or null, expected lengths of runs"),
    (annotation(7, 3, {"size": [H, W], "counts": [2500, -100]}), r"counts is \[2500, -100\], expected lengths"),
    (annotation(7, 3, {"size": [H, W], "counts": [1.5] * 1600}), r"counts is \[1\.5, 1\.5, .*\.\.\., expected lengths"),
    (annotation(7, 3, {"size": [H, W], "counts": [100]}), r"counts has runs of 100 pixels in all, expected .* 2400"),
    (annotation(7, 3, {"size": [H, W], "counts": ""}), r"counts holds characters that pack no run lengths"),
    (annotation(7, 3, {"size": [H, W], "counts": "ä0"}), r"counts holds characters that pack no run lengths"),
    (annotation(7, 3, {"size": [H, W], "counts": "P"}), r"counts holds characters that pack no run lengths"),
    (annotation(7, 3, {"size": [H, W], "counts": "@"}), r"counts holds a run length below 0"),
    (annotation(7, 3, {"size": [H, W], "counts": "11"}), r"counts has runs of 2 pixels in all"),
]


@pytest.mark.parametrize(("changes", "message"), FILES, ids=lambda value: str(value)[:40])
def test_malformed_files(write: Write, changes: dict[str, Any], message: str) -> None:
    path = write(**changes)
    with pytest.raises(DataError, match=rf"^annotations [^\n]*instances\.json: {message}[^\n]*$"):
        CocoAnnotations(path)


@pytest.mark.parametrize(("entry", "message"), ENTRIES, ids=lambda value: str(value)[:60])
def test_malformed_annotations(write: Write, entry: object, message: str) -> None:
    path = write(annotations=[annotation(7, 3, [SQUARE]), entry])
    tail = r"[^\n]*: (correct it there or export the file again|export the outlines for .*|multiply x by .*)$"
    with pytest.raises(
        DataError, match=rf"^annotations [^\n]*instances\.json: annotations\[1\]\.[^\n]*{message}{tail}"
    ):
        CocoAnnotations(path)


def test_all_that_is_malformed_may_be_told_at_once(write: Write) -> None:
    """Each by its own line, and nothing that only follows from it; what is in order is kept."""
    path = write(
        annotation(7, 5, [SQUARE]),
        annotation(8, 3, [SQUARE]),
        annotation(9, 3, [SQUARE]),
        annotation(7, 6, [SQUARE]),
        annotation(10, 3, [SQUARE]),
        annotation(7, 3, [SQUARE], iscrowd=2),
        images=[IMAGE, IMAGE | {"id": 8, "height": 0}, IMAGE | {"id": 9}],
        categories=[CATEGORY, CATEGORY | {"id": 5}, {"id": 6}],
    )
    wrong = [
        r"images\[1\]\.height is 0, expected",
        r'images\[2\]\.file_name is "a\.jpg", which images\[0\] has already',
        r"categories\[2\]\.name is missing",
        r"annotations\[4\]\.image_id is 10, expected the id of one of the 3 'images'",
        r"annotations\[5\]\.iscrowd is 2, expected 0 or 1",
    ]
    for _ in range(2):  # read, and from the cache
        with collecting() as wrongs:
            found = CocoAnnotations(path)
            shown = pickle.loads(pickle.dumps(found)).label(0)
        assert len(wrongs) == len(wrong)
        for error, line in zip(wrongs, wrong, strict=True):
            assert re.fullmatch(rf"annotations .*instances\.json: {line}.*: correct it there or export .*", str(error))
        assert (found.images, found.categories) == (("a.jpg",), ((3, "cat"), (5, "cat")))
        assert np.unique(shown).tolist() == [0, 2]
        with pytest.raises(DataError, match=wrong[0]):
            CocoAnnotations(path)


def test_what_is_left_may_be_too_little(write: Write) -> None:
    path = write(images=[IMAGE | {"height": 0}, IMAGE | {"width": 0}])
    with pytest.raises(DataError, match=r"images\[0\]\.height is 0"), collecting():
        CocoAnnotations(path)


def test_what_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in (b"", b"{'images': 1}", b'{"images": [', b"\xff\xd8\xff\xe0", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^annotations [^\n]*x\.json cannot be read as JSON \([^\n]*\): export"):
            CocoAnnotations(path)
    path.write_bytes(b"[1]")
    with pytest.raises(DataError, match=r"x\.json: has no list 'images'"):
        CocoAnnotations(path)
    with pytest.raises(DataError, match=r"y\.json cannot be read \(No such file or directory\), expected a JSON file"):
        CocoAnnotations(tmp_path / "y.json")
    with pytest.raises(DataError, match=r"cannot be read as JSON \(Is a directory\)"):
        CocoAnnotations(tmp_path)
    assert not [*cache_folder().glob("coco/*")]


# The cache


def stores() -> list[Path]:
    return [*(cache_folder() / "coco").glob("*")]


def test_a_file_is_read_once(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(annotation(7, 5, [SQUARE]))
    first = CocoAnnotations(path)
    (tmp_path / "link.json").symlink_to(path)
    monkeypatch.delattr("sd_aanet.data.sources.coco.read_coco")
    for again in (path, str(path), tmp_path / "link.json"):
        found = CocoAnnotations(again)
        for name in ("path", "categories", "used", "images", "boxes_only"):
            assert getattr(found, name) == getattr(first, name)
        assert np.array_equal(found.label(0), first.label(0))
    assert len(stores()) == 1


def test_a_file_of_the_same_size_and_time_is_read_anew(write: Write) -> None:
    path = write(annotation(7, 5, [SQUARE]))
    state = path.stat()
    assert CocoAnnotations(path).label(0).max() == 2
    write(annotation(7, 9, [SQUARE]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert CocoAnnotations(path).label(0).max() == 3


def test_a_changed_file_is_read_anew(write: Write, tmp_path: Path) -> None:
    other = shutil.copy(write(), tmp_path / "other.json")
    CocoAnnotations(other)
    old = CocoAnnotations(write(annotation(7, 5, [SQUARE])))
    new = CocoAnnotations(write(annotation(7, 9, [SQUARE]), annotation(7, 3, [])))
    assert (old.label(0).max(), new.label(0).max()) == (2, 3)  # who still has the old one can go on with it
    assert len(stores()) == 2


@pytest.mark.parametrize("share", [0, 0.2, 0.9])
def test_a_damaged_store_is_made_anew(write: Write, share: float) -> None:
    path = write(annotation(7, 5, [SQUARE]))
    CocoAnnotations(path)
    (store,) = stores()
    whole = store.read_bytes()
    store.write_bytes(whole[: int(share * len(whole))])
    assert label(path).max() == 2
    assert len(store.read_bytes()) == len(whole)


def test_a_cache_folder_that_cannot_be_written_costs_only_time(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SD_AANET_CACHE", str(tmp_path / "file"))
    assert label(write(annotation(7, 5, [SQUARE]))).max() == 2


def test_nothing_is_left_of_what_was_cut_off(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = write(annotation(7, 5, [SQUARE]))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert label(path).max() == 2
    assert stores() == []


def test_processes_may_race(write: Write) -> None:
    path = write(annotation(7, 5, [SQUARE]))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert [found.max() for found in pool.map(label, [path] * 8, chunksize=1)] == [2] * 8
    assert len(stores()) == 1


class Labels(Dataset[NDArray[np.uint8]]):
    def __init__(self, annotations: CocoAnnotations) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return self.annotations.label(i)


def test_labels_in_workers_of_a_loader(tmp_path: Path) -> None:
    path = make_coco(tmp_path / "coco", 2, ids=(4, 1, 8)) / "annotations/instances_train2014.json"
    found = CocoAnnotations(path)
    loader = DataLoader(Labels(found), batch_size=None, num_workers=2, multiprocessing_context="fork")
    labels = [*map(np.asarray, loader)]
    assert all(np.array_equal(shown, found.label(i)) for i, shown in enumerate(labels))
    assert labels[0].any()
    assert np.array_equal(pickle.loads(pickle.dumps(found)).label(0), labels[0])


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_AANET_CACHE", "own")
    assert cache_folder() == Path("own")
    monkeypatch.setenv("SD_AANET_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert cache_folder() == Path("caches/sd_aanet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/sd_aanet"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    assert cache_folder() is None
    arrays = {"a": np.arange(3)}
    assert kept("x", "y", lambda: arrays) is arrays
