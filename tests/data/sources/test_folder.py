"""Folders of one's own pictures: both layouts, divisions, what exporters and file systems make of them."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.fake_folder import CLASSES, HEIGHT, OBJECT, WIDTH, folder_pairs, make_folder, make_json
from data.fakes import Array8, picture_of, write_mask, write_picture
from examples import refused
from sd_aanet.data import reading
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.sources import layouts
from sd_aanet.data.sources.folder import Folder
from sd_aanet.data.sources.refusal import collecting
from sd_aanet.errors import ConfigError, DataError

EXPORTERS: dict[str, dict[str, Any]] = {
    "labelme": {
        "pictures": "JPEGImages/",
        "file_name": "JPEGImages/{key}.jpg",
        "first_id": 0,
        "parents": ["_background_"],
    },
    "CVAT": {"annotations": "annotations/instances_default.json"},
    "CVAT with a subset": {"annotations": "annotations/instances_default.json", "pictures": "images/default/"},
    "Label Studio": {"annotations": "result.json", "file_name": "images/{key}.jpg", "first_id": 0},
    "Label Studio on Windows": {"annotations": "result.json", "file_name": "images\\{key}.jpg", "first_id": 0},
    "Label Studio's own paths": {"annotations": "result.json", "file_name": "../../data/media/upload/1/{key}.jpg"},
    "Roboflow": {
        "annotations": "_annotations.coco.json",
        "pictures": "",
        "first_id": 0,
        "parents": ["animals"],
    },
}


def labels(source: Folder) -> list[Array8]:
    return [source.label(i) for i in range(len(source))]


def keys(source: Folder) -> list[str]:
    return [source.key(i) for i in range(len(source))]


# The two layouts


def test_masks_and_their_list_of_classes(tmp_path: Path) -> None:
    source = Folder(make_folder(tmp_path), "val")
    assert source.classes == CLASSES
    assert keys(source) == [f"val_{number:03d}" for number in range(12)]
    assert source.folds == 4
    pixels = source.pixels()
    assert pixels.tolist() == [[OBJECT * (number % 4 == c) for c in range(4)] for number in range(12)]
    for i in range(12):
        mask, image = source.mask(i, i % 4 + 1), source.image(i)
        assert np.array_equal(mask[:50] == 1, image[:50, :, 0] > 150), "the picture is red where the object is"
        assert not source.mask(i, (i + 1) % 4 + 1).any()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_annotations_as_they_are_exported(exporter: str, tmp_path: Path) -> None:
    reference = Folder(make_folder(tmp_path / "masks"), "train")
    source = Folder(make_json(tmp_path / "json", **EXPORTERS[exporter]), "train")
    assert source.classes == reference.classes
    assert [key.rpartition("/")[2] for key in keys(source)] == keys(reference)
    for one, other in zip(labels(source), labels(reference), strict=True):
        assert np.array_equal(one, other)
    for i in range(len(source)):
        assert np.array_equal(source.image(i), reference.image(i))
    assert np.array_equal(source.pixels(), reference.pixels())
    assert source.strays() == []


def roboflow(root: Path) -> Path:
    """A divided export: pictures of one name in both, and in valid/ no object of the last class."""
    make_json(root / "train", **EXPORTERS["Roboflow"], lists=False)
    make_json(root / "valid", **EXPORTERS["Roboflow"], lists=False)
    path = root / "valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != len(CLASSES)]
    path.write_text(json.dumps(content))
    return root


def test_the_folders_of_a_divided_export_are_the_splits(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    (root / "test").mkdir()
    (root / "test/_annotations.coco.json").write_text("passed over")
    alone = Folder(make_json(tmp_path / "train_alone", **EXPORTERS["Roboflow"]), "train", val_share=0.5)
    for split, folder in (("train", "train"), ("val", "valid")):
        source = Folder(root, split)  # type: ignore[arg-type]
        assert source.classes == alone.classes == CLASSES
        assert len(source) == 24
        assert {key.partition("/")[0] for key in keys(source)} == {folder}
        assert source.image_file(0) == f"{root}/{folder}/train_000.jpg"
        assert source.label_files() == [f"{root}/{folder}/_annotations.coco.json"]
        assert np.array_equal(source.label(2), alone.label(2))
        assert source.strays() == []
    assert Folder(root, "train").pixels().sum(axis=0).tolist() == [6 * OBJECT] * 4
    assert Folder(root, "val").pixels().sum(axis=0).tolist() == [6 * OBJECT] * 3 + [0]
    (root / "train.txt").write_text("train/train_001\nvalid/train_001\n")
    (root / "val.txt").write_text("valid/val_001.jpg\n")
    assert keys(Folder(root, "train")) == ["train/train_001", "valid/train_001"], "lists of one's own come first"


def test_the_folders_of_an_export_have_the_same_categories(tmp_path: Path) -> None:
    path = roboflow(tmp_path) / "valid/_annotations.coco.json"
    path.write_text(path.read_text().replace('"cup"', '"mug"'))
    with pytest.raises(
        DataError, match=r"train/_ann.* and .*valid/_ann.* have different categories, expected the same"
    ):
        Folder(tmp_path, "val")


def test_both_layouts_make_episodes(tmp_path: Path) -> None:
    for root in (make_folder(tmp_path / "masks"), make_json(tmp_path / "json")):
        source = {"_target_": "sd_aanet.data.sources.folder.Folder", "root": str(root)}
        small = {"size": 33, "episodes": 4, "test_episodes": 4, "min_object_pixels": 100, "select_on": "none"}
        data = EpisodeDataModule(source, shot=2, batch_size=2, **small)
        data.setup()
        assert len(data.classes().test) == 1
        assert len(data.classes().train) == 3
        batches = [*data.train_dataloader(), *data.test_dataloader()]
        assert all((episode.support_mask == 1).any() for episode in batches)


# Divisions


def test_a_users_folds_come_first_and_may_leave_classes_that_are_always_trained(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "folds.yaml").write_text("[[fox], [cat, cup]]")
    source = Folder(root, "val")
    assert [source.fold_classes(fold) for fold in range(source.folds)] == [(4,), (1, 3)]
    assert Folder(root, "val", folds=2).fold_classes(0) != (4,), "asked for, automatic ones are made"


def test_with_one_class_both_splits_hold_every_picture_and_nothing_is_trained(tmp_path: Path) -> None:
    root = make_folder(tmp_path, classes=["cat"], images=3)
    train, val = Folder(root, "train"), Folder(root, "val")
    assert keys(train) == keys(val)
    assert len(val) == 6
    assert (val.folds, val.fold_classes(0)) == (1, (1,))
    source = {"_target_": "sd_aanet.data.sources.folder.Folder", "root": str(root)}
    data = EpisodeDataModule(source, size=33, min_object_pixels=100, test_episodes=3, select_on="none")
    data.setup("test")
    with pytest.raises(ConfigError, match=r"fold=0 of folder leaves no class to train on.*pascal5i.*evaluate"):
        data.setup("fit")


def test_one_fold_of_some_classes_leaves_the_others_to_train_on_other_pictures(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "folds.yaml").write_text("[[cat, dog]]")
    assert not set(keys(Folder(root, "train"))) & set(keys(Folder(root, "val")))
    assert keys(Folder(root, "train", folds=1)) == keys(Folder(root, "val", folds=1))


def test_without_lists_names_decide_whatever_else_is_there(tmp_path: Path) -> None:
    root = make_folder(tmp_path, images=10, lists=False)
    train, val = keys(Folder(root, "train")), keys(Folder(root, "val"))
    assert sorted(train + val) == sorted(path.stem for path in (root / "images").iterdir())
    assert val[:3] == ["train_008", "train_016", "train_022"]
    assert 10 < len(val) < 40
    assert set(val) < set(keys(Folder(root, "val", val_share=0.6)))
    for picture, mask in folder_pairs(root)[::2]:
        picture.unlink()
        mask.unlink()
    assert set(keys(Folder(root, "val"))) < set(val)


@pytest.mark.parametrize(
    "line", ["{}", "{}.jpg", "{}.JPG", "images/{}.jpg", "./images/{}.jpg", "images\\{}.jpg", " {} \r"]
)
def test_a_list_may_name_pictures_in_several_ways(line: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "val.txt").write_text("\n".join(line.format(f"val_{n:03d}") for n in (3, 1, 3)) + "\n\n")
    assert keys(Folder(root, "val")) == ["val_001", "val_003"]


# What people have


def test_suffixes_blanks_umlauts_dots_and_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path, images=2, lists=False)
    apart = unicodedata.normalize("NFD", "Möwe")
    names = {"Foto 1.JPG": "Foto 1.PNG", f"{apart}.jpeg": "Möwe.png", "v1.2.png": "v1.2.bmp", "a/b/c.jpg": "a/b/c.tif"}
    for picture, mask in names.items():
        label = np.full((20, 30), 2, np.uint8)
        write_picture(root / "images" / picture, picture_of(label, picture))
        (root / "masks" / mask).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(root / "masks" / mask)
    (root / "train.txt").write_text("Foto 1\nMöwe\nv1.2\nc.jpg\n", encoding="utf-8")
    (root / "val.txt").write_text("v1.2.png\n")
    source = Folder(root, "train")
    assert keys(source) == ["Foto 1", "Möwe", "a/b/c", "v1.2"]
    assert source.pixels().tolist() == [[0, 600, 0, 0]] * 4
    assert keys(Folder(root, "val")) == ["v1.2"]
    assert source.strays() == []


def test_what_a_system_leaves_behind_is_no_picture(tmp_path: Path) -> None:
    root = make_json(tmp_path)
    for name in (".DS_Store", "images/.DS_Store", "images/._train_000.jpg", "._annotations.json", "images/Thumbs.db"):
        (root / name).write_bytes(b"\0\5\x16\7")
    (root / "images/.ipynb_checkpoints").mkdir()
    shutil.copy(root / "images/train_000.jpg", root / "images/.ipynb_checkpoints/train_000-checkpoint.jpg")
    assert Folder(root, "train").strays() == []


@pytest.mark.parametrize(
    "head", ["", "_background_\n", "__ignore__\n_background_\n", "background\n", "Background\n", "BACKGROUND\n"]
)
def test_classes_may_begin_with_the_background_and_come_from_any_editor(head: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "classes.txt").write_bytes(f"\ufeff{head}cat\ndog\ncup\nfox\n".replace("\n", "\r\n").encode())
    assert Folder(root, "val").classes == CLASSES


@pytest.mark.parametrize(
    "lines",
    [
        "0 background|1 cat|2 dog|3 cup|4 fox",
        "0: Background|1: cat|2: dog|3: cup|4: fox",
        "1. cat|2. dog|3. cup|4. fox",
        "1,cat|2,dog|3,cup|4,fox",
        "# label:color_rgb:parts:actions|background:0,0,0::|cat:1,2,3::|dog:4,5,6::|cup:7,8,9::|fox:9,9,9::",
        "# the classes, as in the masks|cat|# a comment|dog|cup|fox",
        "background:0,0,0::|cat:1,2,3::|dog:4,5,6::|cup:7,8,9:a,b:run|fox:9,9,9::",
    ],
)
def test_classes_may_be_numbered_or_a_map_of_labels(lines: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "classes.txt").write_text(lines.replace("|", "\n"))
    assert Folder(root, "val").classes == CLASSES


def test_numbers_that_are_all_of_a_name_are_the_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for names in (
        ("1 euro", "2 euro", "5 euro", "9 euro"),
        ("7", "8", "9", "10"),
        ("1.5 mm", "2.5 mm", "3 mm", "4 mm"),
    ):
        (root / "classes.txt").write_text("\n".join(names))
        assert Folder(root, "val").classes == names


def test_photographs_are_shown_as_they_were_labelled(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    picture, mask = folder_pairs(root, "val")[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(picture, exif=exif, quality=95, subsampling=0)
    source = Folder(root, "val")
    assert source.image(0).shape[:2] == source.label(0).shape == (60, 80)
    assert np.array_equal(source.label(0)[:50] == 1, source.image(0)[:50, :, 0] > 150)
    Image.open(mask).transpose(Image.Transpose.ROTATE_90).save(mask)
    with pytest.raises(DataError, match=r"val_000\.png is 60x80 but .*is 80x60.*as a viewer shows it \(EXIF\)$"):
        source.label(0)


def one_class(root: Path, *masks: Array8) -> Folder:
    """A data set of one class with these masks."""
    write(root / "classes.txt", "_background_\ncat\n")
    for number, mask in enumerate(masks):
        write_picture(root / f"images/{number}.jpg", picture_of(mask, str(number)))
        write_mask(root / f"masks/{number}.png", mask)
    return Folder(root, "val")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def block(value: int, ground: int = 0) -> Array8:
    label = np.full((HEIGHT, WIDTH), ground, np.uint8)
    label[5:35, 10:50] = value
    return label


@pytest.mark.parametrize("many", [False, True])
def test_with_one_class_masks_may_be_painted(many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FEW", 0 if many else 1000)
    source = one_class(tmp_path, block(255), block(255, 255), block(0))
    for i, expected in enumerate((block(1), block(1, 1), block(0))):
        assert np.array_equal(source.mask(i, 1), expected)
    write_mask(tmp_path / "masks/0.png", block(77))
    with pytest.raises(DataError, match="holds the index 77, expected 0 to 1 or 255"):
        Folder(tmp_path, "val").mask(0, 1)


@pytest.mark.parametrize("place", range(3))
def test_with_one_class_what_255_means_is_what_all_masks_together_say(place: int, tmp_path: Path) -> None:
    """One of 0 and 255 shows nothing but what is to be ignored, where another has the index of the class."""
    labels = [block(255), block(255, 255), block(0)]
    labels.insert(place, block(1, 255))
    source = one_class(tmp_path, *labels)
    assert all(np.array_equal(source.mask(i, 1), label) for i, label in enumerate(labels))
    write_mask(tmp_path / f"masks/{place}.png", block(255))  # painted it is, once that one is gone
    assert np.array_equal(Folder(tmp_path, "val").mask(place, 1), block(1))


def test_what_one_class_is_drawn_in_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_class(tmp_path, block(255), block(255))
    monkeypatch.setattr(layouts, "read_label", lambda *_: pytest.fail("read again"))
    Folder(tmp_path, "val")


def test_with_one_class_a_damaged_mask_is_told_when_it_is_read(tmp_path: Path) -> None:
    one_class(tmp_path, block(255), block(255))
    (tmp_path / "masks/0.png").write_bytes(b"no mask")
    source = Folder(tmp_path, "val")
    assert np.array_equal(source.mask(1, 1), block(1))
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        source.mask(0, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_that_are_turned_as_their_pictures_are_turned_back_with_them(orientation: int, tmp_path: Path) -> None:
    """By a tool that kept the photograph's EXIF."""
    label = block(1)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    exif = Image.Exif()
    exif[0x0112] = orientation
    ways = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    ways |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # the reverse of what EXIF says
    for path, upright in (("images/0.jpg", picture_of(label, "0")), ("masks/0.png", label)):
        (tmp_path / path).parent.mkdir()
        file = Image.fromarray(upright)
        if orientation > 1:
            file = file.transpose(Image.Transpose[ways[orientation]])
        file.save(tmp_path / path, exif=exif, quality=95, subsampling=0)
    write(tmp_path / "val.txt", "0")
    write(tmp_path / "train.txt", "0")
    source = Folder(tmp_path, "val")
    assert np.array_equal(source.label(0), label)
    assert np.array_equal(source.image(0)[:50, :, 0] > 150, label[:50] == 1)


