"""`sd-aanet label`: rounds of proposals and corrections, what people drew stays, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from pycocotools.coco import COCO

from commands import run as run_command
from examples import refused
from sd_aanet.errors import ConfigError, DataError, SDAANetError
from sd_aanet.files import config_folder
from sd_aanet.segmenting import label
from sd_aanet.segmenting.annotations import Found, Labelled
from sd_aanet.segmenting.label import run
from sd_aanet.segmenting.labelme import read_labelme, write_labelme
from sd_aanet.segmenting.segmenter import FewShotSegmenter

SIZES = {"a": (60, 90), "b": (97, 70), "c": (64, 64), "d": (81, 97)}
SMALLEST = ("checkpoint=null", "model=probe", "backbone=resnet18", "size=97", "device=cpu")


def save_scene(folder: Path, name: str, size: tuple[int, int], seed: int) -> NDArray[np.bool_]:
    """A picture with an orange block, and where that is."""
    folder.mkdir(exist_ok=True)
    drawn = np.random.default_rng(seed).integers(0, 60, (*size, 3), np.uint8)
    block = np.zeros(size, bool)
    block[size[0] // 4 : size[0] * 3 // 4, size[1] // 4 : size[1] * 3 // 4] = True
    drawn[block] += np.array([180, 90, 0], np.uint8)
    Image.fromarray(drawn).save(folder / f"{name}.png")
    return block


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("label", [*SMALLEST, "support=[a:b]", "images=c"])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.fixture
def config(defaults: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings that work: two supports, four pictures."""
    for n, (name, size) in enumerate(SIZES.items()):
        save_scene(tmp_path / "photos", name, size, n)
    for name in ("s", "t"):
        mask = save_scene(tmp_path / "known", name, (70, 90), ord(name))
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"known/{name}_drawn.png")
    torch.manual_seed(0)
    return defaults | {
        "support": [f"{tmp_path}/known/{name}.png:{tmp_path}/known/{name}_drawn.png" for name in ("s", "t")],
        "images": str(tmp_path / "photos"),
        "out": str(tmp_path / "out"),
    }


def table(out: str) -> list[dict[str, str]]:
    with (Path(out) / "proposed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def correct(out: str, name: str, *things: str) -> bytes:
    """As a person would: a square, or nothing at all; what is in the file then."""
    path = Path(out) / f"{name}.json"
    size = SIZES[name]
    square = np.zeros(size, bool)
    square[20:50, 20:50] = True
    before = json.loads(path.read_text())
    write_labelme(path.parent, [Labelled(f"{name}.png", size, {thing: Found(square) for thing in things})], things)
    content = json.loads(path.read_text()) | {"imagePath": before["imagePath"]}
    path.write_text(json.dumps(content, indent=2))
    return path.read_bytes()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[list[int], list[int]]]:
    """Of the last segmenter that was asked, the supports of each thing and the rejected ones."""
    seen: list[FewShotSegmenter] = []
    build = label.segmenter_of

    def built(config: Any) -> FewShotSegmenter:
        seen.append(build(config))
        return seen[-1]

    monkeypatch.setattr(label, "segmenter_of", built)

    def of_last() -> tuple[list[int], list[int]]:
        last = seen[-1]
        return [len(last._memory.things[name]) for name in last.names], [len(last._memory.rejected)]

    return of_last


def test_the_first_round(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config) == Path(config["out"])
    out = Path(config["out"])
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.json" for name in SIZES),
        *("overlays", "proposed.csv", "label.json", "supports.png"),
    }
    assert {path.name for path in (out / "overlays").iterdir()} == {f"{name}.png" for name in SIZES}
    for name, size in SIZES.items():
        found = read_labelme(out / f"{name}.json")
        assert found.size == size
        assert Image.open(out / found.file_name).size == size[::-1], "the path leads to the picture"
        mask, block = found.found["object"].mask, save_scene(out.parent / "again", name, size, 9)
        assert (mask & block).sum() / (mask | block).sum() > 0.6, name
        assert Image.open(out / f"overlays/{name}.png").size == size[::-1]
    rows = table(config["out"])
    assert list(rows[0]) == ["picture", "thing", "unsure", "score", "present", "area share"]
    assert sorted(row["picture"] for row in rows) == [f"{name}.png" for name in SIZES]
    unsure = [float(row["unsure"]) for row in rows]
    assert unsure == sorted(unsure, reverse=True)
    assert all(0.05 < float(row["area share"]) < 0.5 and row["present"] in ("yes", "no") for row in rows)
    first = ", ".join(row["picture"] for row in rows[:3])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"{out}/: 4 pictures proposed; look first at {first}"


