"""Several things at once, negatives, ranking, parts of large pictures: what FewShotSegmenter does beyond one mask."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from examples import refused
from networks import tiny
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.segmenting.marks import Box, Points
from sd_aanet.segmenting.segmenter import FewShotSegmenter
from sd_aanet.segmenting.store import FORMAT

SIZE = 97
RED, BLUE = (220, 40, 40), (40, 60, 220)


def segmenter(name: str = "probe", **arguments: int) -> FewShotSegmenter:
    method = tiny(name, dtype=torch.float32)
    backbone = method.backbone
    return FewShotSegmenter(
        method, Preprocess(SIZE, mean=backbone.mean, std=backbone.std), "cpu", "32-true", **arguments
    )


def scene(
    *discs: tuple[tuple[int, int, int], int, int], seed: int = 0, size: tuple[int, int] = (96, 128), radius: int = 18
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Discs of a colour at (x, y) on green noise, and the mask of each."""
    rng = np.random.default_rng(seed)
    image = np.clip(np.array([60, 120, 70]) + rng.normal(0, 12, (*size, 3)), 0, 255)
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for colour, left, top in discs:
        inside = (x - left) ** 2 + (y - top) ** 2 < radius**2
        image[inside] = np.clip(np.array(colour) + rng.normal(0, 12, (int(inside.sum()), 3)), 0, 255)
        masks.append(inside.astype(np.uint8))
    return image.astype(np.uint8), masks


def examples(colour: tuple[int, int, int], other: tuple[int, int, int], count: int = 3) -> tuple[list, list]:
    made = [scene((colour, 30 + 9 * i, 40 + 5 * i), (other, 95, 60 - 4 * i), seed=i) for i in range(count)]
    return [image for image, _ in made], [masks[0] for _, masks in made]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_several_things_are_one_label_map() -> None:
    seg = segmenter()
    seg.remember("apple", *examples(RED, BLUE))
    seg.remember("ball", *examples(BLUE, RED, 2))
    image, (red, blue) = scene((RED, 40, 50), (BLUE, 90, 45), seed=9)
    found = seg.segment(image)
    assert seg.names == found.names == ("apple", "ball")
    assert iou(found.masks["apple"], red) > 0.6
    assert iou(found.masks["ball"], blue) > 0.6
    np.testing.assert_array_equal(found.labels, found.masks["apple"] + 2 * found.masks["ball"])
    np.testing.assert_array_equal(found.mask, found.labels > 0)
    each = np.stack([found.restored[name].whole() for name in found.names])
    np.testing.assert_array_equal(found.labels, np.where(each.max(0) > 0.5, each.argmax(0) + 1, 0))
    np.testing.assert_array_equal(found.probability, each.max(0))


def test_each_thing_is_found_as_if_alone() -> None:
    both, alone = segmenter(), segmenter()
    both.remember("apple", *examples(RED, BLUE))
    both.remember("ball", *examples(BLUE, RED, 2))
    alone.remember("ball", *examples(BLUE, RED, 2))
    image, _ = scene((RED, 40, 50), (BLUE, 90, 45), seed=9)
    a, b = both.segment(image), alone.segment(image)
    np.testing.assert_allclose(a.restored["ball"].whole(), b.probability, atol=1e-6)
    assert a.score["ball"] == pytest.approx(b.score["ball"], abs=1e-6)


def test_what_is_not_there_has_a_low_score() -> None:
    seg = segmenter()
    seg.remember("apple", *examples(RED, BLUE))
    there, away = (seg.segment(scene(*discs, seed=7)[0]) for discs in ([(RED, 60, 50)], [(BLUE, 60, 50)]))
    assert there.present["apple"]
    assert there.score["apple"] > away.score["apple"] + 0.2


def test_supports_are_added_and_dropped() -> None:
    one_by_one, at_once = segmenter(), segmenter()
    images, masks = examples(RED, BLUE)
    at_once.remember("apple", images, masks)
    one_by_one.remember("apple", images[1:2], masks[1:2])
    one_by_one.add("apple", [images[0], images[2]], [masks[0], masks[2]])
    one_by_one.add("apple", images[:1], masks[:1])
    one_by_one.forget("apple", 3)
    query, _ = scene((RED, 60, 50), seed=8)
    expected = at_once.segment(query).probability
    np.testing.assert_allclose(one_by_one.segment(query).probability, expected, atol=1e-4)
    one_by_one.add("ball", *examples(BLUE, RED, 1))
    one_by_one.forget("ball", 0)
    assert one_by_one.names == ("apple",)
    one_by_one.forget("apple")
    with refused(ConfigError, "no support is remembered"):
        one_by_one.segment(query)
    with refused(ConfigError, "'pear'", "'apple'"):
        at_once.forget("pear")
    with refused(ConfigError, "support 3 of 'apple'", "has 3"):
        at_once.forget("apple", 3)


