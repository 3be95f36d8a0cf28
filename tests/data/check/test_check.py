"""`sd-aanet check`: every defect with its line, the exit code, the table, check.json and the picture of samples."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from commands import Done, nothing_left, ran, refused, run
from data.fake_coco import annotation, coco_pairs, make_coco, write_masks
from data.fake_folder import OBJECT, folder_pairs, make_folder, make_json
from data.fake_fss import fss_pairs, make_fss
from data.fake_voc import make_voc, voc_pairs
from data.fakes import Pair, cut, picture_of, spoil, write_picture
from sd_aanet.data import reading

FOLDER = ("dataset=folder", "dataset.root=own", "shot=1", "min_object_pixels=100", "out=found")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(out: str = "found") -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path(out, "check.json").read_text(encoding="utf-8"))
    return summary


def rows(done: Done) -> list[str]:
    """Lines without their columns."""
    return [" ".join(line.split()) for line in done.out.splitlines()]


def failed(*arguments: object) -> Done:
    """The command, which has to find errors."""
    done = run("check", *arguments)
    assert done.code == 1, done
    assert done.err == ""
    return done


# Data sets without a defect


CLEAN: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "pascal5i": (lambda root: make_voc(root, images=2), ("min_object_pixels=1000",)),
    "coco20i": (lambda root: make_coco(root, images=2), ("min_object_pixels=1000",)),
    "fss1000": (make_fss, ()),
    "folder": (make_folder, ("min_object_pixels=100",)),
    "folder, JSON": (make_json, ("min_object_pixels=100",)),
}


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_wrong_with_a_clean_data_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FEW", 1000)
    make, settings = CLEAN[name]
    make(Path("root"))
    done = ran("check", f"dataset={name.partition(',')[0]}", "dataset.root=root", "shot=1", *settings, "out=found")
    assert "\nnothing wrong\n" in done.out
    assert done.out.endswith("written: found/check.json, found/samples.png\n")
    assert found()["defects"] == {}
    assert (found()["errors"], found()["warnings"]) == (0, 0)
    assert sorted(path.name for path in Path("found").iterdir()) == ["check.json", "samples.png"]


def test_the_embedded_data_set_is_checked_without_any_setting() -> None:
    done = ran("check", "dataset.source.images=40", "dataset.source.size=33", "shot=1", "min_object_pixels=1")
    assert done.out.startswith("shapes, 20 classes\n")
    (folder,) = Path("checks").iterdir()
    assert found(str(folder))["splits"]["train"]["images"] == 40


def test_a_real_data_set(shared: Path) -> None:
    done = failed("dataset=coco20i", f"dataset.root={shared / 'data/tiny_coco'}", "out=found", "shot=1")
    assert "\nand 50 classes with more images, see check.json\n" in done.out
    assert set(found()["defects"]) == {"few"}
    person = found()["classes"][0]
    assert (person["name"], person["train"], person["val"]) == (
        "person",
        {"images": 26, "usable": 25},
        {"images": 23, "usable": 18},
    )
    with Image.open("found/samples.png") as picture:
        assert picture.width > picture.height > 1000, "four rows of five"


# What is in it


def test_sizes_classes_and_objects_are_counted() -> None:
    make_folder(Path("own"))
    (picture, mask), *_ = folder_pairs(Path("own"))
    small = np.zeros((90, 50), np.uint8)
    small[:5, :5] = 2
    write_picture(picture, picture_of(small, "small"))
    Image.fromarray(small).save(mask)
    done = ran("check", *FOLDER)
    assert done.out.startswith("folder, 4 classes\n")
    for row in (
        "train val",
        "images 12 12",
        "width 50 to 80, median 80 80 to 80, median 80",
        "height 60 to 90, median 60 60 to 60, median 60",
        "without an object 0 0",
        "objects under 100 px 1 0",
    ):
        assert row in rows(done)
    dog = found()["classes"][1]
    assert f"dog fold {dog['novel_in'][0]} 3 of 4 3 of 3" in rows(done)
    assert dog | {"novel_in": []} == {
        "id": 2,
        "name": "dog",
        "novel_in": [],
        "train": {"images": 4, "usable": 3},
        "val": {"images": 3, "usable": 3},
    }
    assert found()["splits"]["train"] == {
        "images": 12,
        "unreadable": 0,
        "height": {"min": 60, "median": 60, "max": 90},
        "width": {"min": 50, "median": 80, "max": 80},
        "empty": 0,
        "small": 1,
    }


def test_of_many_classes_the_poorest_stand_on_the_terminal() -> None:
    classes = [f"class{n:03d}" for n in range(130)]
    make_folder(Path("own"), classes=classes, images=1)
    lines = failed(*FOLDER).out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("class "))
    assert lines[start + 1].split() == ["class000", "fold", "0", *["1", "of", "1"] * 2]
    assert lines[start + 31] == "and 100 classes with more images, see check.json"
    assert len(found()["classes"]) == 130


def test_samples_show_classes_with_their_masks() -> None:
    make_folder(Path("own"))
    ran("check", *FOLDER)
    with Image.open("found/samples.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 4 * 250 + 10, "a class a column"
    cell = pixels[10:190, 10:250].astype(int)  # the first picture, 240 x 180
    tinted = (cell[..., 0] > 100) & (cell[..., 0] < 180) & (cell[..., 2] > 50)  # red under a veil of blue
    assert abs(tinted.mean() - OBJECT / 4800) < 0.03


# What is wrong with it: files


DEFECTS = {
    "missing picture": ("missing", "image {picture} does not exist: check the path, or the list that names it"),
    "missing mask": ("missing", "mask {mask} does not exist: check the path, or the list that names it"),
    "no picture": ("unreadable", "image {picture} cannot be read (it is not an image)"),
    "no mask": ("unreadable", "mask {mask} cannot be read (it is not an image)"),
    "truncated picture": ("unreadable", "image {picture} cannot be read (image file is truncated"),
    "truncated mask": ("unreadable", "mask {mask} cannot be read ("),
    "size": ("size", "mask {mask} is 60x50 but its image {picture} is {size}, expected the same width and"),
    "resized": ("size", "mask {mask} is {size} but its image {picture} is 60x50, expected the same width and height:"),
    "unknown class": (
        "values",
        "mask {mask} holds the index 77, expected 0 to {classes} or 255 (ignore): save it with",
    ),
    "colours": ("values", "mask {mask} holds colours (mode RGB), expected one class index a pixel: save it as a"),
    "alpha": ("values", "mask {mask} holds colours (mode RGBA), expected one class index a pixel: save it as a"),
    "deep": ("values", "mask {mask} holds more than 8 bits a pixel (mode I;16), expected one class index a pixel:"),
    "ignored": ("ignored", "mask of '{key}' shows no class, only 255 (ignore): give objects the index of their class"),
}
"""Ways to spoil a pair: the kind of the defect, and how its line begins."""


class Fake(NamedTuple):
    """How a data set is made, its pairs, their size, in which ways they can be spoilt, and the number of classes."""

    make: Callable[[Path], Path]
    pairs: Callable[[Path], list[Pair]]
    size: str
    ways: Sequence[str]
    classes: int = 0


def all_but(*words: str) -> list[str]:
    return [way for way in DEFECTS if not any(word in way for word in words)]


OF_PICTURES = ["no picture", "truncated picture", "resized"]
"""What can be wrong with a picture alone."""
SPOILT = {
    "pascal5i": Fake(lambda root: make_voc(root, images=2), voc_pairs, "96x72", list(DEFECTS), 20),
    "fss1000": Fake(make_fss, fss_pairs, "60x60", [*all_but("missing", *list(DEFECTS)[8:]), "missing mask"]),
    "coco20i": Fake(make_coco, coco_pairs, "96x72", [*OF_PICTURES, "missing picture"]),
    "coco20i, masks": Fake(
        lambda root: write_masks(make_coco(root)), coco_pairs, "96x72", all_but("unknown class"), 80
    ),
    "folder": Fake(make_folder, folder_pairs, "80x60", all_but("missing"), 4),
    "folder, JSON": Fake(make_json, folder_pairs, "80x60", OF_PICTURES),
}
"""What is missing in a folder of one's own belongs to no image: see below."""


