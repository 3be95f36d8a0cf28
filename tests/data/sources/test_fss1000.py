"""FSS-1000: classes as folders, three stages by lists or by a seeded division."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.fake_fss import fss_pairs, make_fss
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.sources.fss1000 import Fss1000
from sd_aanet.errors import ConfigError, DataError

CLASSES = ("test_a", "test_b", "train_a", "train_b", "train_c", "train_d", "val_a", "val_b")


def shown(source: Fss1000) -> set[str]:
    return {source.key(i).partition("/")[0] for i in range(len(source))}


def named(source: Fss1000, ids: tuple[int, ...] | None) -> list[str]:
    return [source.classes[c - 1] for c in ids or ()]


def test_a_folder_a_class(tmp_path: Path) -> None:
    train, val = (Fss1000(make_fss(tmp_path / split), split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert train.classes == val.classes == CLASSES
    assert (len(train), len(val), train.folds) == (12, 12, 1)
    assert shown(train) == {"train_a", "train_b", "train_c", "train_d"}
    assert shown(val) == {"val_a", "val_b", "test_a", "test_b"}
    assert named(val, val.fold_classes(0)) == ["test_a", "test_b"]
    assert named(val, val.val_classes(0)) == ["val_a", "val_b"]
    assert val.key(0) == "test_a/1"
    pixels = val.pixels()
    assert pixels.shape == (12, 8)
    assert pixels.sum(axis=1).tolist() == [1600] * 12, "painted in 255 and in 1 alike"
    assert pixels[0, 0] == 1600
    image, mask = val.image(0), val.mask(0, 1)
    assert np.array_equal(mask[:50] == 1, image[:50, :, 0] > 150)
    assert set(np.unique(mask)) == {0, 1}
    assert not val.mask(0, 2).any()


def test_stages_are_what_is_trained_validated_and_tested(tmp_path: Path) -> None:
    source = {"_target_": "sd_aanet.data.sources.fss1000.Fss1000", "root": str(make_fss(tmp_path))}
    small = {"size": 33, "episodes": 4, "test_episodes": 4, "val_episodes": 4, "min_object_pixels": 0, "batch_size": 2}
    data = EpisodeDataModule(source, shot=2, **small)
    data.setup()
    stages = data.describe()["classes"]
    assert stages == {
        "train": ["train_a", "train_b", "train_c", "train_d"],
        "val": ["val_a", "val_b"],
        "test": ["test_a", "test_b"],
    }
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert all((episode.support_mask == 1).any() for episode in loader)


@pytest.mark.parametrize(
    "line",
    [
        "{name}",
        "{name}/1.jpg",
        "some/where/{name}/1.jpg",
        "/a/{name}/",
        "a\\{name}\\1.jpg",
        "{name}/1.jpg {name}/1.png",
    ],
)
def test_a_list_names_classes_or_files_of_theirs(line: str, tmp_path: Path) -> None:
    source = Fss1000(make_fss(tmp_path, images=1, lists=line), "val")
    assert named(source, source.fold_classes(0)) == ["test_a", "test_b"]


@pytest.mark.parametrize("line", ["{}", "{}/1.jpg", "a b/{}/1.jpg"])
def test_classes_may_have_blanks_and_umlauts(line: str, tmp_path: Path) -> None:
    root = make_fss(tmp_path, images=1)
    (root / "test_a").rename(root / "Mo\u0308we am Meer")
    (root / "test.txt").write_text(line.format("Möwe am Meer"), encoding="utf-8")
    source = Fss1000(root, "val")
    assert named(source, source.fold_classes(0)) == ["Möwe am Meer"]
    assert source.key(0) == "Möwe am Meer/1"
    assert source.image(0).shape == (60, 60, 3)


def test_the_fields_own_names_of_lists_and_lists_elsewhere(tmp_path: Path) -> None:
    root = make_fss(tmp_path / "data")
    (root / "train.txt").rename(root / "trn.txt")
    assert shown(Fss1000(root, "train")) == {"train_a", "train_b", "train_c", "train_d"}
    (tmp_path / "lists").mkdir()
    for path in root.glob("*.txt"):
        shutil.move(path, tmp_path / "lists")
    (tmp_path / "lists/trn.txt").write_text("train_a\n")
    source = Fss1000(root, "train", lists=tmp_path / "lists")
    assert source.classes == ("test_a", "test_b", "train_a", "val_a", "val_b"), "those on no list are left out"
    assert shown(source) == {"train_a"}
    strays = [str(stray) for stray in source.strays()]
    assert strays == [f"class {root}/train_{letter} is in none of the lists" for letter in "bcd"]


def test_a_seeded_division_keeps_the_benchmarks_proportion(tmp_path: Path) -> None:
    root = make_fss(tmp_path, images=1, lists=None, shares={"class": 25})
    source = Fss1000(root, "val")
    stages = [named(source, ids) for ids in (source.fold_classes(0), source.val_classes(0))]
    assert [len(stage) for stage in stages] == [6, 6]
    assert len(shown(Fss1000(root, "train"))) == 13
    assert shown(source) == {*stages[0], *stages[1]}
    assert shown(source).isdisjoint(shown(Fss1000(root, "train")))
    other = Fss1000(root, "val", seed=1)
    assert named(other, other.fold_classes(0)) != stages[0]


def test_a_thousand_classes_are_divided_as_in_the_benchmark(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"c{number:04d}").mkdir()
        (tmp_path / f"c{number:04d}/1.jpg").touch()
    source = Fss1000(tmp_path, "val")
    assert [len(ids or ()) for ids in (source.fold_classes(0), source.val_classes(0))] == [240, 240]
    assert len(Fss1000(tmp_path, "train")) == 520


def test_capital_suffixes_and_what_macos_leaves_behind(tmp_path: Path) -> None:
    root = make_fss(tmp_path)
    (root / "test_a/1.jpg").rename(root / "test_a/1.JPG")
    for name in ("._1.jpg", ".DS_Store", "._2.png"):
        (root / "test_a" / name).write_bytes(b"\0\5")
    (root / "__MACOSX/test_a").mkdir(parents=True)
    source = Fss1000(root, "val")
    assert len(source) == 12
    assert [str(stray) for stray in source.strays()] == [f"folder {root}/__MACOSX holds no picture (.jpg, .jpeg)"]
    assert source.pixels()[0, 0] == 1600


def test_what_belongs_to_no_picture_is_told(tmp_path: Path) -> None:
    root = make_fss(tmp_path)
    (root / "val_a/2.jpg").unlink()
    (stray,) = Fss1000(root, "train").strays()
    assert stray.defect == "stray"
    assert str(stray) == f"mask {root}/val_a/2.png has no picture beside it"


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    root = make_fss(tmp_path)
    picture, mask = fss_pairs(root, "test")[0]
    Image.new("L", (50, 40), 255).save(mask)
    source = Fss1000(root, "val")
    with pytest.raises(DataError, match=r"test_a/1\.png is 50x40 but its image .*test_a/1\.jpg is 60x60"):
        source.count(0)
    mask.unlink()
    with pytest.raises(DataError, match=r"mask .*test_a/1\.png does not exist") as raised:
        source.mask(0, 1)
    assert raised.value.defect == "missing"
    picture.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image .*test_a/1\.jpg cannot be read"):
        source.image(0)


BROKEN = {
    ("val.txt", "nobody"): r"list .*val\.txt names 'nobody', expected the name of a folder with pictures: correct it",
    ("val.txt", ""): r"list .*val\.txt is empty, expected a class or a path in each line: fill it",
    (
        "val.txt",
        "test_a",
    ): r"class 'test_a' is in the lists of val and of test in .*, expected one of them: take it off",
    ("val.txt", None): r"the lists in .* lack val\.txt, expected train\.txt, val\.txt and test\.txt",
}


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_lists_that_cannot_be(name: str, text: str | None, tmp_path: Path) -> None:
    root = make_fss(tmp_path)
    if text is None:
        (root / name).unlink()
    else:
        (root / name).write_text(text)
    with pytest.raises(DataError, match=BROKEN[name, text]):
        Fss1000(root, "train")


def test_roots_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset root .*nowhere is not a folder, expected one folder per class in it: set"
    ):
        Fss1000(tmp_path / "nowhere", "val")
    with pytest.raises(DataError, match=r"holds no class, expected folders with 1\.jpg, 1\.png and so on: set dataset"):
        Fss1000(tmp_path, "val")
    root = make_fss(tmp_path / "few", lists=None, shares={"class": 2})
    with pytest.raises(DataError, match=r"few holds 2 classes, expected 3 or more to divide: add some"):
        Fss1000(root, "val")
    with pytest.raises(
        ConfigError, match=r"dataset\.source\.lists=nowhere is not a folder, expected train\.txt, val\.txt"
    ):
        Fss1000(root, "val", lists="nowhere")


def test_a_picture_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """It could be its own support."""
    root = make_fss(tmp_path)
    shutil.copy(root / "val_a/2.jpg", root / "val_a/2.JPEG")
    with pytest.raises(DataError, match=r"val_a holds 4 pictures of 3 names, expected one of each"):
        Fss1000(root, "val")


def test_classes_of_one_name_in_two_spellings_are_refused(tmp_path: Path) -> None:
    """The second one took the place of the first."""
    root = make_fss(tmp_path, lists=None)
    for name in ("M\u00f6we", "Mo\u0308we"):
        shutil.copytree(root / "test_a", root / name)
    with pytest.raises(DataError, match=r"have one name in two spellings \(Unicode\): rename one"):
        Fss1000(root, "val")
