"""`sd-aanet report`: its table against plain NumPy, its files, its page, and results that are none."""

import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from functools import reduce
from html.parser import HTMLParser
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fake_results import make_run, make_sweep
from PIL import Image

from commands import Done, nothing_left, ran, refused, run
from data.fake_folder import make_folder
from sd_aanet.data.datamodule import EpisodeDataModule

TABLES = ("table.md", "table.csv", "table.tex")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reported(folder: str = "sweep") -> tuple[Done, list[dict[str, str]]]:
    done = run("report", folder)
    assert done.code == 0, done.err
    with Path(folder, "report/table.csv").open(newline="") as file:
        return done, list(csv.DictReader(file))


def measured(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    return [line for line in lines if "reported" not in " ".join(map(str, line.values()))]


def number(text: str) -> float:
    return float(re.findall(r"-?\d+\.\d+", text)[0])


def figures_of(line: dict[str, str]) -> list[float]:
    """Every number of a line's cells that hold figures."""
    return [float(x) for text in line.values() for x in re.findall(r"(?<![\w-])\d+\.\d+", str(text))]


def test_the_table_is_that_of_plain_numpy() -> None:
    results = make_sweep(Path("sweep"), seeds=(0, 1, 2))
    _, lines = reported()
    rows = measured(lines)
    assert len(rows) == 2
    for line, shot in zip(rows, (1, 5), strict=True):
        of_shot = [results[fold, shot, 0] for fold in range(4)]
        values = figures_of(line)
        for result in of_shot:
            assert any(value == pytest.approx(100 * result["miou"], abs=0.051) for value in values)
        for name in ("miou", "fb_iou"):
            seeds = np.array([[seed[name] for seed in result["seeds"]] for result in of_shot])
            means = seeds.mean(0)
            assert any(value == pytest.approx(100 * means.mean(), abs=0.051) for value in values)
            half = scipy.stats.t.ppf(0.975, 2) * means.std(ddof=1) / 3**0.5
            assert any(value == pytest.approx(100 * half, abs=0.051) for value in values), "half the interval"


def test_several_trainings_are_one_row_with_their_deviation() -> None:
    results = make_sweep(Path("sweep"), shots=(1,), train_seeds=(0, 1, 2))
    done, lines = reported()
    (line,) = measured(lines)
    means = [np.mean([results[fold, 1, seed]["miou"] for fold in range(4)]) for seed in range(3)]
    values = figures_of(line)
    for expected in (np.mean(means), np.std(means, ddof=1)):
        assert any(value == pytest.approx(100 * expected, abs=0.051) for value in values)
    assert "standard deviation over the seeds of the training" in done.out


def test_a_mean_of_some_folds_says_so_and_other_cells_are_a_dash() -> None:
    make_sweep(Path("sweep"), folds=(0, 2), shots=(1,))
    done, _ = reported()
    assert "2 of 4 folds" in done.out
    assert "–" in done.out
    assert "2 of 4 folds" in Path("sweep/report/table.md").read_text()


def test_other_protocols_are_rows_of_their_own() -> None:
    make_sweep(Path("sweep/a"), shots=(1,))
    make_sweep(Path("sweep/b"), shots=(1,), protocol={"protocol": "hsnet", "order": "pairs"})
    done, lines = reported()
    assert len(measured(lines)) == 2
    assert "hsnet" in done.out
    assert "strict" in done.out


def test_a_job_of_both_resolutions_joins_those_of_one() -> None:
    both = make_run(Path("sweep/0"), fold=0, also=True)
    make_run(Path("sweep/1"), fold=1)
    make_run(Path("sweep/2"), fold=2, protocol={"resolution": "squashed"})
    _, lines = reported()
    original, squashed = measured(lines)
    assert [line["mean"].split(" ", 1)[1] for line in (original, squashed)] == ["(2 of 4 folds)"] * 2
    assert number(original["fold-0"]) == pytest.approx(100 * both["miou"], abs=0.051)
    assert number(squashed["fold-0"]) == pytest.approx(100 * both["also"]["squashed"]["miou"], abs=0.051)
    assert original["fold-1"] != squashed["fold-1"] == "–"
    assert squashed["fold-2"] != original["fold-2"] == "–"


def test_rows_are_called_what_methods_call_themselves() -> None:
    make_run(Path("sweep/0"), label="Any Net (v2), no prior")
    make_run(Path("sweep/1"), label="prototype", train_seed=None, network={"method": "prototype"})
    result = make_run(Path("sweep/2"), label="prototype", train_seed=None, network={"method": "prototype"}, shot=5)
    result["backbone"] = "DINOv2 ViT-S/14"
    Path("sweep/2/result.json").write_text(json.dumps(result))
    make_run(Path("sweep/3"), train_seed=None)
    _, lines = reported()
    assert [(line["model"], line["backbone"]) for line in measured(lines)] == [
        ("Any Net (v2), no prior", "ResNet-50"),
        ("prototype", "DINOv2 ViT-S/14"),
        ("prototype", "ResNet-50"),  # it has nothing to learn
        ("SD-AANet (published), untrained", "ResNet-50"),
    ]


def test_rows_of_one_label_say_what_they_differ_in() -> None:
    make_run(Path("sweep/0"), config={"lr": 0.1, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}})
    make_run(Path("sweep/1"), config={"lr": 0.1, "optimizer": {"name": "adam", "lr": 0.3}})
    make_run(
        Path("sweep/2"),
        config={"lr": 0.1, "optimizer": {"name": "adam", "lr": 0.3}},
        network={"backbone": {"name": "resnet50", "trainable": False, "norm": "frozen", "high": "stage3"}},
    )
    _, lines = reported()
    assert sorted(line["model"] for line in measured(lines)) == [
        "SD-AANet (published), backbone.high null, optimizer.name adam",
        "SD-AANet (published), backbone.high null, optimizer.name sgd, optimizer.momentum 0.9",
        "SD-AANet (published), backbone.high stage3, optimizer.name adam",
    ]