def spoilt(name: str) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """A data set with a defect of each kind, and the arguments that check it."""
    fake = SPOILT[name]
    root = fake.make(Path("root").absolute())
    settings = (f"dataset={name.partition(',')[0]}", f"dataset.root={root}", "shot=1", "min_object_pixels=100")
    return spoil(fake.pairs(root), *fake.ways), (*settings, "out=found")


def line_of(way: str, pair: Pair, fake: Fake) -> tuple[str, str]:
    """The kind of a defect, and how its line begins."""
    kind, line = DEFECTS[way]
    return kind, line.format(picture=pair[0], mask=pair[1], key=pair[0].stem, size=fake.size, classes=fake.classes)


@pytest.mark.parametrize("name", SPOILT)
def test_every_defect_of_a_file_is_one_line_that_names_it(name: str) -> None:
    pairs, settings = spoilt(name)
    assert len(pairs) == len(SPOILT[name].ways)
    done = failed(*settings)
    defects = found()["defects"]
    for way, pair in pairs.items():
        kind, start = line_of(way, pair, SPOILT[name])
        assert len([line for line in defects[kind] if line.startswith(start)]) == 1, (way, defects)
        assert f"\n  {start}" in done.out
    told = sum(len(lines) for kind, lines in defects.items() if kind != "few")
    assert told == len(pairs), "each of them once"
    assert found()["splits"]["train"]["unreadable"] == sum("picture" in way for way in pairs)