def test_with_several_classes_255_is_to_be_ignored(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    mask = folder_pairs(root, "val")[0][1]
    write_mask(mask, (np.asarray(Image.open(mask)) == 1) * np.uint8(255))
    assert set(np.unique(Folder(root, "val").mask(0, 1))) == {0, 255}


# What belongs to nothing


def test_pictures_and_masks_without_the_other_are_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path, lists=False)
    pairs = folder_pairs(root)
    pairs[0][0].unlink()
    pairs[1][1].unlink()
    lines = [str(stray) for stray in Folder(root, "val").strays()]
    assert lines == [
        f"picture {pairs[1][0]} has no mask in {root}/masks, so that it is left out",
        f"mask {pairs[0][1]} has no picture in {root}/images, so that it is left out",
    ]
    assert {stray.defect for stray in Folder(root, "val").strays()} == {"stray"}


def test_annotated_pictures_that_are_missing_and_others_that_are_not_annotated_are_told(tmp_path: Path) -> None:
    root = make_json(tmp_path, lists=False)
    (root / "images/train_000.jpg").rename(root / "images/unknown.jpg")
    (root / "images/train_002.jpg").rename(root / "images/TRAIN_002.jpg")
    (root / "notes").mkdir()
    shutil.copy(root / "images/train_001.jpg", root / "notes/plot.jpg")  # not among the annotated ones
    of = f"of {root}/annotations.json is not in {root}"
    lines = [
        f"picture train_000.jpg {of}: put it beside it or into images/, or take its entry out",
        f"picture train_002.jpg {of}: call it as images/TRAIN_002.jpg is called",
    ]
    with collecting() as found:
        source = Folder(root, "val")
    assert [(error.defect, str(error)) for error in found] == [("missing", line) for line in lines]
    assert [str(stray) for stray in source.strays()] == [
        f"picture {root}/images/{name}.jpg is not in {root}/annotations.json, so that it is left out"
        for name in ("TRAIN_002", "unknown")
    ]
    with pytest.raises(DataError) as raised:
        Folder(root, "val")
    assert str(raised.value) == f"{lines[0]} (and 1 more like this: sd-aanet check lists them)"


