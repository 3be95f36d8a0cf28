"""COCO-20i: from COCO's own files and from masks, in both arrangements of the folds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.fake_coco import make_coco, write_masks
from data.fakes import write_mask
from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.coco20i import Coco20i
from sd_aanet.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout; not to be changed."""
    return make_coco(tmp_path_factory.mktemp("made") / "coco", images=1)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "coco")


def test_cocos_own_files(made: Path) -> None:
    source = Coco20i(made, "val")
    assert len(source) == 81
    assert len(source.classes) == 80
    assert source.key(5) == "COCO_val2014_000000000005"
    image, mask = source.image(5), source.mask(5, 6)
    assert image.shape == (72, 96, 3)
    assert (mask == 1).sum() == 2400 - 200, "the large object without the small one on it"
    assert (source.mask(5, 7) == 1).sum() == 200
    label = source.label(5)
    assert np.array_equal((label > 0)[:60] & (label < 255)[:60], image[:60, :, 0] > 150)
    pixels = source.pixels()
    assert pixels[5, 5:7].tolist() == [2200, 200]
    assert pixels[-1].sum() == 0, "a picture without annotations"


def test_folds_in_both_arrangements(made: Path) -> None:
    usual, blocks = Coco20i(made, "val"), Coco20i(made, "val", arrangement="contiguous")
    assert usual.fold_classes(1) == tuple(range(2, 81, 4))
    assert blocks.fold_classes(1) == tuple(range(21, 41))
    for source in (usual, blocks):
        assert sorted(c for fold in range(4) for c in source.fold_classes(fold)) == list(range(1, 81))
    with pytest.raises(ConfigError, match=r"arrangement='random', expected one of contiguous, interleaved"):
        Coco20i(made, "val", arrangement="random")
    with pytest.raises(ConfigError, match=r"folds=3, expected a divisor of the 80 classes"):
        Coco20i(made, "val", folds=3)


def test_masks_and_annotations_give_the_same_labels(root: Path) -> None:
    drawn = Coco20i(root, "val")
    labels, pixels = [drawn.label(i) for i in range(len(drawn))], drawn.pixels()
    write_masks(root)
    read = Coco20i(root, "val")
    assert read.label_file(0).endswith("masks/val/COCO_val2014_000000000000.png")
    assert all(np.array_equal(read.label(i), label) for i, label in enumerate(labels))
    assert np.array_equal(read.pixels(), pixels)
    Image.new("P", (96, 72)).save(read.label_file(0))
    assert not Coco20i(root, "val").label(0).any(), "the masks are what is read"


def test_prepared_files_have_no_year(root: Path) -> None:
    for split in ("train", "val"):
        (root / f"{split}2014").rename(root / split)
        (root / f"annotations/instances_{split}2014.json").rename(root / f"annotations/instances_{split}.json")
    assert len(Coco20i(root, "train")) == 81


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools, with NumPy 2
def test_real_pictures(split: Split, shared: Path) -> None:
    """Each object's pixels, by COCO's own tools, are of its class unless something smaller covers them."""
    root = shared / "data/tiny_coco"
    source = Coco20i(root, split)
    assert len(source) == 50
    coco = COCO(root / f"annotations/instances_{split}2017.json")
    ids = {entry["file_name"]: entry["id"] for entry in coco.dataset["images"]}
    category_ids = sorted(coco.getCatIds())
    for i in range(len(source)):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=ids[f"{source.key(i)}.jpg"]))
        masks = [(category_ids.index(a["category_id"]) + 1, a["iscrowd"], coco.annToMask(a)) for a in annotations]
        expected = np.zeros(source.image(i).shape[:2], np.uint8)
        for c, crowd, mask in sorted(masks, key=lambda found: (not found[1], -int(found[2].sum()))):
            expected[mask == 1] = 255 if crowd else c
        assert np.array_equal(source.label(i), expected)


def test_layouts_that_are_not_cocos(root: Path) -> None:
    for missing in (root / "val2014", root / "annotations/instances_val2014.json"):
        missing.rename(root / "moved")
        with pytest.raises(
            DataError, match=r"lacks COCO's layout, expected annotations/instances_val2014\.json and the"
        ):
            Coco20i(root, "val")
        (root / "moved").rename(missing)
    content = json.loads((root / "annotations/instances_val2014.json").read_text())
    content["categories"].append({"id": 200, "name": "yak"})
    (root / "annotations/instances_val2014.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"has 81 categories of 81 names, expected COCO's 80: for other data sets .* dataset=folder"
    ):
        Coco20i(root, "val")
    content["categories"] = [*content["categories"][:79], content["categories"][79] | {"name": "class 1"}]
    (root / "annotations/instances_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has 80 categories of 79 names, expected COCO's 80"):
        Coco20i(root, "val")


def test_what_does_not_fit_names_its_files(root: Path) -> None:
    source = Coco20i(root, "val")
    Image.new("RGB", (50, 40)).save(source.image_file(0))
    with pytest.raises(DataError, match=r"instances_val2014\.json is 96x72 but its image .*000\.jpg is 50x40"):
        source.label(0)
    Path(source.image_file(0)).unlink()
    with pytest.raises(DataError, match=r"image .*000\.jpg does not exist"):
        source.image(0)
    write_mask(root / "masks/val/COCO_val2014_000000000001.png", np.full((72, 96), 81, np.uint8))
    masked = Coco20i(root, "val")
    with pytest.raises(DataError, match=r"mask .*000001\.png holds the index 81, expected 0 to 80 or 255"):
        masked.count(1)
    with pytest.raises(DataError, match=r"mask .*000002\.png does not exist"):
        masked.count(2)


def test_objects_with_boxes_alone_are_told(root: Path) -> None:
    path = root / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"][:3]:
        del entry["segmentation"]
    path.write_text(json.dumps(content))
    (stray,) = Coco20i(root, "val").strays()
    assert str(stray).endswith(
        "instances_val2014.json hold objects without an outline (3), which are left out: export polygons"
    )
    assert stray.defect == "outline"