def test_defects_are_the_same_from_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings = spoilt("pascal5i")
    failed(*settings)
    alone = found()
    monkeypatch.setattr(reading, "FEW", 0)
    done = run("check", *settings, "out=again")
    assert done.code == 1
    assert "Reading the val images of pascal5i: 100%" in done.err
    assert found("again") == alone


def test_of_many_defects_of_a_kind_the_first_are_shown_and_the_number() -> None:
    make_folder(Path("own"))
    for picture, _ in folder_pairs(Path("own")):
        picture.write_bytes(b"no picture")
    out = failed(*FOLDER).out
    assert "\nerror: files that cannot be read (12)\n" in out
    assert out.count("images/train_") == 10
    assert "\n  and 2 more, see check.json\n" in out
    assert len(found()["defects"]["unreadable"]) == 12


@pytest.mark.parametrize("masks", ["good", "bad"])
def test_a_data_set_without_one_good_picture_has_no_samples(masks: str) -> None:
    make_folder(Path("own"))
    for split in ("train", "val"):
        for picture, mask in folder_pairs(Path("own"), split):
            cut(picture)
            if masks == "bad":
                mask.write_bytes(b"no mask")
    done = failed(*FOLDER)
    assert done.out.endswith("written: found/check.json\n")
    assert found()["splits"]["val"]["width"] is None
    assert "width - -" in rows(done)


# What is wrong with it: the whole


def test_files_that_belong_to_no_image_are_warnings() -> None:
    make_folder(Path("own"), lists=False, images=6)
    pairs = folder_pairs(Path("own").absolute())
    spoil(pairs, "missing picture", "missing mask")
    out = ran("check", *FOLDER).out
    assert (
        f"\nwarning: files that are left out (2)\n  picture {pairs[1][0].relative_to(Path.cwd())} has no mask in" in out
    )
    assert f"mask {pairs[0][1].relative_to(Path.cwd())} has no picture in own/images, so that it is left out" in out
    assert out.splitlines()[-3] == "0 errors, 2 warnings"


def test_a_mask_without_its_picture_is_a_warning_for_fss1000() -> None:
    pairs = fss_pairs(make_fss(Path("root")))
    pairs[0][0].unlink()
    ran("check", "dataset=fss1000", "dataset.root=root", "shot=1", "out=found")
    assert found()["defects"] == {"stray": [f"mask {pairs[0][1]} has no picture beside it"]}


def test_an_annotated_picture_that_is_missing_is_an_error() -> None:
    make_json(Path("own"), lists=False, images=6)
    Path("own/images/train_000.jpg").unlink()
    out = failed(*FOLDER).out
    assert "\nerror: files that are missing (1)\n  picture train_000.jpg of " in out


def test_every_wrong_entry_of_a_list_is_an_error() -> None:
    """Ordinary use ends at the first of them."""
    root = make_folder(Path("own"), images=6)
    pairs = folder_pairs(root)
    for picture, mask in pairs[:2]:
        picture.unlink()
        mask.unlink()
    cut(pairs[2][0])
    for suffix in (".jpg", ".webp"):
        shutil.copy(pairs[3][0], root / f"images/twice{suffix}")
    done = failed(*FOLDER)
    assert (
        "\nerror: files that are missing (2)\n  image list own/train.txt names 'train_000', which is not an image"
        in done.out
    )
    assert "\nerror: wrong entries of lists or annotations (1)\n  own/images/twice.jpg and own/images/twice" in done.out
    assert set(found()["defects"]) == {"missing", "unreadable", "entry", "stray"}
    assert found()["errors"] == 4
    assert "images 22 24" in rows(done)
    refused(run("train", *FOLDER[:2], "strategy=cpu"), "twice.jpg and own/images/twice.webp have the same name")