def test_pictures_without_the_thing_keep_it_from_being_found_there() -> None:
    """Of orange discs, which look like red ones until somebody says what they are not."""
    seg, orange = segmenter(), (230, 110, 40)
    images, masks = examples(RED, BLUE)
    seg.remember("apple", images, masks)
    query, _ = scene((orange, 60, 50), seed=8)
    before = seg.segment(query)
    seg.reject([scene((orange, 50, 40), seed=20)[0], scene((orange, 70, 60), seed=21)[0]])
    after = seg.segment(query)
    assert after.mask.sum() < 0.5 * before.mask.sum()
    assert after.score["apple"] < before.score["apple"]
    image, (disc,) = scene((orange, 50, 40), seed=20)
    seg.reject([image], [disc])
    assert seg.segment(query).mask.sum() < 0.5 * before.mask.sum()
    with refused(ConfigError, "prototype", "probe"):
        segmenter("prototype").reject([image])


def test_a_wrong_mask_is_ranked_last() -> None:
    seg = segmenter()
    images, masks = examples(RED, BLUE, 6)
    masks[2] = scene((RED, 0, 0), (BLUE, 95, 52), seed=2)[1][1]
    seg.remember("apple", images, masks)
    worst, *others = seg.rank()
    assert (worst.name, worst.place) == ("apple", 2)
    assert worst.iou < 0.5 * others[0].iou
    alone = segmenter()
    alone.remember("apple", images[:1], masks[:1])
    with refused(ConfigError, "at least two"):
        alone.rank()


def test_small_things_of_large_pictures_are_found_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    whole, parts = segmenter(), segmenter(tile=128)
    made = [scene((RED, 130 + 40 * i, 200), seed=i, size=(400, 500), radius=12) for i in range(3)]
    image, (disc,) = scene((RED, 390, 300), seed=9, size=(400, 500), radius=12)
    found = []
    for seg in (parts, whole):
        seg.remember("dot", [picture for picture, _ in made], [masks[0] for _, masks in made])
        found.append(seg.segment(image))
    assert "little for the network to see: crop supports and queries" in caplog.text
    assert found[0].labels.shape == image.shape[:2]
    assert iou(found[0].mask, disc) > 0.3 + iou(found[1].mask, disc)


def test_parts_of_a_picture_that_fits_in_one_are_the_picture() -> None:
    whole, parts = segmenter(), segmenter(tile=128)
    for seg in (whole, parts):
        seg.remember("apple", *examples(RED, BLUE))
    image, _ = scene((RED, 60, 50), seed=8)
    np.testing.assert_array_equal(whole.segment(image).probability, parts.segment(image).probability)


def test_mistakes_are_one_line() -> None:
    seg = segmenter()
    images, masks = examples(RED, BLUE)
    with refused(ConfigError, "not as many masks as images"):
        seg.remember("apple", images, masks[:2])
    with refused(ConfigError, "masks"):
        seg.remember("apple", images, None)
    with refused(DataError, "empty"):
        seg.remember("apple", [], [])
    with refused(ConfigError, "tile=5"):
        segmenter(tile=5)


