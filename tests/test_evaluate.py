"""`sd-aanet evaluate`: its figures, what repeats, and what may differ from training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import EVALUATION, TINY, Done, ran

FIGURES = ("miou", "fb_iou", "foreground_iou", "background_iou", "classes", "rows", "episodes", "protocol", "network")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(trained: tuple[Path, Done]) -> str:
    return f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}"


def evaluated(*arguments: str, out: str = "out") -> dict[str, Any]:
    ran("evaluate", *EVALUATION, *arguments, f"out={out}")
    result: dict[str, Any] = json.loads(Path(out, "result.json").read_text())
    return result


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in FIGURES}


def test_the_figures_are_those_of_the_training_and_follow_from_the_rows(
    trained: tuple[Path, Done], checkpoint: str
) -> None:
    result = evaluated(checkpoint)
    at_its_end = json.loads((trained[0] / "result.json").read_text())
    for name in ("miou", "fb_iou", "classes", "rows"):
        assert result[name] == at_its_end[name]
    rows = np.array(result["rows"])
    assert rows[:, 0].tolist() == list(range(6))
    novel = result["protocol"]["classes"]["test"]
    assert [novel[c - 1] for c in rows[:, 1]] == [novel[i % 5] for i in range(6)], "each novel class in turn"
    foreground = [rows[rows[:, 1] == c][:, 2:4].sum(0) for c in np.unique(rows[:, 1])]
    assert result["miou"] == pytest.approx(np.mean([i / max(u, 1) for i, u in foreground]))
    sums = rows[:, 2:].sum(0)
    assert result["fb_iou"] == pytest.approx((sums[0] / sums[1] + sums[2] / sums[3]) / 2)


def test_it_repeats_bit_for_bit_with_workers_and_other_batches(checkpoint: str) -> None:
    first = evaluated(checkpoint, out="one")
    assert figures(evaluated(checkpoint, "workers=2", "batch_size=3", out="three")) == figures(first)


def test_remembered_features_give_the_figures_of_computed_ones(checkpoint: str) -> None:
    computed = evaluated(checkpoint, "features=compute", "shot=2")
    for more in (("remember_gb=0.000001",), ("remember_dir=features",), ("remember_dir=features",)):
        assert figures(evaluated(checkpoint, "features=remember", "shot=2", *more)) == figures(computed)


def test_other_shots_other_sizes_other_folds(checkpoint: str) -> None:
    five = evaluated(checkpoint, "shot=5", "size=49", "resize=keep_aspect")
    assert five["protocol"]["test_shot"] == 5
    assert five["protocol"]["resolution"] == "keep_aspect to 49"
    other = evaluated(checkpoint, "fold=1")
    assert other["protocol"]["resolution"] == "squash to 65", "as in training, where nothing is said"
    assert not set(other["classes"]) & set(five["classes"])


def test_classes_that_were_trained_on_are_pointed_out(checkpoint: str) -> None:
    words = "CAUTION: this checkpoint was trained for fold=0 of shapes: it has seen classes of fold=1"
    assert words in ran("evaluate", *EVALUATION, checkpoint, "fold=1").out
    assert "CAUTION" not in ran("evaluate", *EVALUATION, checkpoint, "fold=0", "out=out").out


def test_another_seed_is_another_list_of_episodes(trained: tuple[Path, Done], checkpoint: str) -> None:
    assert evaluated(checkpoint, "seed=1")["rows"] != json.loads((trained[0] / "result.json").read_text())["rows"]


def test_the_prototype_needs_no_checkpoint_and_takes_the_backbone_of_one(
    trained: tuple[Path, Done], checkpoint: str
) -> None:
    prototype = ("checkpoint=null", "model=prototype")
    random = evaluated(*prototype)
    assert random["network"]["method"] == "prototype"
    assert figures(evaluated(*prototype)) == figures(random), "random weights come from the seed"
    weights = f"backbone.weights={trained[0] / 'checkpoints/best.ckpt'}"
    same_features = evaluated(*prototype, weights)
    assert same_features["checkpoint"] is None
    assert same_features["rows"] != random["rows"]
    stage2 = evaluated(*prototype, weights, "model.stage=2")
    assert stage2["rows"] != same_features["rows"]


def test_every_switch_of_the_protocol_stands_beside_the_figures(trained: tuple[Path, Done]) -> None:
    result = json.loads((trained[0] / "result.json").read_text())
    switches = ("dataset", "fold", "test_shot", "test_seed", "size", "resize", "min_object_pixels", "test_episodes")
    assert {*switches, "resolution", "ignore_boundary", "classes"} <= set(result["protocol"])
    assert {"torch", "numpy", "pytorch_lightning", "sd_aanet", "python"} <= set(result["versions"])
    assert result["seconds"] >= 0
    assert result["episodes_per_second"] > 0


def test_the_picture_shows_three_episodes_and_the_table_every_class(checkpoint: str) -> None:
    done = ran("evaluate", *EVALUATION, checkpoint, "out=out")
    result = json.loads(Path("out/result.json").read_text())
    for name, values in result["classes"].items():
        assert f"{name:<16}{values['episodes']:>9}{values['iou']:>8.3f}" in done.out
    assert f"{result['miou']:.3f}" in done.out
    assert "min_object_pixels 100" in done.out
    with Image.open("out/episodes.png") as picture:
        assert picture.width > 200
        assert picture.height > 200


def test_results_have_folders_of_their_own(checkpoint: str) -> None:
    ran("evaluate", *EVALUATION, checkpoint)
    (folder,) = Path("evaluations").iterdir()
    assert (folder / "result.json").is_file()
    ran("evaluate", "-m", "fold=0,1", *EVALUATION, checkpoint)
    assert len(list(Path("evaluations/sweeps").glob("*/*/result.json"))) == 2


def test_an_untrained_network_can_be_evaluated() -> None:
    settings = [setting for setting in TINY if setting.startswith(("strategy", "dataset", "backbone", "min", "prec"))]
    ran("evaluate", "checkpoint=null", *settings, "episodes=6", "shot=2", "out=out")
    assert json.loads(Path("out/result.json").read_text())["network"]["channels"] == 8
