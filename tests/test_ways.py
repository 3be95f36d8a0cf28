"""Several classes at once: training, evaluation, lists of episodes and reports."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import EVALUATION, TINY, Done, episode_rows, metrics, ran, refused, run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result_of(folder: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return result


def check(result: dict[str, Any], folder: Path, way: int) -> None:
    """Scores of `way` classes an episode follow from the rows and from the confusion."""
    novel = result["protocol"]["classes"]["test"]
    assert result["protocol"]["way"] == way
    rows = np.array(episode_rows(folder))
    assert len(rows) == way * result["episodes"]
    assert rows[:, 1].tolist() == [index for index in range(result["episodes"]) for _ in range(way)]
    for index, classes in enumerate(rows[:, 2].reshape(-1, way).tolist()):
        assert len(set(classes)) == way
        assert index % 5 + 1 in classes, "each novel class in turn, in any place"
    for class_id in np.unique(rows[:, 2]):
        intersection, union = rows[rows[:, 2] == class_id][:, 3:5].sum(0)
        one = result["classes"][novel[class_id - 1]]
        assert one["iou"] == pytest.approx(intersection / max(union, 1))
        assert one["episodes"] == (rows[:, 2] == class_id).sum()
    assert result["miou"] == pytest.approx(np.mean([one["iou"] for one in result["classes"].values()]))
    confusion = result["confusion"]
    assert confusion["classes"] == ["background", *[name for name in novel if name in confusion["classes"]]]
    shares = np.array(confusion["shares"])
    assert shares.shape == (len(confusion["classes"]),) * 2
    assert shares.sum(1) == pytest.approx(1, abs=1e-5)
    for place, name in enumerate(confusion["classes"][1:], start=1):
        of_class = rows[rows[:, 2] == novel.index(name) + 1]
        assert shares[place, place] == pytest.approx(of_class[:, 3].sum() / of_class[:, 7].sum(), abs=1e-5)


def test_two_classes_are_trained_validated_and_evaluated() -> None:
    done = ran("train", *TINY, "way=2", "steps=2", "val_every=1", "out=run")
    assert sum("val/miou" in row for row in metrics(Path("run"))) == 2
    result = result_of("run")
    check(result, Path("run"), 2)
    assert (result["training"]["way"], result["episodes"]) == (2, 6)
    assert "way 2" in done.out
    assert "fold=0 way=2 shot=5" in done.out, "what comes next has as many classes"
    ran("evaluate", *EVALUATION, "checkpoint=run/checkpoints/best.ckpt", "way=2", "out=again")
    again = result_of("again")
    for name in ("miou", "fb_iou", "classes", "seeds", "confusion", "protocol"):
        assert again[name] == result[name]


@pytest.mark.parametrize("way", [2, 5])
def test_a_training_of_one_class_is_evaluated_on_several(way: int, trained: tuple[Path, Done]) -> None:
    checkpoint = f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}"
    small = ("shot=2", "resolution=both", f"way={way}")
    ran("evaluate", *EVALUATION, checkpoint, *small, "out=one")
    result = result_of("one")
    check(result, Path("one"), way)
    assert result["training"]["way"] == 1
    ran("evaluate", *EVALUATION, checkpoint, *small, "batch_size=1", "workers=1", "cache_gb=0.000001", "out=other")
    assert Path("one/episodes.csv").read_text() == Path("other/episodes.csv").read_text()
    assert result_of("other")["confusion"] == result["confusion"]


def test_one_class_has_no_confusion(trained: tuple[Path, Done]) -> None:
    assert json.loads((trained[0] / "result.json").read_text())["confusion"] is None


def test_the_prototype_tells_classes_apart() -> None:
    """Features of random weights know colours at least: no class takes all."""
    ran("evaluate", *EVALUATION, "checkpoint=null", "model=prototype", "way=3", "out=out")
    result = result_of("out")
    check(result, Path("out"), 3)
    assert (np.array(result["confusion"]["shares"]).max(0) > 0).sum() > 2


def test_more_classes_than_there_are(trained: tuple[Path, Done]) -> None:
    checkpoint = f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}"
    refused(run("evaluate", *EVALUATION, checkpoint, "way=6", "out=out"), "way=6, expected 1 to 5", "a smaller way")
    assert not Path("out").exists()


def test_a_list_of_several_classes_gives_the_scores_of_the_drawn_one_and_is_reported(
    trained: tuple[Path, Done],
) -> None:
    data = [setting for setting in EVALUATION if setting.startswith(("dataset", "min", "episodes"))]
    done = ran("episodes", *data, "way=2", "seed=3", "--out", "list.json")
    assert "written: list.json, 6 episodes of 5 classes" in done.out
    content = json.loads(Path("list.json").read_text())
    assert content["way"] == 2
    assert all(len(entry["class"]) == len(entry["supports"]) == 2 for entry in content["episodes"])
    checkpoint = f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}"
    ran("evaluate", *EVALUATION, checkpoint, "episodes_file=list.json", "out=results/listed")
    ran("evaluate", *EVALUATION, checkpoint, "way=2", "seed=3", "out=results/drawn")
    listed, drawn = result_of("results/listed"), result_of("results/drawn")
    check(listed, Path("results/listed"), 2)
    assert listed["seeds"][0]["episodes"] == drawn["seeds"][0]["episodes"] == content["digest"]
    for name in ("miou", "classes", "confusion"):
        assert listed[name] == drawn[name]
    ran("compare", "results/listed", "results/drawn")
    ran("evaluate", *EVALUATION, checkpoint, "out=results/one_way")
    ran("report", "results")
    with Path("results/report/table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    means = {f"{100 * result_of(f'results/{name}')['miou']:.1f}" for name in ("drawn", "one_way")}
    assert {line["fold-0"] for line in lines if line["model"].startswith("SD-AANet")} >= means, "never in one row"
    assert Path("results/report/report.html").is_file()