def test_the_second_round(
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    shown: Callable[[], tuple[list[int], list[int]]],
) -> None:
    """What a person saved is a support, stays byte for byte, and is proposed no more; so is what a person emptied."""
    run(config)
    assert shown() == ([2], [0])
    corrected = {"a": correct(config["out"], "a", "object"), "c": correct(config["out"], "c")}
    as_it_is = Path(config["out"]) / "d.json"  # looked at and saved
    as_it_is.write_text(json.dumps(json.loads(as_it_is.read_text()), indent=2))
    corrected["d"] = as_it_is.read_bytes()
    capsys.readouterr()
    for _ in range(2):
        run(config)
        assert shown() == ([4], [1])
        for name, content in corrected.items():
            assert (Path(config["out"]) / f"{name}.json").read_bytes() == content
            assert not (Path(config["out"]) / f"overlays/{name}.png").exists(), "it showed the proposal"
        assert {row["picture"] for row in table(config["out"])} == {"b.png"}
        assert capsys.readouterr().out.endswith(
            ": 1 picture proposed, 2 corrected ones taken as supports, 1 as without the thing; look first at b.png\n"
        )
    correct(config["out"], "b")
    run(config)
    assert table(config["out"]) == []
    assert capsys.readouterr().out.endswith(
        "0 pictures proposed, 2 corrected ones taken as supports, 2 as without the thing\n"
    )


def test_what_was_there_before_is_a_person_s(
    config: dict[str, Any], shown: Callable[[], tuple[list[int], list[int]]]
) -> None:
    """Beside the pictures, as labelme writes it."""
    config["out"] = config["images"]
    (Path(config["out"]) / "b.json").write_text('{"imagePath": "b.png"}')
    before = correct(config["out"], "b", "object")
    run(config)
    assert shown() == ([3], [0])
    assert (Path(config["out"]) / "b.json").read_bytes() == before
    assert read_labelme(Path(config["out"]) / "a.json").file_name == "a.png"


def test_a_method_that_fits_nothing_leaves_emptied_pictures_alone(config: dict[str, Any]) -> None:
    config["model"] = {"method": "prototype"}
    run(config)
    emptied = correct(config["out"], "c")
    run(config)
    assert (Path(config["out"]) / "c.json").read_bytes() == emptied
    assert "c.png" not in {row["picture"] for row in table(config["out"])}


class Killed(BaseException):
    """What no code catches."""


