"""Data sets in every layout, lists, folds, what is kept of them, and archives that they come in."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from commands import run
from data.fake_coco import annotation, lengths, make_coco, packed, rectangle
from data.fake_folder import HEIGHT, WIDTH, make_folder, make_json
from data.fake_fss import make_fss
from data.fake_sbd import SBD_TRAIN, make_archives
from data.fake_voc import make_voc
from fuzzing.inputs import Input
from sd_aanet.data.check.defects import find_defects, read_split
from sd_aanet.data.check.report import summary, table
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.episode_lists import read_list
from sd_aanet.data.prepare.download import unpack
from sd_aanet.data.prepare.pascal5i import read_sbd
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.folder import Folder
from sd_aanet.data.sources.fss1000 import Fss1000
from sd_aanet.data.sources.opening import open_source
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.sources.refusal import collecting

TARGETS = {
    "folder": "sd_aanet.data.sources.folder.Folder",
    "json": "sd_aanet.data.sources.folder.Folder",
    "roboflow": "sd_aanet.data.sources.folder.Folder",
    "voc": "sd_aanet.data.sources.pascal5i.Pascal5i",
    "fss": "sd_aanet.data.sources.fss1000.Fss1000",
    "coco": "sd_aanet.data.sources.coco20i.Coco20i",
}
"""By the name of a valid folder, what reads it."""


def make(valid: Path) -> None:
    make_folder(valid / "folder", images=3)
    (valid / "folder/folds.yaml").write_text("first: [cat]\nsecond: [dog, cup]\n")
    make_json(valid / "json", images=1)
    for part in ("train", "valid"):
        make_json(valid / f"roboflow/{part}", images=1, lists=False, annotations="_annotations.coco.json", pictures="")
    make_voc(valid / "voc", images=1)
    make_fss(valid / "fss", images=2)
    make_coco(valid / "coco", images=1)
    make_archives(valid / "archives")
    content = (b"some text\n" * 500, b"", bytes(range(256)) * 20)
    tree = {"VOCdevkit/VOC2012/a.txt": content[0], "b/c.bin": content[2], "empty": content[1]}
    with zipfile.ZipFile(valid / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    for mode, path in (("w", "a.tar"), ("w:gz", "a.tgz")):
        with tarfile.open(valid / path, mode) as archive:
            for name, data in tree.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def _use(input: Input, config: dict[str, Any]) -> None:
    """Both splits by what trains and evaluates, and by `check`, by all of it now and then."""

    def opened() -> list[ImageSource]:
        return [open_source(config, split) for split in ("train", "val")]

    def indexed() -> None:
        for source in opened():
            source.pixels()
            source.image(0)
            source.mask(0, 1)
            list(source.strays())

    def checked() -> None:
        with collecting() as refused:
            sources = opened()
        splits = [read_split(source) for source in sources]
        table(summary(splits, find_defects(splits, refused, 1, 1), 1, 1))

    input.read(indexed)
    if input.whole or input.often(0.5):
        input.read(checked)
    if input.whole or input.often(0.06):
        name = next(name for name, target in TARGETS.items() if target == config["_target_"])
        name = {"json": "folder", "roboflow": "folder", "voc": "pascal5i", "fss": "fss1000", "coco": "coco20i"}.get(
            name, name
        )
        input.command(
            "check", f"dataset={name}", f"dataset.root={config['root']}", "shot=1", "min_object_pixels=1", "out=out"
        )


def _damaged(name: str, *patterns: str) -> Callable[[Input], None]:
    def read(input: Input) -> None:
        _use(input, {"_target_": TARGETS[name], "root": str(input.files(input.valid / name, patterns or ("*",)))})

    return read


def annotations(input: Input) -> None:
    """COCO's format with odd nodes, over pictures that are in order."""
    root = input.copy(input.valid / "json")
    content = json.loads((root / "annotations.json").read_text())
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:40, 10:50] = 1
    for number, segmentation in enumerate(
        (lengths(mask), packed(mask), [[3, 3], [40, 3], [3, 40]], [rectangle(0, 0, 9, 9), []])
    ):
        content["annotations"].append(
            {"id": 100 + number, **annotation(number, 1 + number, segmentation, iscrowd=number % 2)}
        )
    if input.whole:
        content["annotations"].pop()
    text = input.json(content, lambda old: _odd_node(input, old))
    (root / "annotations.json").unlink()
    (root / "annotations.json").write_text(text)
    _use(input, {"_target_": TARGETS["json"], "root": str(root)})