def test_wrong_lines_of_the_benchmarks_lists_are_errors() -> None:
    lists = make_voc(Path("voc"), images=2) / "ImageSets/Segmentation"
    with (lists / "train.txt").open("a") as file:
        file.write("a.jpg b.png\nc.jpg d.png\n")
    (lists / "val.txt").write_text("")
    done = failed("dataset=pascal5i", "dataset.root=voc", "shot=1", "min_object_pixels=1000", "out=found")
    lines = sorted(found()["defects"]["entry"])
    assert [line.partition(",")[0] for line in lines] == [
        "image list voc/ImageSets/Segmentation/train.txt pairs files of different names in 'a.jpg b.png'",
        "image list voc/ImageSets/Segmentation/train.txt pairs files of different names in 'c.jpg d.png'",
        "image list voc/ImageSets/Segmentation/val.txt is empty",
    ]
    assert "images 40 0" in rows(done)
    root = make_fss(Path("fss"))
    with (root / "val.txt").open("a") as file:
        file.write("nothing\ntest_a\n")
    (root / "train.txt").write_text("")
    failed("dataset=fss1000", "dataset.root=fss", "shot=1", "out=found")
    lines = sorted(found()["defects"]["entry"])
    assert [line.partition(",")[0] for line in lines] == [
        "class 'test_a' is in the lists of val and of test in fss",
        "list fss/train.txt is empty",
        "list fss/val.txt names 'nothing'",
    ]


@pytest.mark.parametrize("dataset", ["folder", "coco20i"])
def test_every_wrong_entry_of_annotations_is_an_error(dataset: str) -> None:
    """Once, though both splits of a folder have the same file; and again, when it comes from the cache."""
    root = make_json(Path("own")) if dataset == "folder" else make_coco(Path("own"))
    path = next(root.rglob("*.json"))
    content = json.loads(path.read_text())
    entry = content["annotations"][0]
    number, first = len(content["annotations"]), content["images"][0]
    content["annotations"] += [entry | {"category_id": 1000}, annotation(first["id"], entry["category_id"], "polygon")]
    content["images"].append(first | {"id": 5000, "height": 0})
    content["annotations"].append(entry | {"image_id": 5000})
    path.write_text(json.dumps(content))
    for _ in range(2):
        done = failed(f"dataset={dataset}", *FOLDER[1:])
        assert "\nerror: wrong entries of lists or annotations (3)\n" in done.out
        (kind,) = found()["defects"]
        starts = (f"images[{len(content['images']) - 1}].height", *(f"annotations[{number + n}]" for n in range(2)))
        for line, start in zip(found()["defects"][kind], starts, strict=True):
            assert line.startswith(f"annotations {path.absolute()}: {start}")
        assert found()["splits"]["train"]["images"] == len(content["images"]) - 1 if dataset == "coco20i" else 12
    refused(run("train", f"dataset={dataset}", FOLDER[1], "strategy=cpu"), "height is 0, expected a whole number")


def test_annotations_of_which_nothing_is_left_are_refused_by_the_first_cause() -> None:
    path = make_json(Path("own")) / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry | {"category_id": 99} for entry in content["annotations"]]
    path.write_text(json.dumps(content))
    with nothing_left():
        refused(run("check", *FOLDER), "annotations[0].category_id is 99, expected the id of one of the 4")


def test_objects_without_an_outline_are_a_warning() -> None:
    path = make_json(Path("own")) / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(content))
    out = ran("check", *FOLDER).out
    assert "\nwarning: objects without an outline (1)\n  annotations " in out
    assert "hold objects without an outline (1), which are left out: export polygons" in out


def test_classes_with_too_few_images_say_for_what() -> None:
    make_folder(Path("own"))
    (Path("own") / "folds.yaml").write_text("[[cat], [dog]]")
    out = failed(*FOLDER, "shot=3").out
    assert "\nerror: classes with too few images (6)\n" in out
    needs = "3 with 100 pixels of it or more (3 with any), expected 4 for shot=3: add images, or lower shot or"
    assert f"\n  class 'dog', novel in fold=1, has too few images in val: {needs}" in out
    assert f"\n  class 'cup', a base class, has too few images in train: {needs}" in out
    assert "'cup', novel" not in out
    ran("check", *FOLDER, "shot=2")
    out = failed(*FOLDER, f"min_object_pixels={OBJECT + 1}").out
    assert f"in val: 0 with {OBJECT + 1} pixels of it or more (3 with any), expected 2 for shot=1" in out
    refused(
        run("train", *FOLDER[:2], "fold=1", "shot=3", "min_object_pixels=100", "strategy=cpu"), "shot=3 needs 4 images"
    )