def test_objects_without_an_outline_are_counted(tmp_path: Path) -> None:
    root = make_json(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    content["annotations"][0]["segmentation"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    (stray,) = Folder(root, "val").strays()
    assert stray.defect == "outline"
    assert str(stray) == (
        f"annotations {root}/annotations.json hold objects without an outline (1), which are left out: export polygons"
    )


def test_a_name_that_two_pictures_have_is_not_guessed(tmp_path: Path) -> None:
    root = make_json(tmp_path, pictures="a/", lists=False)
    (root / "b").mkdir()
    for picture in ("train_000.jpg", "train_001.jpg"):
        shutil.copy(root / "a" / picture, root / "b" / picture)
    with collecting() as found:
        Folder(root, "val")
    assert [(error.defect, str(error).split()[1]) for error in found] == [
        ("missing", "train_000.jpg"),
        ("missing", "train_001.jpg"),
    ]


@pytest.mark.parametrize("spelling", ["images/train_000.jpg", "images\\train_000.jpg", "./images/train_000.jpg"])
def test_one_picture_that_annotations_list_twice_is_not_guessed(spelling: str, tmp_path: Path) -> None:
    root = make_json(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    content["images"].append(content["images"][0] | {"id": 1000, "file_name": spelling})
    (root / "annotations.json").write_text(json.dumps(content))
    with refused(DataError, "list the picture", "images/train_000.jpg twice, as ", "one entry a picture: unite them"):
        Folder(root, "val")
    with collecting() as found:
        Folder(root, "val")
    assert len(found) == 1


def test_folders_that_link_in_a_circle_are_looked_into_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own")
    (root / "images/all").symlink_to(root)
    (root / "images/again").symlink_to(root / "images")
    (root / "masks/again").symlink_to(root / "masks")
    assert keys(Folder(root, "val")) == keys(Folder(make_folder(tmp_path / "other"), "val"))


# What cannot be opened


def broken(root: Path, what: str) -> None:
    """Break a folder with masks."""
    if what == "no images":
        (root / "images").rename(root / "pictures")
    elif what == "no masks":
        (root / "masks").rename(root / "labels")
    elif what == "no classes":
        (root / "classes.txt").unlink()
    elif what == "no pairs":
        for mask in (root / "masks").iterdir():
            mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    elif what == "two of a name":
        shutil.copy(root / "images/val_000.jpg", root / "images/val_000.png")
    elif what == "two masks of a name":
        shutil.copy(root / "masks/val_000.png", root / "masks/val_000.bmp")
    else:
        (root / what.partition("=")[0]).write_text(what.partition("=")[2].replace("|", "\n"))


BROKEN = {
    "no images": r"lacks the folder images, expected images/, masks/ and classes\.txt, or pictures.*: set dataset\.",
    "no masks": r"holds neither masks/ nor a JSON file, expected images/, masks/",
    "no classes": r"classes\.txt does not exist, expected the name of class n in line n: write it",
    "no pairs": r"none of the 24 pictures in .*images has the name of one of the 24 masks in .*, expected images/a\.",
    "two of a name": r"val_000\.jpg and .*val_000\.png have the same name, 'val_000', expected different names",
    "two masks of a name": r"val_000\.bmp and .*val_000\.png have the same name",
    "classes.txt=": r"classes\.txt holds 0 names, expected 1 to 254 different names, one per line: correct it",
    "classes.txt=cat|dog|cat": r"classes\.txt names 'cat' twice, expected 1 to 254 different names",
    "classes.txt=cat|Background|dog": r"classes\.txt names 'Background' behind a class, though its index is 0",
    "classes.txt=0 cat|1 dog": r"classes\.txt gives 'cat' the number 0, expected 1: only the background is 0",
    "classes.txt=0 background|1 cat|3 dog": r"classes\.txt gives 'dog' the number 3, expected 2: only the background",
    "val.txt=nobody": r"val\.txt names 'nobody', which is not an image with a mask.*: correct it",
    "val.txt=": r"val\.txt is empty, expected an image's name in each line: fill it, or remove both",
    "folds.yaml=[[yak]]": r"names the class 'yak', which does not exist",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_cannot_be_opened_says_why_in_one_line(what: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own")
    broken(root, what)
    with pytest.raises(DataError, match=BROKEN[what]) as raised:
        Folder(root, "val")
    assert "\n" not in str(raised.value)
    assert str(root) in str(raised.value)


def test_a_root_or_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset root .*nowhere is not a folder, expected images/.*: set dataset\.root"
    ):
        Folder(tmp_path / "nowhere", "val")
    root = make_folder(tmp_path / "own")
    (root / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt does not exist, but its counterpart does: write both"):
        Folder(root, "val")


def test_json_files_that_cannot_be_chosen(tmp_path: Path) -> None:
    make_json(tmp_path / "train", **EXPORTERS["Roboflow"])
    with pytest.raises(DataError, match=r"neither masks/ nor a JSON file.*set dataset\.root to one, such as .*/train$"):
        Folder(tmp_path, "val")
    shutil.copy(tmp_path / "train/_annotations.coco.json", tmp_path / "train/b.json")
    with pytest.raises(DataError, match=r"holds 2 JSON files, such as _annotations\.coco\.json, expected images/"):
        Folder(tmp_path / "train", "val")


def test_annotations_that_show_nothing_or_whose_pictures_are_elsewhere(tmp_path: Path) -> None:
    root = make_json(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    shutil.move(root / "images", root.parent / f"{root.name}_elsewhere")
    with pytest.raises(
        DataError, match=r"none of the 24 pictures of .*annotations\.json, such as train_000\.jpg, is in"
    ):
        Folder(root, "val")
    shutil.move(root.parent / f"{root.name}_elsewhere", root / "images")
    content["annotations"] = [entry | {"segmentation": []} for entry in content["annotations"]]
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\.json hold no outlined object, only boxes or none: export polyg"):
        Folder(root, "val")


def test_categories_of_one_name(tmp_path: Path) -> None:
    """A parent of all is often called as its only child is; objects of both would be of one class, and are not."""
    root = make_json(tmp_path, classes=["fish", "cup"], parents=["fish"])
    assert Folder(root, "val").classes == ("fish", "cup")
    path = root / "annotations.json"
    path.write_text(path.read_text().replace('"name": "cup"', '"name": "fish"'))
    with pytest.raises(
        DataError, match=r"annotations\.json have objects of several categories called 'fish', expected"
    ):
        Folder(root, "val")


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_what_is_no_share(share: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.source\.val_share={share}, expected a share between 0 and 1"):
        Folder(make_folder(tmp_path), "val", val_share=share)


def test_too_few_pictures_for_a_division(tmp_path: Path) -> None:
    root = make_folder(tmp_path, images=1, lists=False)
    with pytest.raises(
        DataError, match=r"val_share=0\.001 leaves 'val' none of the 8 images of .*write train\.txt and"
    ):
        Folder(root, "val", val_share=0.001)


def test_a_label_that_does_not_fit_names_both_files(tmp_path: Path) -> None:
    root = make_json(tmp_path)
    write_picture(root / "images/val_000.jpg", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"mask .*annotations\.json is 80x60 but its image .*val_000\.jpg is 20x10"):
        Folder(root, "val").label(0)