def test_several_classes_are_rows_of_their_own() -> None:
    make_run(Path("sweep/0"))
    result = make_run(Path("sweep/1"), companions=False, protocol={"way": 2})
    one, *_ = csv.reader(Path("sweep/0/episodes.csv").read_text().splitlines())
    rows = list(csv.reader(Path("sweep/0/episodes.csv").read_text().splitlines()))[1:]
    with Path("sweep/1/episodes.csv").open("w", newline="") as file:  # a row an episode and class
        csv.writer(file).writerows([one, *(row for row in rows for _ in range(2))])
    assert len(rows) == result["episodes"]
    done, lines = reported()
    assert len(measured(lines)) == 2
    assert "way 1" in done.out
    assert "way 2" in done.out


def test_losses_of_any_name_are_drawn() -> None:
    make_run(Path("sweep/0"), losses={"main": 0.7, "contrast": 0.001}, label="Any Net", network={"method": "any"})
    make_run(Path("sweep/1"), losses={"dice": 0.7})
    reported()
    text = Path("sweep/report/figures/losses.svg").read_text()
    for name in ("main", "contrast", "dice", "total"):
        assert f"<!-- {name} -->" in text
    assert "<!-- distillation -->" not in text


def test_folds_of_other_settings_of_the_data_set_are_rows_of_their_own() -> None:
    for fold, arrangement in enumerate(("interleaved", "contiguous")):
        source = {"arrangement": arrangement, "folds": 4}
        make_run(Path(f"sweep/{fold}"), fold=fold, dataset="coco20i", protocol={"source": source, "folds": 4})
    done, lines = reported()
    assert len(measured(lines)) == 2
    for arrangement in ("interleaved", "contiguous"):
        assert f'source {{"arrangement": "{arrangement}", "folds": 4}}' in done.out