def _odd_node(input: Input, old: Any) -> Any:
    if isinstance(old, (int, float)) and input.often(0.5):
        return old * input.chance.choice((-1, 0, 1.0, 1.5, 10, 1e9, 10**20)) + input.chance.choice((0, 1, -1))
    if isinstance(old, str) and input.often(0.5):
        return input.chance.choice(
            (old.upper(), f"./{old}", f"images\\{old}", old[: len(old) // 2], old * 50, f"{old}\0", "../" * 9 + old)
        )
    return input.a_value()


def coco(input: Input) -> None:
    """COCO's own layout, odd nodes in one of its files, split by image and kept, then read again."""
    path = input.valid / "coco/annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["images"], content["annotations"] = content["images"][:6], content["annotations"][:12]
    own = Path("instances.json")
    own.write_text(input.json(content, lambda old: _odd_node(input, old), most=6))

    def labels() -> None:
        read = CocoAnnotations(own)
        for i in range(len(read.images)):
            read.label(i)
        list(read.strays())

    input.read(labels)
    _kept_damaged(input)
    input.read(labels)
    if input.whole or input.often(0.02):
        _use(
            input,
            {"_target_": TARGETS["coco"], "root": str(input.files(input.valid / "coco", ("*.json", "*_000.jpg")))},
        )


def _kept_damaged(input: Input) -> None:
    """What is kept in the cache folder, damaged, so that it has to be made anew."""
    for path in Path(os.environ["SD_AANET_CACHE"]).rglob("*.kept"):
        if input.often(0.5):
            path.write_bytes(input.bytes_of(path.read_bytes()))


def kept(input: Input) -> None:
    """Indexes with damaged bytes: what they are of is in order, and so is the answer."""
    source = Folder(input.valid / "folder", "train")
    before = source.pixels()
    _kept_damaged(input)

    def same() -> None:
        assert np.array_equal(Folder(input.valid / "folder", "train").pixels(), before)

    input.read(same)
    if input.refused:
        raise AssertionError(input.said)


def lists(input: Input) -> None:
    """Lists of images and classes, folds, classes.txt: odd lines and odd bytes."""
    name, path = input.chance.choice(
        (
            *(("folder", "classes.txt"), ("folder", "train.txt"), ("folder", "val.txt"), ("folder", "folds.yaml")),
            *(("voc", "ImageSets/Segmentation/val.txt"), ("fss", "train.txt"), ("fss", "val.txt"), ("json", "val.txt")),
        )
    )
    root = input.copy(input.valid / name)
    content = (root / path).read_text()
    (root / path).unlink()
    if path.endswith(".yaml") and input.often(0.7):
        text = yaml.safe_dump(input.tree(yaml.safe_load(content)), allow_unicode=True)
        text = (
            input.chance.choice((text, text, "[" * 5000, "&a [*a]", "a: &a [cat]\nb: *a", "? [a]\n: b"))
            if not input.whole
            else text
        )
    else:
        text = input.lines(content)
    data = text.encode("utf-8", "surrogatepass")
    (root / path).write_bytes(input.bytes_of(data) if input.often(0.3) else data)
    kind: Any = {"voc": Pascal5i, "fss": Fss1000}.get(name, Folder)
    for split in ("train", "val"):
        input.read(lambda split=split: len(kind(root, split)))

    def collected() -> None:
        with collecting():
            kind(root, "val")

    input.read(collected)


def episodes(input: Input) -> None:
    """Lists of episodes, by what evaluates them."""
    shown = {"dog": ("val_001", "val_005", "val_009"), 3: ("val_002", "val_006", "val_010")}
    entries: list[Any] = [
        {"class": name, "query": query, "supports": supports} for name, (query, *supports) in shown.items()
    ]
    if input.often(0.2):
        entries = [{"class": ["cat", "dog"], "query": "val_000", "supports": [["val_004"], ["val_001"]]}]
    about = {"format": "sd_aanet episodes 1", "dataset": "folder", "fold": 1, "shot": 2, "seed": 0, "order": "classes"}
    text = input.json({**about, "episodes": entries}).encode()
    path = Path("list.json")
    path.write_bytes(input.bytes_of(text) if input.often(0.3) else text)
    config = {"_target_": TARGETS["folder"], "root": str(input.valid / "folder")}
    input.read(read_list, path, Folder(config["root"], "val"))

    def drawn() -> None:
        data = EpisodeDataModule(
            config, episodes_file=str(path), size=33, min_object_pixels=10, select_on="none", fold=1
        )
        data.test_specs(0)
        next(iter(data.test_dataloader()))
        data.describe()

    input.read(drawn)


def archives(input: Input) -> None:
    """Archives with damaged bytes or odd members, into a folder that nothing leaves."""
    name = input.chance.choice(("a.zip", "a.tar", "a.tgz"))
    path = Path(name)
    if input.whole or input.often(0.6):
        path.write_bytes(input.bytes_of((input.valid / name).read_bytes()))
    elif name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for n in range(input.chance.randint(1, 3)):
                archive.writestr(_member(input, n) or "x", b"content")
    else:
        with tarfile.open(path, "w" if name == "a.tar" else "w:gz", errors="surrogatepass") as archive:
            for n in range(input.chance.randint(1, 3)):
                info = tarfile.TarInfo(_member(input, n))
                info.type = input.chance.choice(
                    (tarfile.REGTYPE,) * 4
                    + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
                )
                info.linkname = input.chance.choice(("", "..", "/etc/passwd", "a"))
                info.mode, info.size = input.chance.choice((0, 0o644, 0o777, 0o7777)), 7
                archive.addfile(info, io.BytesIO(b"content"))
    before = {*Path().iterdir()}
    input.read(unpack, path, Path("out"))
    outside = {*Path().iterdir()} - before - {Path("out")}
    assert not outside, f"outside of the folder: {outside}"


def _member(input: Input, n: int) -> str:
    name = input.chance.choice(
        (
            f"f{n}",
            ".",
            "..",
            "../x",
            "/x",
            "a/../../x",
            "",
            "a/",
            "x" * 300,
            "é",
            "a\\b",
            "C:\\x",
            "con",
            "a\nb",
            "./f",
            "f0/g",
        )
    )
    return name.encode("utf-8", "replace").decode()


def prepared(input: Input) -> None:
    """SBD's masks alone, and benchmarks prepared from folders with something wrong."""
    mat = input.valid / f"archives/benchmark_RELEASE/dataset/cls/{SBD_TRAIN[0]}.mat"
    Path("m.mat").write_bytes(input.bytes_of(mat.read_bytes()))
    input.read(read_sbd, Path("m.mat"))
    if input.whole or input.often(0.1):
        root = input.files(input.valid / "archives", ("*.mat", "*.txt", "*.png", "*.jpg"))
        words = ["--voc", root / "VOCdevkit/VOC2012", "--sbd", root / "benchmark_RELEASE"]
        _prepare(input, "pascal5i", *words)
    elif input.often(0.03):
        _prepare(input, "coco20i", "--coco", input.files(input.valid / "coco", ("*.json", "*.jpg")), "--png")


def _prepare(input: Input, *words: object) -> None:
    """What was made before a mistake stays there, for the next call to go on from."""
    done = run("prepare", *words, "--out", "out")
    assert done.code in (0, 2), done
    if done.code:
        assert done.err.startswith("sd-aanet: "), done.err
        assert done.err.count("\n") == 1, done.err
        input.refused += 1
    else:
        input.taken += 1


KINDS = {
    "folder with masks": (500, _damaged("folder")),
    "folder with COCO's JSON": (900, annotations),
    "Roboflow's folders": (150, _damaged("roboflow")),
    "VOC's folders": (150, _damaged("voc", "*.txt", "*.png", "*.jpg")),
    "FSS-1000's folders": (150, _damaged("fss")),
    "COCO's annotations": (250, coco),
    "kept indexes": (100, kept),
    "lists of images, classes, folds": (900, lists),
    "lists of episodes": (700, episodes),
    "archives": (500, archives),
    "prepare": (250, prepared),
}