def test_too_few_images_of_the_stages_of_fss1000() -> None:
    make_fss(Path("root"), images=2)
    out = failed("dataset=fss1000", "dataset.root=root", "shot=2", "out=found").out
    for name, role, split in (
        ("train_a", "a base class", "train"),
        ("val_a", "a validation class", "val"),
        ("test_a", "novel in fold=0", "val"),
    ):
        assert f"class '{name}', {role}, has too few images in {split}: 2 with 1 pixels of it or more" in out


def test_images_in_both_splits_are_errors_by_name_and_by_content() -> None:
    root = make_folder(Path("own"))
    with (root / "val.txt").open("a") as file:
        file.write("train_000\n")
    shutil.copy(root / "images/train_001.jpg", root / "images/val_005.jpg")
    shutil.copy(root / "images/train_002.jpg", root / "images/train_003.jpg")
    out = failed(*FOLDER).out
    assert "\nerror: images in both train and val (2)\n" in out
    assert found()["defects"] == {
        "leak": [
            "image 'train_000' is in train and in val: take it off one of them",
            "images 'train_001' of train and 'val_005' of val are the same picture: leave one out",
        ],
        "repeated": ["images 'train_002' of train and 'train_003' of train are the same picture: leave one out"],
    }


def test_an_image_on_both_lists_of_pascal5i() -> None:
    root = make_voc(Path("root"), images=2)
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("train_007\n")
    failed("dataset=pascal5i", "dataset.root=root", "shot=1", "min_object_pixels=1000", "out=found")
    assert found()["defects"] == {"leak": ["image 'train_007' is in train and in val: take it off one of them"]}


def test_a_picture_that_is_there_twice_in_a_split_is_a_warning() -> None:
    root = make_folder(Path("own"))
    picture = Image.open(root / "images/val_000.jpg")
    picture.save(root / "images/val_001.png")  # the same pixels in other bytes
    (root / "images/val_001.jpg").unlink()
    out = ran("check", *FOLDER).out
    assert "\nwarning: images that occur twice (1)\n  images 'val_000' of val and 'val_001' of val are the same" in out
    assert out.splitlines()[-3] == "0 errors, 1 warning"


def test_with_one_class_nothing_is_trained_and_no_image_is_in_two_splits() -> None:
    make_folder(Path("own"), classes=["cat"])
    done = ran("check", *FOLDER)
    assert list(found()["splits"]) == ["val"]
    assert found()["classes"] == [{"id": 1, "name": "cat", "novel_in": [0], "val": {"images": 6, "usable": 6}}]
    assert "cat fold 0 6 of 6" in rows(done)


# The command


def test_help_names_its_settings() -> None:
    out = ran("check", "--help").out
    assert out.startswith("usage: sd-aanet check [KEY=VALUE ...]")
    assert "shot: 5  # K" in out
    assert "dataset=shapes  # of coco20i, folder, fss1000, pascal5i, shapes" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dataset=folder",), ("dataset.root is not set",)),
        (("dataset=folder", "dataset.root=nowhere"), ("dataset root nowhere is not a folder", "set dataset.root")),
        (("dataset=coco20i", "dataset.root=nowhere"), ("dataset root nowhere lacks COCO's layout",)),
        (("dataset=fss1000", "dataset.root=nowhere"), ("dataset root nowhere is not a folder",)),
        (("dataset=pascal5i", "dataset.root=nowhere"), ("dataset root nowhere is not a folder",)),
        (("shot=0",), ("shot=0, expected a whole number of at least 1",)),
        (("min_object_pixels=-1",), ("min_object_pixels=-1", "at least 0")),
        (
            ("dataset=folder", "dataset.root=nowhere", "dataset.source.val_share=half"),
            ("val_share=half, expected a numb",),
        ),
        (("dataset=folder", "dataset.root=nowhere", "dataset.source.folds=0"), ("folds=0", "at least 1, or null")),
        (("dataset.source.images=3", "out=/proc/no/such"), ("/proc/no/such", "cannot be written")),
        (("fold=1",), ("setting 'fold' is unknown",)),
    ],
    ids=lambda given: " ".join(given),
)
def test_what_cannot_be_checked_is_refused_in_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    with nothing_left():
        refused(run("check", *arguments), *words)


def test_of_several_data_sets_one_with_errors_is_enough() -> None:
    make_folder(Path("own"))
    jobs = ("-m", "shot=1,3", "dataset=folder", f"dataset.root={Path('own').absolute()}", "min_object_pixels=100")
    assert run("check", *jobs).code == 1
    (sweep,) = Path("checks/sweeps").iterdir()
    assert [found(str(job))["errors"] > 0 for job in sorted(sweep.iterdir()) if job.is_dir()] == [False, True]