def test_folders_of_other_classes_are_rows_of_their_own(tmp_path: Path) -> None:
    """Their data sets have one name: a mean over one's cats and the other's cars is none of anything."""
    told = []
    for fold, names in enumerate((("cat", "dog"), ("car", "bus"), ("cat", "dog"))):
        root = make_folder(tmp_path / str(fold), names)
        folder = {"_target_": "sd_aanet.data.sources.folder.Folder", "root": str(root)}
        data = EpisodeDataModule(folder, select_on="none")
        told.append(data.describe()["source"])
    assert told[0] == told[2]
    for fold, source in enumerate(told[:2]):
        make_run(Path(f"sweep/{fold}"), fold=fold, dataset="folder", protocol={"source": source, "folds": 2})
    done, lines = reported()
    assert len(measured(lines)) == 2
    assert "cat to dog (2, " in done.out


@pytest.mark.parametrize(("select_on", "marked"), [("base", ["aeroplane", "car"]), ("none", ["car"])])
def test_tests_on_seen_classes_are_marked(select_on: str, marked: list[str]) -> None:
    for fold in range(3):
        result = make_run(Path(f"sweep/{fold}"), fold=fold)
        assert len(result["protocol"]["classes"]["test"]) == 5
        result["training"] |= {"select_on": select_on, "classes": {"train": ["car"], "val": ["aeroplane"]}}
        Path(f"sweep/{fold}/result.json").write_text(json.dumps(result))
    done, lines = reported()
    labels = [line["model"] for line in measured(lines)]
    assert len(labels) == 2
    assert sum("CAUTION: has seen tested classes" in label for label in labels) == 1
    for name in ("aeroplane", "car"):
        said = f"has seen 1 of 5 tested classes ({name}) in training: these are not few-shot results"
        assert (said in done.out) == (name in marked)


def test_the_fields_figures_stand_beside_with_a_caution_and_without_folds() -> None:
    make_sweep(Path("sweep"))
    done, lines = reported()
    others = [line for line in lines if line not in measured(lines)]
    text = " ".join(str(line) for line in others)
    for figure in ("62.9", "65.5", "60.8", "69.5"):
        assert figure in text
    assert "CAUTION" in done.out
    for line in others:
        assert len(figures_of(line)) <= 1, "the mean alone: no fold of theirs is known"
    make_sweep(Path("own"), dataset="folder", network={"prior": False})
    own, _ = reported("own")
    assert "as reported" not in own.out


