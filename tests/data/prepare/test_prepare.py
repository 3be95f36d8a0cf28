"""`sd-aanet prepare`: the benchmarks' folders from small archives in the true layouts, and the messages on bad ones."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_coco import make_coco, write_masks
from fake_sbd import SBD_TRAIN, UNLISTED, VOC_TRAIN, VOC_VAL, label_of, make_sbd, make_voc2012, write_mat
from fake_server import Server, serving
from fake_voc import make_voc
from PIL import Image

from commands import ran, refused, run
from sd_aanet.data.prepare import making
from sd_aanet.data.prepare.download import ARCHIVES
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.coco20i import Coco20i
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.images import read_label

TRAIN = ("2007_000032", "2007_000039", "2008_000003", "2010_000001")
IDS = (4, 1, 8, *range(100, 177))
"""80 categories with ids of their own."""
VOC, SBD = Path("VOCdevkit/VOC2012"), Path("benchmark_RELEASE")
PASCAL = ("prepare", "pascal5i", "--out", "out")
COCO = ("prepare", "coco20i", "--out", "out")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def archives() -> None:
    make_voc2012(VOC)
    make_sbd(SBD)


@pytest.fixture
def coco() -> None:
    make_coco(Path("coco"), 1, IDS)


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without links."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# PASCAL-5i


@pytest.mark.parametrize("sbd", [SBD, SBD / "dataset"])
def test_pascal5i_from_voc_and_sbd(archives: None, sbd: Path) -> None:
    done = ran(*PASCAL, "--voc", VOC, "--sbd", sbd)
    lists = Path("out/ImageSets/Segmentation")
    assert (lists / "train.txt").read_text().split() == sorted(TRAIN)
    assert (lists / "val.txt").read_text().split() == sorted(VOC_VAL)
    masks = sorted(path.stem for path in Path("out/SegmentationClassAug").iterdir())
    assert masks == sorted((*TRAIN, *VOC_VAL))  # of 2007_000042, which SBD trains on, VOC's: it is in val
    for name in masks:
        author = "voc" if name in VOC_TRAIN + VOC_VAL else "sbd"
        assert np.array_equal(read_label(Path(f"out/SegmentationClassAug/{name}.png")), label_of(name, author))
    assert Path("out/JPEGImages").readlink() == (VOC / "JPEGImages").resolve()
    assert done.out.splitlines() == [
        "warning: VOC's val.txt has 2 images, expected 1,449: 1,447 are missing, so scores do not compare with "
        "published ones",
        "warning: VOC's train.txt has 2 images, expected 1,464: 1,462 are missing, so scores do not compare with "
        "published ones",
        "warning: SBD's train.txt without VOC's val.txt has 3 images, expected 5,623: 5,620 are missing, so scores do "
        "not compare with published ones",
        "warning: train has 4 images, expected 5,953: 5,949 are missing, so scores do not compare with published ones",
        "written: out, 4 train and 2 val images; use it as dataset=pascal5i dataset.root=out",
    ]
    train, val = Pascal5i("out", "train"), Pascal5i("out", "val")
    assert (len(train), len(val)) == (4, 2)
    assert all(source.image(i).shape[:2] == source.mask(i, 1).shape for source in (train, val) for i in range(2))


def test_pascal5i_again_writes_no_mask_that_is_there(archives: None) -> None:
    call = (*PASCAL, "--voc", VOC, "--sbd", SBD)
    first = ran(*call)
    before = state(Path("out/SegmentationClassAug"))
    (Path("out/SegmentationClassAug") / f"{TRAIN[2]}.png").unlink()
    assert ran(*call).out == first.out
    after = state(Path("out/SegmentationClassAug"))
    assert {path for path in before if before[path] != after[path]} == {f"out/SegmentationClassAug/{TRAIN[2]}.png"}


def test_masks_have_vocs_colours(shared: Path) -> None:
    path = next((shared / "data/voc924/SegmentationClassAug").iterdir())
    with Image.open(path) as picture:
        assert bytes(picture.getpalette()[: 256 * 3]) == making.voc_palette()
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    making.write_mask(label, Path("deep/x.png"))
    with Image.open("deep/x.png") as picture:
        assert picture.mode == "P"
        assert picture.convert("RGB").getpixel((15, 0)) == (192, 128, 128)
        assert picture.convert("RGB").getpixel((31, 7)) == (224, 224, 192)
    assert np.array_equal(read_label(Path("deep/x.png")), label)


def test_pascal5i_with_ready_masks() -> None:
    make_voc(Path("voc"), 1)
    done = ran(*PASCAL, "--voc", "voc")
    assert "train is all of them that have a picture and are not in val" in done.out
    assert "written: out, 20 train and 20 val images" in done.out
    assert Path("out/SegmentationClassAug").readlink() == Path("voc/SegmentationClassAug").resolve()
    given, ready = Pascal5i("out", "train"), Pascal5i("voc", "train")
    assert [given.key(i) for i in range(20)] == [ready.key(i) for i in range(20)]
    ids = [f"train_{number:03d}" for number in (3, 1)]
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in (*ids, "val_000")]
    Path("voc/ImageSets/Segmentation/trainaug.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    done = ran(*PASCAL, "--voc", "voc")
    assert "train is voc/ImageSets/Segmentation/trainaug.txt without val" in done.out
    assert Path("out/ImageSets/Segmentation/train.txt").read_text().split() == sorted(ids)


def test_ready_masks_are_not_added_to(archives: None) -> None:
    ready = shutil.copytree(VOC / "SegmentationClass", VOC / "SegmentationClassAug")
    before = state(ready)
    ran(*PASCAL, "--voc", VOC)
    ran(*PASCAL, "--voc", VOC, "--sbd", SBD)
    assert state(ready) == before
    assert len(state(Path("out/SegmentationClassAug"))) == 6


def test_real_ready_masks(shared: Path) -> None:
    done = ran(*PASCAL, "--voc", shared / "data/voc924")
    assert "train has 471 images, expected 5,953: 5,482 are missing" in done.out
    train, given = Pascal5i("out", "train"), Pascal5i(shared / "data/voc924", "train")
    assert {train.key(i) for i in range(len(train))} == {given.key(i) for i in range(len(given))}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def without(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


NEW, OLD = TRAIN[2], VOC_TRAIN[0]
BAD_PASCAL: list[tuple[Callable[[], object], tuple[str, ...]]] = [
    (lambda: without(VOC / "JPEGImages"), ("JPEGImages is missing", "--voc VOCdevkit/VOC2012")),
    (lambda: without(VOC / "SegmentationClass"), ("SegmentationClass is missing", "--voc VOCdevkit/VOC2012")),
    (lambda: without(SBD / "dataset/cls"), ("cls is missing", "--sbd benchmark_RELEASE")),
    (lambda: without(VOC / "ImageSets/Segmentation/val.txt"), ("val.txt does not exist", "unpack its archive again")),
    (lambda: (SBD / "dataset/train.txt").write_text("\n"), ("dataset/train.txt is empty", "one image id per line")),
    (lambda: without(VOC / f"JPEGImages/{NEW}.jpg"), ("1 of 6 are not in", f"the first is {NEW}.jpg", "VOC's archive")),
    (
        lambda: without(SBD / f"dataset/cls/{NEW}.mat"),
        ("1 of 6 are neither in", f"the first is {NEW}", "both archives"),
    ),
    (lambda: cut(SBD / f"dataset/cls/{NEW}.mat"), (f"{NEW}.mat cannot be read (", "unpack SBD's archive again")),
    (lambda: (SBD / f"dataset/cls/{NEW}.mat").write_bytes(b""), (f"{NEW}.mat cannot be read (", "SBD's archive")),
    (
        lambda: write_mat(SBD / f"dataset/cls/{NEW}.mat", np.ones((2, 3, 4), np.uint8)),
        (f"{NEW}.mat cannot be read (", "not a map of class indices"),
    ),
    (
        lambda: write_mat(SBD / f"dataset/cls/{NEW}.mat", np.ones((9, 8), np.uint8)),
        (f"{NEW}.mat is 8x9 but its image", f"{NEW}.jpg is 96x72"),
    ),
    (
        lambda: write_mat(SBD / f"dataset/cls/{NEW}.mat", np.full((72, 96), 21, np.uint8)),
        (f"{NEW}.mat holds the index 21", "expected 0 to 20 or 255"),
    ),
    (lambda: cut(VOC / f"SegmentationClass/{OLD}.png"), (f"{OLD}.png cannot be read",)),
    (lambda: cut(VOC / f"JPEGImages/{OLD}.jpg"), (f"{OLD}.jpg cannot be read",)),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_PASCAL, ids=lambda value: None if callable(value) else str(value)[:60])
def test_bad_archives_of_pascal5i(archives: None, spoil: Callable[[], object], words: tuple[str, ...]) -> None:
    spoil()
    refused(run(*PASCAL, "--voc", VOC, "--sbd", SBD), *words)
    assert not Path("out/ImageSets").exists()
    assert all(path.stem in TRAIN + VOC_VAL for path in Path("out").glob("*/*"))


def test_bad_ready_masks() -> None:
    root = make_voc(Path("voc"), 1)
    ready = root / "ImageSets/Segmentation/trainaug.txt"
    ready.write_text("JPEGImages/a.jpg SegmentationClassAug/b.png\n")
    refused(
        run(*PASCAL, "--voc", root), "trainaug.txt pairs files of different names in 'JPEGImages/a.jpg Segmentation"
    )
    ready.unlink()
    (root / "SegmentationClassAug/val_003.png").unlink()
    refused(run(*PASCAL, "--voc", root), "masks of the lists: 1 of 40 are not in", "val_003.png", "give --sbd")
    shutil.rmtree(root / "SegmentationClassAug")
    refused(run(*PASCAL, "--voc", root), "--sbd is missing", "voc holds no SegmentationClassAug")
    assert not Path("out").exists()


# COCO-20i


def test_coco20i(coco: None) -> None:
    done = ran(*COCO, "--coco", "coco")
    assert done.out.splitlines() == [
        "train: 81 images, 80 of them annotated (expected of 2014: 82,081)",
        "val: 81 images, 80 of them annotated (expected of 2014: 40,137)",
        "written: out; use it as dataset=coco20i dataset.root=out",
    ]
    assert Path("out/train").readlink() == Path("coco/train2014").resolve()
    assert (
        Path("out/annotations/instances_val.json").resolve()
        == Path("coco/annotations/instances_val2014.json").resolve()
    )
    assert sorted(path.name for path in Path("out").iterdir()) == ["annotations", "train", "val"]
    source = Coco20i("out", "val")
    assert source.image(0).shape == (72, 96, 3)
    assert np.unique(source.mask(3, 4)).tolist() == [0, 1, 255]
    assert (source.mask(3, 4) == 1).sum() == 2200
    assert ran(*COCO, "--coco", "coco").out == done.out


def test_coco20i_with_masks_as_png(coco: None) -> None:
    call = (*COCO, "--coco", "coco", "--png")
    done = ran(*call)
    annotations = CocoAnnotations("coco/annotations/instances_train2014.json")
    for i, name in enumerate(annotations.images):
        assert np.array_equal(read_label(Path("out/masks/train", name).with_suffix(".png")), annotations.label(i))
    assert Coco20i("out", "train").label_file(0) == "out/masks/train/COCO_train2014_000000000000.png"
    before = state(Path("out/masks"))
    assert ran(*call).out == done.out
    assert state(Path("out/masks")) == before


def test_masks_are_used_when_all_are_drawn(coco: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(label: object, path: Path) -> None:
        if path.stem.endswith("007"):
            raise KeyboardInterrupt
        making.write_mask(label, path)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("sd_aanet.data.prepare.coco20i.write_mask", stopped)
        assert run(*COCO, "--coco", "coco", "--png").code == 130
    assert (Coco20i("out", "train").label(8) == 9).any(), "not from masks, which are not there"
    ran(*COCO, "--coco", "coco", "--png")
    assert sorted(path.name for path in Path("out/masks").iterdir()) == ["train", "val"]
    assert len([*Path("out/masks/train").glob("*.png")]) == 81


@pytest.mark.parametrize("again", [("--png",), ()])
def test_masks_of_other_annotations_go(coco: None, again: tuple[str, ...]) -> None:
    ran(*COCO, "--coco", "coco", "--png")
    path = Path("coco/annotations/instances_val2014.json")
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1003]
    path.write_text(json.dumps(content))
    before = state(Path("out/masks/train"))
    ran(*COCO, "--coco", "coco", *again)
    assert not (Coco20i("out", "val").label(3)).any()
    assert Path("out/masks/val").is_dir() == bool(again)
    assert state(Path("out/masks/train")) == before, "the others are still good"


def test_a_users_own_masks_stay_and_are_read(coco: None) -> None:
    shutil.copytree(write_masks(Path("coco")) / "masks", "out/masks")
    before = state(Path("out/masks"))
    for more in ((), ("--png",)):
        ran(*COCO, "--coco", "coco", *more)
        assert state(Path("out/masks")) == before
    assert Coco20i("out", "train").label_file(0) == "out/masks/train/COCO_train2014_000000000000.png"


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_cannot_be_linked(coco: None, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        Path("out/train").mkdir(parents=True)
    else:
        no_links(monkeypatch)
    refused(run(*COCO, "--coco", "coco"), "--out out cannot be made", "choose another folder")


def test_a_link_elsewhere_is_replaced(coco: None) -> None:
    make_coco(Path("other"), 1, IDS, year=2017)
    assert "expected of" not in ran(*COCO, "--coco", "other").out
    assert Path("out/train").readlink().name == "train2017"
    ran(*COCO, "--coco", "coco")
    assert Path("out/train").readlink().name == "train2014"


def test_real_coco(shared: Path) -> None:
    assert "train: 50 images, 49 of them annotated\n" in ran(*COCO, "--coco", shared / "data/tiny_coco").out
    source = Coco20i("out", "val")
    assert source.image(0).shape[:2] == source.mask(0, 1).shape


BAD_COCO: list[tuple[Callable[[], object], tuple[str, ...]]] = [
    (lambda: without(Path("coco/annotations")), ("folder coco lacks COCO's layout", "set --coco")),
    (lambda: without(Path("coco/val2014")), ("folder coco/val2014 is missing", "unpack them there")),
    (
        lambda: [without(path) for path in sorted(Path("coco/val2014").iterdir())[4:6]],
        ("instances_val2014.json: 2 of 81 are not in", "the first is COCO_val2014_000000000004.jpg"),
    ),
    (lambda: cut(Path("coco/annotations/instances_train2014.json")), ("train2014.json cannot be read as JSON",)),
    (
        lambda: shutil.copytree(make_coco(Path("few"), 1, range(3)), "coco", dirs_exist_ok=True),
        ("train2014.json have 3 categories, expected COCO's 80", "dataset=folder"),
    ),
    (
        lambda: shutil.copy(
            make_coco(Path("new"), 1, range(80)) / "annotations/instances_val2014.json", "coco/annotations"
        ),
        ("instances_val2014.json have different categories", "from one release"),
    ),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_COCO, ids=lambda value: None if callable(value) else str(value)[:60])
def test_bad_archives_of_coco20i(coco: None, spoil: Callable[[], object], words: tuple[str, ...]) -> None:
    spoil()
    refused(run(*COCO, "--coco", "coco"), *words)
    assert not Path("out").exists()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("BENCHMARK", "prepare --help")),
        (("fss1000",), ("invalid choice: 'fss1000'", "pascal5i", "prepare --help")),
        (("pascal5i",), ("--voc is missing", "--download")),
        (("pascal5i", "--voc", "a", "--sbdd", "b"), ("--sbdd", "prepare --help")),
        (("pascal5i", "--voc", "nowhere"), ("folder nowhere/JPEGImages is missing", "--voc VOCdevkit/VOC2012")),
        (("pascal5i", "--voc", "data/pascal5i"), ("--out data/pascal5i is VOC's own folder", "choose another")),
        (("coco20i",), ("--coco is missing", "--download")),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run("prepare", *arguments), *words)
    assert [*Path().iterdir()] == []


def test_a_folder_that_cannot_be_written(archives: None) -> None:
    Path("file").touch()
    done = run("prepare", "pascal5i", "--voc", VOC, "--sbd", SBD, "--out", "file/out")
    refused(done, "--out file/out cannot be made", "choose another folder")


@pytest.mark.parametrize("benchmark", ["pascal5i", "coco20i"])
def test_help(benchmark: str) -> None:
    done = ran("prepare", benchmark, "--help")
    assert f"usage: sd-aanet prepare {benchmark}" in done.out
    assert f"data/{benchmark}" in done.out


def test_arguments_are_read_without_heavy_imports() -> None:
    code = "import sys, sd_aanet.data.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


def packed(name: str, folders: Iterable[str]) -> bytes:
    """An archive of folders, as its name says."""
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as archive:
            for path in (path for folder in folders for path in Path(folder).rglob("*")):
                archive.write(path)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if name.endswith("gz") else "w") as tar:
            for folder in folders:
                tar.add(folder)
    return file.getvalue()


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, group: str, folders: Iterable[Iterable[str]]) -> None:
    """Serve folders in place of the archives of the table."""
    offered = {}
    for url, own in zip(ARCHIVES[group], folders, strict=True):
        name = url.rpartition("/")[2]
        server.files[f"/{name}"] = packed(name, own)
        offered[f"{server.url}/{name}"] = hashlib.md5(server.files[f"/{name}"]).hexdigest()
    monkeypatch.setitem(ARCHIVES, group, offered)


def test_pascal5i_downloads_what_is_not_given(archives: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, "voc", [["VOCdevkit"]])
    offer(server, monkeypatch, "sbd", [["benchmark_RELEASE"]])
    shutil.rmtree(SBD)
    ran(*PASCAL, "--voc", VOC, "--download")
    assert [path for path, _ in server.asked] == ["/benchmark.tgz"]
    shutil.rmtree("VOCdevkit")
    shutil.rmtree("out")
    server.cut = [1000]
    for _ in range(2):
        done = ran(*PASCAL, "--download")
        assert "written: out, 4 train and 2 val images" in done.out
    assert sorted(path.name for path in Path("out/downloads").iterdir()) == [
        *("VOCdevkit", "VOCtrainval_11-May-2012.tar", "benchmark.tgz", "benchmark_RELEASE")
    ]
    assert [path for path, _ in server.asked[1:]] == [*["/VOCtrainval_11-May-2012.tar"] * 2, "/benchmark.tgz"]
    assert Pascal5i("out", "train").image(0).shape == (72, 96, 3)


def test_coco20i_downloads(coco: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("coco")
    offer(server, monkeypatch, "coco", [["annotations"], ["val2014"], ["train2014"]])
    monkeypatch.chdir("..")
    shutil.rmtree("coco")
    assert "val: 81 images" in ran(*COCO, "--download").out
    assert Coco20i("out", "train").image(0).shape == (72, 96, 3)


def test_a_download_that_comes_wrong(archives: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, "sbd", [["benchmark_RELEASE"]])
    server.files["/benchmark.tgz"] = b"<html>Moved</html>"
    refused(run(*PASCAL, "--voc", VOC, "--download"), "benchmark.tgz came with the MD5", "out/downloads/benchmark.tgz")
    assert not [path for path in Path("out").rglob("*") if path.is_file()]


def test_unlisted_photographs_are_no_part(archives: None) -> None:
    ran(*PASCAL, "--voc", VOC, "--sbd", SBD)
    assert not Path(f"out/SegmentationClassAug/{UNLISTED}.png").exists()
    assert UNLISTED not in SBD_TRAIN