def test_a_killed_run_leaves_whole_proposals_none_of_which_counts_as_corrected(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], tuple[list[int], list[int]]]
) -> None:
    """Killed before each file of the first picture has its name, in the first round and in the second."""
    replace, left = Path.replace, [0]

    def counted(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    for moment in (2, 3, 4, 5, 2, 3, 4, 5):
        left[0] = moment
        with pytest.raises(Killed):
            run(config)
        assert shown() == ([2], [0])
        for path in Path(config["out"]).glob("*.json"):
            json.loads(path.read_text())
    left[0] = 0
    run(config)
    assert shown() == ([2], [0])
    assert len(table(config["out"])) == 4


def test_what_is_corrected_during_a_run_stays(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    segment, saved = FewShotSegmenter.segment, []

    def slow(self: FewShotSegmenter, query: Any) -> Any:
        if Path(query).stem == "d":
            saved.append(correct(config["out"], "d", "object"))
        return segment(self, query)

    monkeypatch.setattr(FewShotSegmenter, "segment", slow)
    run(config)
    assert [(Path(config["out"]) / "d.json").read_bytes()] == saved
    assert {row["picture"] for row in table(config["out"])} == {"a.png", "b.png", "c.png"}


def test_coco(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = config["support"][1].split(":")
    named = [
        {"name": "cat", "image": mask[0], "mask": mask[1]},
        {"name": "dog", "image": mask[0], "box": [5, 5, 60, 60]},
    ]
    save_scene(tmp_path / "more", "a", (40, 50), 5)
    config |= {"support": named, "format": "coco", "images": [config["images"], str(tmp_path / "more/a.png")]}
    run(config)
    capsys.readouterr()
    coco = COCO(str(Path(config["out"]) / "annotations.json"))
    files = {image["file_name"]: image for image in coco.imgs.values()}
    assert files.keys() == {"photos/a.png", "photos/b.png", "photos/c.png", "photos/d.png", "more/a.png"}
    assert [category["name"] for category in coco.cats.values()] == ["cat", "dog"]
    areas = {(row["picture"], row["thing"]): float(row["area share"]) for row in table(config["out"])}
    assert len(areas) == 10
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        share = areas[image["file_name"], coco.cats[annotation["category_id"]]["name"]]
        assert coco.annToMask(annotation).mean() == pytest.approx(share, abs=1e-4)
    assert {path.name for path in (Path(config["out"]) / "overlays").iterdir()} == {
        *(f"{name}.png" for name in SIZES),
        "a_2.png",
    }
    run(config)  # anew
    edited = Path(config["out"]) / "annotations.json"
    edited.write_text(edited.read_text() + " ")
    before = edited.read_bytes()
    with refused(ConfigError, "annotations.json' was changed", "format=labelme"):
        run(config)
    assert edited.read_bytes() == before


def test_cvat(config: dict[str, Any]) -> None:
    run(config | {"format": "cvat"})
    root = ElementTree.parse(Path(config["out"]) / "annotations.xml").getroot()
    assert [image.get("name") for image in root.iter("image")] == [f"{name}.png" for name in SIZES]
    assert {shape.get("label") for shape in root.iter("polygon")} == {"object"}


def mistake(name: str, config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], type[SDAANetError], list[str]]:
    """Settings with one mistake, and the error that they make."""
    (folder / "empty").mkdir()
    (folder / "label").mkdir()
    for twin in ("twins/a.png", "twins/a.jpg", "label/label.png", "bad.jpg"):
        (folder / twin).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(folder / twin)
    (folder / "bad.jpg").write_bytes((folder / "bad.jpg").read_bytes()[:200])
    return {
        "no images": ({"images": []}, ConfigError, ["images is empty"]),
        "no support": ({"support": None}, ConfigError, ["support is empty"]),
        "another format": ({"format": "yolo"}, ConfigError, ["format=yolo", "labelme, coco, cvat"]),
        "an empty folder": ({"images": f"{folder}/empty"}, DataError, ["empty' holds no picture"]),
        "no such folder": ({"images": f"{folder}/none"}, DataError, ["none does not exist"]),
        "twins": ({"images": f"{folder}/twins"}, DataError, ["a.json", "a.png", "a.jpg", "rename"]),
        "the list's name": ({"images": f"{folder}/label"}, DataError, ["label.json", "the list of", "rename"]),
        "a damaged picture": ({"images": f"{folder}/bad.jpg"}, DataError, ["bad.jpg cannot be read"]),
        "a file as out": ({"out": f"{folder}/bad.jpg"}, ConfigError, ["is a file"]),
        "no such mask": ({"support": [f"{folder}/photos/a.png:no.png"]}, DataError, ["no.png does not exist"]),
        "no such device": ({"device": "abacus"}, ConfigError, ["device=abacus"]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "no images",
        "no support",
        "another format",
        "an empty folder",
        "no such folder",
        "twins",
        "the list's name",
        "a damaged picture",
        "a file as out",
        "no such mask",
        "no such device",
    ],
)
def test_mistakes_are_told_before_anything_is_written(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    change, error, words = mistake(name, config, tmp_path)
    with refused(error, *words):
        run(config | change)
    assert not Path(config["out"]).exists()


def test_corrected_files_that_do_not_fit(config: dict[str, Any]) -> None:
    run(config)
    out = Path(config["out"])
    before, good = {path: path.read_bytes() for path in out.glob("[bd].json")}, (out / "a.json").read_bytes()
    correct(config["out"], "a", "objekt")
    with refused(DataError, "a.json", "'objekt'", "(object)"):
        run(config)
    (out / "a.json").write_text("{")
    with refused(DataError, "a.json cannot be read as JSON"):
        run(config)
    (out / "a.json").write_text(good.decode().replace('"imageWidth": 90', '"imageWidth": 95'))
    with refused(DataError, "a.png", "95x60"):
        run(config)
    assert {path: path.read_bytes() for path in before} == before
    (out / "a.json").unlink()  # proposed anew
    run(config)
    assert len(table(config["out"])) == len(read_labelme(out / "a.json").found) + 3


def test_a_list_that_is_damaged_or_gone(config: dict[str, Any]) -> None:
    """Else every proposal would be taken for a correction."""
    run(config)
    for content in ("{", "[]", '{"a.json": 3}'):
        (Path(config["out"]) / "label.json").write_text(content)
        with refused(ConfigError, "label.json' is damaged", "another out"):
            run(config)
    (Path(config["out"]) / "label.json").unlink()
    with refused(ConfigError, "label.json' is gone", "another out"):
        run(config)


def test_a_folder_in_which_another_process_works_is_refused(config: dict[str, Any]) -> None:
    Path(config["out"]).mkdir()
    with FileLock(Path(config["out"]) / ".lock"), refused(ConfigError, "is in use"):
        run(config)


def test_the_command(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("label", "support=[known/s.png:known/s_drawn.png]", *SMALLEST)
    done = run_command(*arguments, "images=photos", "out=found")
    assert (done.code, "4 pictures proposed; look first at " in done.out) == (0, True), done.err
    correct("found", "b", "object")
    done = run_command(*arguments, "images=photos", "out=found")
    assert "3 pictures proposed, 1 corrected one taken as supports; look first at " in done.out
    done = run_command(*arguments, "images=none", "out=more")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert not (tmp_path / "more").exists()