def test_the_table_is_in_three_formats() -> None:
    results = make_sweep(Path("sweep"), shots=(1,))
    reported()
    mean = f"{100 * np.mean([result['miou'] for result in results.values()]):.1f}"
    for name in TABLES:
        assert mean in Path("sweep/report", name).read_text()
    tex = Path("sweep/report/table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1
    assert r"\toprule" in tex
    widths = {line.count("&") for line in tex.splitlines() if line.rstrip().endswith(r"\\") and "&" in line}
    assert len(widths) == 1
    bars = {line.count("|") for line in Path("sweep/report/table.md").read_text().splitlines() if line.startswith("|")}
    assert len(bars) == 1


class Page(HTMLParser):
    """Which tags a page has, and whether all are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "hr", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_stands_alone() -> None:
    make_sweep(Path("sweep"), label="SD-AANet (<b>x</b>)")
    Path("sweep/failures").mkdir()
    Path("sweep/failures/fold9.txt").write_text("RuntimeError: <out> of memory")
    reported()
    text = Path("sweep/report/report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= 5
    assert all(str(picture["src"]).startswith("data:image/svg+xml") and picture["alt"] for picture in pictures)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert not str(attributes.get(name) or "#").startswith(("http", "//"))
    assert "<b>x</b>" not in text
    assert "&lt;out&gt; of memory" in text
    assert len(text) < 3_000_000


def test_failures_of_sweeps_at_any_depth_are_listed() -> None:
    for sweep, name in (("one", "fold0_shot9"), ("two/more", "fold0_shot9"), ("two", "fold1_shot9")):
        Path("sweeps", sweep, "failures").mkdir(parents=True)
        Path("sweeps", sweep, "failures", f"{name}.txt").write_text("too few images")
    refused(run("report", "sweeps"), "holds no result.json at any depth (3 failed jobs)")
    make_run(Path("sweeps/one/fold0_shot1"))
    done, _ = reported("sweeps")
    assert "failed jobs: 3" in done.out
    page = Path("sweeps/report/report.html").read_text()
    for name in ("one/fold0_shot9", "two/fold1_shot9", "two/more/fold0_shot9"):
        assert f"<summary>{name}</summary>" in page


def test_a_report_that_is_repeated_leaves_no_plot_of_the_one_before() -> None:
    make_run(Path("sweep/job"), dataset="pascal5i")
    reported()
    figures = Path("sweep/report/figures")
    assert (figures / "classes_pascal5i.svg").is_file()
    (figures / "notes.txt").write_text("not of a report")
    shutil.rmtree("sweep/job")
    make_run(Path("sweep/job"), dataset="coco20i")
    reported()
    names = {path.name for path in figures.iterdir()}
    assert "classes_coco20i.svg" in names
    assert not [name for name in names if "pascal5i" in name]
    assert "notes.txt" in names


def test_plots_are_whole_in_both_formats_and_repeat() -> None:
    make_sweep(Path("sweep"), folds=(0, 1))
    reported()
    figures = sorted(Path("sweep/report/figures").iterdir())
    assert len(figures) >= 10
    before = {path: path.read_bytes() for path in figures}
    for path in figures:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            with Image.open(path) as picture:
                picture.load()
                assert picture.width > 300
    reported()
    assert before == {path: path.read_bytes() for path in figures}


def test_what_is_missing_leaves_its_plot_out_and_says_so() -> None:
    make_run(Path("sweep/job"), companions=False)
    done, _ = reported()
    assert "no run has an episodes.csv" in done.out
    assert "no run has a metrics.csv" in done.out
    names = {path.stem for path in Path("sweep/report/figures").iterdir()}
    assert names
    assert "no run has an episodes.csv" in Path("sweep/report/report.html").read_text()


def test_a_real_evaluation_is_reported() -> None:
    data = ("strategy=cpu", "dataset.source.size=65", "dataset.source.images=100", "min_object_pixels=100")
    ran(
        "evaluate",
        "checkpoint=null",
        "model=prototype",
        *data,
        "episodes=6",
        "seeds=2",
        "resolution=both",
        "out=sweep/a",
    )
    _, lines = reported()
    result = json.loads(Path("sweep/a/result.json").read_text())
    assert any(value == pytest.approx(100 * result["miou"], abs=0.051) for value in figures_of(lines[0]))


def spoil(kind: str) -> None:
    result: dict[str, Any] = make_run(Path("sweep/job"))
    path = Path("sweep/job/result.json")
    if kind == "json":
        path.write_text("{")
    elif kind == "parts":
        del result["seeds"]
        path.write_text(json.dumps(result))
    elif kind in ODD:
        *parents, name = kind.split(".")
        reduce(getitem, parents, result)[name] = ODD[kind]
        path.write_text(json.dumps(result))
    elif kind == "lists without end":
        path.write_text("[" * 100_000)
    elif kind == "large":
        episodes = Path("sweep/job/episodes.csv")
        episodes.write_text(episodes.read_text().replace("original,0,0,", f"original,1{'0' * 30},0,", 1))
    elif kind == "foreign":
        path.write_text('{"loss": 1}')
    elif kind == "csv":
        episodes = Path("sweep/job/episodes.csv")
        episodes.write_text(episodes.read_text()[:900])
    elif kind == "npz":
        Path("sweep/job/prototypes.npz").write_bytes(b"PK")


ODD: dict[str, Any] = {
    **{"episodes": "40", "network": 5, "backbone": None, "label": [], "versions": 3, "protocol": 3, "training": 5},
    **{"protocol.way": "pascal5i", "protocol.folds": None, "protocol.test_shot": float("inf"), "protocol.fold": -1},
    **{"protocol.seed": [0], "protocol.classes.test": [5], "protocol.resolution": "half", "training.shot": 1e400},
    **{"miou": 10**400, "checkpoint": 7},
}
"""Values of another kind, by their place in a result."""
BAD = {
    **dict.fromkeys(ODD, ("is not a result", "move it away")),
    "lists without end": ("result.json' is not readable JSON", "evaluate again"),
    "large": ("episodes.csv'", "evaluate again"),
    "json": ("result.json' is not readable JSON", "evaluate again"),
    "parts": ("is not a result", "'seeds'", "evaluate again"),
    "foreign": ("is not a result",),
    "csv": ("episodes.csv'", "evaluate again"),
    "npz": ("prototypes.npz'", "evaluate again"),
}


@pytest.mark.parametrize("kind", BAD)
def test_results_that_are_none(kind: str) -> None:
    spoil(kind)
    with nothing_left():
        refused(run("report", "sweep"), *BAD[kind])


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's, on a letter that its font lacks
@pytest.mark.parametrize("name", ["../../../escaped", "a\0b", "$a^", "x" * 300, "${size}", "猫/猫"])
def test_data_sets_of_any_name_have_their_plots_in_the_reports_folder(name: str, tmp_path: Path) -> None:
    made: dict[str, Any] = make_run(Path("deep/er/sweep/job"), episodes=10)
    made["protocol"]["dataset"] = made["training"]["dataset"] = name
    made["classes"] = {f"{name} {number}": entry for number, entry in enumerate(made["classes"].values())}
    Path("deep/er/sweep/job/result.json").write_text(json.dumps(made))
    ran("report", "deep/er/sweep")
    written = {path for path in Path().rglob("*.*") if path.is_file()}
    assert {path.parts[:4] for path in written} == {("deep", "er", "sweep", "job"), ("deep", "er", "sweep", "report")}
    assert [*Path("deep/er/sweep/report/figures").glob("*.svg")]


def test_folders_without_results() -> None:
    refused(run("report", "missing"), "folder 'missing' does not exist")
    Path("empty").mkdir()
    with nothing_left():
        refused(run("report", "empty"), "holds no result.json")
    make_run(Path("sweep/job"))
    refused(run("report", "sweep", "--out", "/proc/no/such"), "/proc/no/such")


@pytest.mark.parametrize(
    "other",
    [{"checkpoint": "pretrained.ckpt"}, {"backbone": {"weights": "other.pth"}}, {"precision": "bf16-mixed"}],
)
def test_trainings_that_began_otherwise_are_rows_of_their_own(other: dict[str, Any]) -> None:
    """They were averaged, as if another seed made the difference."""
    first = {"checkpoint": None, "backbone": {"weights": "torchvision://resnet50"}, "precision": "32-true"}
    for seed, config in enumerate((first, first | other)):
        for fold in (0, 1):
            own = {"checkpoint": f"{fold}/{config['checkpoint']}"} if config["checkpoint"] else {}
            make_run(Path(f"sweep/{seed}{fold}"), fold=fold, train_seed=seed, config=config | own)
    lines = measured(reported()[1])
    assert len(lines) == 2
    assert all("bf16" in line["model"] or "other" in line["model"] or "given" in line["model"] for line in lines[1:])


def test_tests_in_another_precision_are_rows_of_their_own() -> None:
    for seed, precision in enumerate(("32-true", "bf16-mixed")):
        result = make_run(Path(f"sweep/{seed}"), train_seed=seed)
        Path(f"sweep/{seed}/result.json").write_text(json.dumps(result | {"precision": precision}))
    labels = [line["model"].partition(", ")[2] for line in measured(reported()[1])]
    assert labels == ["tested in 32-true", "tested in bf16-mixed"]


def test_names_that_are_not_in_utf_8_are_told_as_what_they_are() -> None:
    make_run(Path("sweep", os.fsdecode(b"caf\xe9")))
    ran("report", "sweep")
    assert "caf\\udce9" in Path("sweep/report/report.html").read_text(encoding="utf-8")
    make_run(Path("strange/a"), label="half a \ud83d sign")
    refused(run("report", "strange"), "strange/a/result.json' is not a result", "label=", "expected a text in UTF-8")
