"""labelme's files: what labelme makes of them, what comes back, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from examples import refused
from sd_aanet.errors import DataError
from sd_aanet.segmenting.annotations import Found, Labelled
from sd_aanet.segmenting.labelme import read_labelme, write_labelme
from segmenting.scenes import CLASSES, SIZE, Masks, labelled, noise, shapes


def as_labelme_draws(content: dict[str, Any]) -> Masks:
    """The masks by label, as labelme's `shapes_to_label` makes them."""
    size = (content["imageHeight"], content["imageWidth"])
    masks: Masks = {}
    for shape in content["shapes"]:
        assert {"label", "points", "group_id", "shape_type", "flags", "description", "mask"} <= shape.keys()
        mask = np.zeros(size, bool)
        if shape["shape_type"] == "mask":
            (left, top), (right, bottom) = shape["points"]
            png = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            mask[top : bottom + 1, left : right + 1] = np.array(png).astype(bool)
        else:
            assert shape["shape_type"] == "polygon"
            assert len(shape["points"]) > 2
            picture = Image.fromarray(mask.astype(np.uint8))
            ImageDraw.Draw(picture).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            mask = np.array(picture).astype(bool)
        masks[shape["label"]] = masks.get(shape["label"], np.zeros(size, bool)) | mask
    return masks


def test_labelme_draws_the_masks(tmp_path: Path) -> None:
    write_labelme(tmp_path, [labelled("a/desk.jpg", **shapes()), labelled("empty.png")], CLASSES)
    content = json.loads((tmp_path / "a/desk.json").read_text())
    found = as_labelme_draws(content)
    assert found.keys() == shapes().keys()
    for name, mask in shapes().items():
        assert np.array_equal(found[name], mask), name
    assert content["imagePath"] == "desk.jpg"
    assert content["imageData"] is None
    assert content["flags"] == {}
    assert content["version"]
    assert [shape["group_id"] for shape in content["shapes"]] == [None, 2, 2, None]
    assert json.loads((tmp_path / "empty.json").read_text())["shapes"] == []


def test_labelme_finds_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/desk.jpg").touch()
    write_labelme(tmp_path / "out", [labelled("a/desk.jpg")], CLASSES, images="../photos")
    path = json.loads((tmp_path / "out/a/desk.json").read_text())["imagePath"]
    assert (tmp_path / "out/a" / path).exists()
    assert "\\" not in path


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    with refused(DataError, "a.jpg", "a.png", "a.json", "rename"):
        write_labelme(tmp_path, [labelled("a.jpg"), labelled("a.png")], CLASSES)


# Back


def test_the_masks_are_read_back(tmp_path: Path) -> None:
    for name, masks in (("shapes", shapes()), ("noise", noise(3))):
        write_labelme(tmp_path, [labelled(f"{name}.jpg", **masks)], CLASSES)
        found = read_labelme(tmp_path / f"{name}.json")
        assert (found.file_name, found.size) == (f"{name}.jpg", SIZE)
        assert found.found.keys() == masks.keys()
        for label, mask in masks.items():
            assert np.array_equal(found.found[label].mask, mask), label


def test_scores_do_not_come_back_from_a_persons_corrections(tmp_path: Path) -> None:
    picture = Labelled("a.jpg", SIZE, {"mug": Found(shapes()["mug"], 0.5)})
    write_labelme(tmp_path, [picture], CLASSES)
    assert {shape["score"] for shape in json.loads((tmp_path / "a.json").read_text())["shapes"]} == {0.5}
    assert read_labelme(tmp_path / "a.json").found["mug"].score is None


def saved(folder: Path, *shapes: Any, **changes: Any) -> Path:
    content = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    path = folder / "a.json"
    path.write_text(json.dumps(content | {"imageHeight": 40, "imageWidth": 60} | changes))
    return path


def shape(kind: str, *points: Any, **more: Any) -> dict[str, Any]:
    return {"label": "mug", "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def test_the_shapes_that_labelme_draws_are_read(tmp_path: Path) -> None:
    triangle = shape("polygon", [1, 1], [10, 1], [1, 10], label="plate")
    path = saved(
        tmp_path, shape("rectangle", [30.2, 20.4], [20.9, 10.1]), shape("circle", [50, 30], [50, 34]), triangle
    )
    found = read_labelme(path).found
    assert found["mug"].mask[10:21, 20:31].all()
    assert found["mug"].mask[30, 46:55].all()
    assert found["mug"].mask.sum() == pytest.approx(11 * 11 + np.pi * 4.5**2, abs=10)
    assert found["plate"].mask.sum() == 55


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (shape("line", [1, 1], [5, 5]), ["shapes[0]", "'line'", "polygon"]),
        (shape("polygon", [1, 1], [5, 5]), ["shapes[0].points", "3 points"]),
        (shape("polygon", [1, 1], [5, 5], [5, "a"]), ["shapes[0].points"]),
        (shape("polygon", [1, 1], [5, 5], [700, 3]), ["700, 3", "60x40"]),
        (shape("polygon", [1, 1], [5, 5], [float("nan"), 3]), ["nan", "60x40"]),
        (shape("circle", [1, 1], [5, 5], label=""), ["shapes[0]", "label"]),
        (shape("mask", [1, 1], [5, 5], mask="a"), ["shapes[0].mask", "PNG"]),
        (shape("mask", [1, 1], [5, 5]), ["shapes[0].mask", "PNG"]),
        ("a", ["shapes[0]"]),
    ],
)
def test_a_shape_that_is_none_is_refused(tmp_path: Path, wrong: Any, words: list[str]) -> None:
    with refused(DataError, "a.json", *words):
        read_labelme(saved(tmp_path, wrong))


def test_a_mask_that_leaves_the_picture_is_refused(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("1", (30, 30), 1).save(png, format="PNG")
    mask = base64.b64encode(png.getvalue()).decode()
    assert read_labelme(saved(tmp_path, shape("mask", [30, 10], [59, 39], mask=mask))).found["mug"].mask.sum() == 900
    with refused(DataError, "61, 40", "60x40"):
        read_labelme(saved(tmp_path, shape("mask", [31, 10], [60, 39], mask=mask)))


@pytest.mark.parametrize(
    "changes",
    [
        {"shapes": None},
        {"imageHeight": None},
        {"imageWidth": 0},
        {"imageWidth": 10**9},
        {"imageWidth": 65000, "imageHeight": 65000},
        {"imagePath": None},
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with refused(DataError, "a.json", *changes):
        read_labelme(saved(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with refused(DataError, "a.json"):
        read_labelme(tmp_path / "a.json")
    with refused(DataError, "b.json"):
        read_labelme(tmp_path / "b.json")
