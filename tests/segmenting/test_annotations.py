"""Annotation files: what COCO's own tools, our own reader, and a plain reader of CVAT's make of them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from examples import refused
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.folder import Folder
from sd_aanet.errors import DataError
from sd_aanet.segmenting.annotations import Found, Labelled, write_coco, write_cvat
from segmenting.scenes import CLASSES, SIZE, Masks, labelled, noise, shapes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_AANET_CACHE", str(tmp_path / "cache"))


# COCO


def test_cocos_tools_read_the_masks_back(tmp_path: Path) -> None:
    pictures = [labelled("a/desk.jpg", **shapes()), labelled("empty.png"), labelled("noise.jpg", **noise(0))]
    write_coco(tmp_path / "coco.json", pictures, CLASSES)
    coco = COCO(str(tmp_path / "coco.json"))
    assert [coco.imgs[n]["file_name"] for n in (1, 2, 3)] == ["a/desk.jpg", "empty.png", "noise.jpg"]
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == [*enumerate(CLASSES, start=1)]
    for image, masks in ((1, shapes()), (2, {}), (3, noise(0))):
        found = coco.loadAnns(coco.getAnnIds(imgIds=image))
        assert len(found) == len(masks)
        for annotation in found:
            expected = masks[CLASSES[annotation["category_id"] - 1]]
            assert np.array_equal(coco.annToMask(annotation), expected)
            assert annotation["area"] == expected.sum()
            assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
            assert annotation["iscrowd"] == 0


def test_our_own_reader_reads_the_masks_back(tmp_path: Path) -> None:
    pictures = [labelled("b.jpg", **noise(1)), labelled("a.jpg", **shapes()), labelled("c.jpg")]
    write_coco(tmp_path / "coco.json", pictures, CLASSES)
    found = CocoAnnotations(tmp_path / "coco.json")
    assert found.images == ("a.jpg", "b.jpg", "c.jpg")
    assert found.annotated.tolist() == [True, True, False]
    for i, masks in enumerate([shapes(), noise(1), {}]):
        expected = np.zeros(SIZE, np.uint8)
        for name, mask in masks.items():
            expected[mask] = CLASSES.index(name) + 1
        assert np.array_equal(found.label(i), expected)


def test_they_are_a_data_set_of_ones_own(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "images/x").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images/x" / name)
    write_coco(tmp_path / "coco.json", [labelled("x/a.png", **noise(4)), labelled("x/b.png", **shapes())], CLASSES)
    source = Folder(tmp_path, "train", folds=1)
    assert source.classes == CLASSES
    for i, masks in enumerate([noise(4), shapes()]):
        for n, name in enumerate(CLASSES, start=1):
            assert np.array_equal(source.mask(i, n), masks[name])


def test_what_polygons_can_say_is_polygons(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json", [labelled(**shapes())], CLASSES)
    ring, discs, corner = (a["segmentation"] for a in json.loads((tmp_path / "coco.json").read_text())["annotations"])
    assert isinstance(discs, list)
    assert len(discs) == 2
    assert isinstance(ring["counts"], str)
    assert isinstance(corner["counts"], str)


def test_scores_are_written_where_there_are_any(tmp_path: Path) -> None:
    masks = shapes()
    found = {"plate": Found(masks["plate"], 0.75), "mug": Found(masks["mug"]), "spoon": Found(masks["spoon"], 0.0)}
    write_coco(tmp_path / "coco.json", [Labelled("a.jpg", SIZE, found)], CLASSES)
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert [a.get("score") for a in annotations] == [0.75, None, 0.0]


def test_ignored_pixels_are_none_of_the_object(tmp_path: Path) -> None:
    mask = np.full(SIZE, 255, np.uint8)
    mask[5:9, 5:9] = 1
    write_coco(tmp_path / "coco.json", [labelled(mug=mask, plate=np.full(SIZE, 255, np.uint8))], CLASSES)
    (annotation,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (annotation["area"], annotation["category_id"]) == (16, 2)


def test_a_mask_of_another_size_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write_coco(tmp_path / "coco.json", [labelled(mug=np.ones((5, 5), bool))], CLASSES)
    assert not [*tmp_path.iterdir()]


# CVAT


def as_cvat_reads(image: ElementTree.Element) -> Masks:
    masks: Masks = {}
    height, width = int(image.attrib["height"]), int(image.attrib["width"])
    for shape in image:
        mask = np.zeros((height, width), bool)
        if shape.tag == "mask":
            left, top, w, h = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
            lengths = [int(length) for length in shape.attrib["rle"].split(",")]
            assert sum(lengths) == w * h
            values = np.repeat(np.arange(len(lengths)) % 2, lengths)
            mask[top : top + h, left : left + w] = values.reshape(h, w)
        else:
            assert shape.tag == "polygon"
            points = [float(n) for pair in shape.attrib["points"].split(";") for n in pair.split(",")]
            mask = coco_mask.decode(coco_mask.frPyObjects([points], height, width))[..., 0].astype(bool)
        name = shape.attrib["label"]
        masks[name] = masks.get(name, np.zeros((height, width), bool)) | mask
    return masks


def test_cvat_reads_the_masks(tmp_path: Path) -> None:
    pictures = [labelled("a/desk.jpg", **shapes()), labelled("empty.png"), labelled("noise.jpg", **noise(2))]
    write_cvat(tmp_path / "cvat.xml", pictures, CLASSES)
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/size") == "3"
    assert [name.text for name in root.findall("meta/task/labels/label/name")] == [*CLASSES]
    images = root.findall("image")
    assert [i.attrib["id"] for i in images] == ["0", "1", "2"]
    assert [i.attrib["name"] for i in images] == ["a/desk.jpg", "empty.png", "noise.jpg"]
    for image, masks in zip(images, [shapes(), {}, noise(2)], strict=True):
        found = as_cvat_reads(image)
        assert found.keys() == masks.keys()
        for name, mask in masks.items():
            assert np.array_equal(found[name], mask), name
    assert [shape.attrib.get("group_id") for shape in images[0]] == [None, "2", "2", None]


def test_names_of_any_kind_are_in_the_files(tmp_path: Path) -> None:
    name, file_name = "a <b> & \"c\" 'd'\té😀", "Straße & <1>\n.jpg"
    picture = Labelled(file_name, SIZE, {name: Found(shapes()["mug"])})
    write_cvat(tmp_path / "cvat.xml", [picture], [name])
    write_coco(tmp_path / "coco.json", [picture], [name])
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert root.findtext("meta/task/labels/label/name") == name
    assert root.find("image").attrib["name"] == file_name  # type: ignore[union-attr]
    assert root.find("image/polygon").attrib["label"] == name  # type: ignore[union-attr]
    assert COCO(str(tmp_path / "coco.json")).cats[1]["name"] == name


@pytest.mark.parametrize("strange", ["\x00", "\x1b", "\udcff", "\uffff"])
def test_what_xml_cannot_hold_is_refused(tmp_path: Path, strange: str) -> None:
    with refused(DataError, "XML", "rename"):
        write_cvat(tmp_path / "cvat.xml", [labelled(f"a{strange}.jpg")], CLASSES)
    assert not [*tmp_path.iterdir()]