def test_supports_are_saved_and_loaded(tmp_path: Path) -> None:
    first, second, file = segmenter(), segmenter(), tmp_path / "supports.safetensors"
    first.remember("apple", *examples(RED, BLUE))
    first.remember("ball", *examples(BLUE, RED, 2))
    first.reject([scene(((230, 110, 40), 50, 40), seed=20)[0]])
    first.save(file)
    second.remember("pear", *examples(RED, BLUE, 1))
    second.load(file)
    query, _ = scene((RED, 40, 50), (BLUE, 90, 45), seed=9)
    a, b = first.segment(query), second.segment(query)
    assert b.names == ("apple", "ball")
    assert a.score == pytest.approx(b.score, abs=1e-6)
    np.testing.assert_allclose(a.probability, b.probability, atol=1e-6)
    assert [one.called for one in first.rank()] == [one.called for one in second.rank()]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_files_that_are_no_supports(tmp_path: Path) -> None:
    seg, file = segmenter(), tmp_path / "supports.safetensors"
    with refused(ConfigError, "nothing to save"):
        seg.save(file)
    with refused(DataError, "do not exist"):
        seg.load(file)
    seg.remember("apple", *examples(RED, BLUE, 1))
    seg.save(file)
    whole = file.read_bytes()
    for damaged in (b"", b"PK", whole[:200], whole[: len(whole) // 2], whole.replace(b"supports 1", b"supports 2")):
        file.write_bytes(damaged)
        with refused(DataError, "supports.safetensors"):
            seg.load(file)
    save_file({"0.image": np.zeros((3, 3), np.uint8)}, file, {"format": FORMAT, "contents": whole_contents(whole)})
    with refused(DataError, "no support set"):
        seg.load(file)
    file.write_bytes(whole)
    method = tiny("probe", dtype=torch.float32)
    with refused(ConfigError, "size=97", "size=65"):
        FewShotSegmenter(method, Preprocess(65), "cpu", "32-true").load(file)
    assert seg.names == ("apple",)


def whole_contents(file: bytes) -> str:
    length = int.from_bytes(file[:8], "little")
    return str(json.loads(file[8 : 8 + length])["__metadata__"]["contents"])


def test_what_supports_say_of_one_another_decides_what_is_there() -> None:
    seg = segmenter()
    images, masks = examples(RED, BLUE, 4)
    seg.remember("apple", images, masks)
    query, _ = scene((RED, 60, 50), seed=8)
    found, untouched = seg.segment(query), seg.segment(query)
    least = found.least("apple")
    assert found.present == {"apple": found.score["apple"] >= least}
    left_out = []
    for i in range(4):
        others = segmenter()
        rest = [k for k in range(4) if k != i]
        others.remember("apple", [images[k] for k in rest], [masks[k] for k in rest])
        left_out.append(others.segment(images[i]).score["apple"])
    assert least == pytest.approx(seg.method.least_presence(left_out), abs=1e-5)
    seg.remember("apple", images[:1], masks[:1])
    assert seg.segment(query).least("apple") == seg.method.least_presence([])
    with refused(ConfigError, "'apple'", "remembered no more"):
        _ = untouched.present


def test_a_thing_may_be_marked_in_other_ways() -> None:
    seg = segmenter()
    images, masks = examples(RED, BLUE)
    boxes = [Box(12 + 9 * i, 22 + 5 * i, 49 + 9 * i, 59 + 5 * i) for i in range(3)]
    seg.remember("apple", images, boxes)
    query, (disc,) = scene((RED, 60, 50), seed=8)
    assert iou(seg.segment(query).mask, disc) > 0.6
    seg.remember("apple", [(images[0], Points([(30, 40)], [(95, 60)])), (images[1], masks[1])])
    assert iou(seg.segment(query).mask, disc) > 0.5


def test_what_was_found_is_drawn_and_saved(tmp_path: Path) -> None:
    seg = segmenter()
    seg.remember("apple", *examples(RED, BLUE))
    seg.remember("ball", *examples(BLUE, RED, 2))
    image, _ = scene((RED, 40, 50), (BLUE, 90, 45), seed=9)
    found = seg.segment(image)
    found.save(tmp_path / "new", "one")
    with Image.open(tmp_path / "new/one_mask.png") as mask, Image.open(tmp_path / "new/one_overlay.png") as overlay:
        np.testing.assert_array_equal(np.array(mask), found.labels)
        np.testing.assert_array_equal(np.array(overlay), np.array(found.overlay()))
        assert mask.getpalette()[3:9] == [230, 159, 0, 0, 158, 115]
    for name, mask in found.masks.items():
        drawn = np.zeros(mask.shape, np.uint8)
        for part in found.polygons()[name]:
            corners = np.rint(part.outer - 0.5).astype(np.int32)
            cv2.fillPoly(drawn, [corners], 1)
        assert iou(drawn, mask) > 0.85
    (tmp_path / "file").touch()
    with refused(DataError, "cannot be written"):
        found.save(tmp_path / "file")
