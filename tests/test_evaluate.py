"""`sd-aanet evaluate`: its scores, what repeats, and what may differ from training."""

import csv
import errno
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from commands import EVALUATION, TINY, Done, episode_rows, ran, refused, run
from data.fake_folder import make_folder
from sd_aanet.errors import PredictionError
from sd_aanet.pictures import EpisodeRow, episode_picture
from sd_aanet.segmenting.segmenter import FewShotSegmenter
from sd_aanet.settings import named

PROTOTYPE = ("checkpoint=null", "model=prototype")
FIGURES = ("miou", "fb_iou", "foreground_iou", "background_iou", "classes", "seeds", "episodes", "protocol", "network")


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
    for name in ("miou", "fb_iou", "classes", "seeds", "training", "protocol"):
        assert result[name] == at_its_end[name]
    assert episode_rows(Path("out")) == episode_rows(trained[0])
    rows = np.array(episode_rows(Path("out")))[:, 1:]
    assert rows[:, 0].tolist() == list(range(6))
    novel = result["protocol"]["classes"]["test"]
    assert [novel[c - 1] for c in rows[:, 1]] == [novel[i % 5] for i in range(6)], "each novel class in turn"
    foreground = [rows[rows[:, 1] == c][:, 2:4].sum(0) for c in np.unique(rows[:, 1])]
    assert result["miou"] == pytest.approx(np.mean([i / max(u, 1) for i, u in foreground]))
    sums = rows[:, 2:6].sum(0)
    assert result["fb_iou"] == pytest.approx((sums[0] / sums[1] + sums[2] / sums[3]) / 2)


def test_it_repeats_bit_for_bit_with_workers_and_other_batches(checkpoint: str) -> None:
    first = evaluated(checkpoint, "seeds=2", out="one")
    assert figures(evaluated(checkpoint, "seeds=2", "workers=2", "batch_size=3", out="three")) == figures(first)
    assert Path("one/episodes.csv").read_text() == Path("three/episodes.csv").read_text()


def test_what_is_kept_changes_no_score(checkpoint: str) -> None:
    plenty = evaluated(checkpoint, "shot=2")
    for more in (("cache_gb=0.000001",), ("cache_dir=features",), ("cache_dir=features",)):
        assert figures(evaluated(checkpoint, "shot=2", *more)) == figures(plenty)


def test_features_that_are_kept_answer_for_no_other_picture() -> None:
    """Two data sets of the same names share a folder, and one's masks are replaced."""

    def check(root: str) -> None:
        given = ("dataset=folder", f"dataset.root={root}", "min_object_pixels=1", "episodes=4", "size=65")
        both = [
            run("evaluate", *PROTOTYPE, *given, "backbone.weights=null", *more, f"out=e{len(more)}")
            for more in ((), ("cache_dir=features",))
        ]
        results = [json.loads(Path(f"e{n}/result.json").read_text()) for n in (0, 1)]
        assert [done.code for done in both] == [0, 0]
        assert figures(results[0]) == figures(results[1])

    make_folder(Path("own"))
    check("own")
    make_folder(Path("other"))
    for path in Path("other/images").iterdir():
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    check("other")
    for path in Path("other/masks").iterdir():
        Image.fromarray(np.array(Image.open(path))[::-1, ::-1]).save(path)
    check("other")


def test_bf16_is_scored_and_drawn(checkpoint: str) -> None:
    exact = evaluated(checkpoint, out="exact")
    rounded = evaluated(checkpoint, "precision=bf16-mixed", out="rounded")
    assert (rounded["precision"], exact["precision"]) == ("bf16-mixed", "32-true")
    assert rounded["miou"] == pytest.approx(exact["miou"], abs=0.02)
    assert Path("rounded/episodes.png").is_file()


def test_other_shots_other_sizes_other_folds(checkpoint: str) -> None:
    five = evaluated(checkpoint, "shot=5", "size=49", "resize=keep_aspect")
    assert five["protocol"]["test_shot"] == 5
    assert (five["protocol"]["resize"], five["protocol"]["size"]) == ("keep_aspect", 49)
    other = evaluated(checkpoint, "fold=1")
    assert (other["protocol"]["resize"], other["protocol"]["size"]) == ("squash", 65), "as in training"
    assert not set(other["classes"]) & set(five["classes"])


def test_classes_that_were_trained_on_are_pointed_out(checkpoint: str) -> None:
    words = "CAUTION: this network has seen 5 of 5 tested classes (zigzag arrow, "
    assert words in ran("evaluate", *EVALUATION, checkpoint, "fold=1").out
    assert "CAUTION" not in ran("evaluate", *EVALUATION, checkpoint, "fold=0", "out=out").out
    ran("report", "evaluations")
    assert "CAUTION: has seen tested classes" in next(Path("evaluations").glob("report/table.csv")).read_text()


def test_a_result_names_the_checkpoint_that_a_link_led_to(trained: tuple[Path, Done]) -> None:
    """By it a report finds the training's settings, when runs/latest is another training."""
    Path("latest").symlink_to(trained[0], target_is_directory=True)
    evaluated("checkpoint=latest/checkpoints/best.ckpt")
    assert json.loads(Path("out/result.json").read_text())["checkpoint"] == f"{trained[0]}/checkpoints/best.ckpt"


def test_no_result_stands_beside_the_files_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(result: Any, out: Path, checkpoint: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    evaluated(*PROTOTYPE)
    monkeypatch.setattr("sd_aanet.evaluation.run.write_result", full)
    refused(run("evaluate", *EVALUATION, *PROTOTYPE, "seed=7", "out=out"), "no space left")
    assert not Path("out/result.json").exists(), "of seed 0, while episodes.csv is of seed 7"


def test_a_checkpoint_tells_the_switches_of_its_training_not_the_evaluation() -> None:
    ran("train", *TINY, "held_out=5", "augment=published", "out=run")
    at_its_end = json.loads(Path("run/result.json").read_text())["protocol"]
    assert (at_its_end["held_out"], at_its_end["val_episodes"], at_its_end["augment"]) == (5, 4, "published")
    assert [len(at_its_end["classes"][stage]) for stage in ("train", "val", "test")] == [10, 5, 5]
    assert evaluated("checkpoint=run/checkpoints/best.ckpt", "fold=0")["protocol"] == at_its_end
    untrained = evaluated(*PROTOTYPE)["protocol"]
    assert all(untrained[name] is None for name in named("trained"))
    assert (untrained["classes"]["train"], untrained["classes"]["val"]) == (None, None)


def test_other_settings_of_a_data_set_make_other_classes_of_the_same_fold() -> None:
    make_folder(Path("own"), images=3)
    data = ("dataset=folder", "dataset.root=own", "min_object_pixels=1")
    tiny = [setting for setting in TINY if not setting.startswith(("dataset", "min"))]
    ran("train", *tiny, *data, "size=33", "out=run")
    seen = json.loads(Path("run/result.json").read_text())["training"]["classes"]
    plain = [setting for setting in EVALUATION if not setting.startswith(("dataset", "min"))]
    own, novel = {}, {}
    for seed in range(4):
        done = ran(
            "evaluate",
            *plain,
            *data,
            "checkpoint=run/checkpoints/best.ckpt",
            f"dataset.source.seed={seed}",
            f"out={seed}",
        )
        protocol = json.loads(Path(f"{seed}/result.json").read_text())["protocol"]
        own[seed], novel[seed] = protocol["source"], protocol["classes"]["test"]
        assert ("CAUTION" in done.out) == bool({*novel[seed]} & {*seen["train"], *seen["val"]})
    assert len({name for names in novel.values() for name in names}) > 1, "fold 0 is another one with another seed"
    assert own[1].pop("classes").startswith("cat to fox (4, ")
    assert own[1] == {"folds": None, "seed": 1, "val_share": 0.3}


def test_another_seed_is_another_list_of_episodes(trained: tuple[Path, Done], checkpoint: str) -> None:
    other, at_its_end = evaluated(checkpoint, "seed=1"), json.loads((trained[0] / "result.json").read_text())
    assert other["seeds"][0]["episodes"] != at_its_end["seeds"][0]["episodes"]


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
    assert same_features["training"] is None
    assert same_features["seeds"] != random["seeds"]
    stage2 = evaluated(*prototype, weights, "model.features=stage2")
    assert stage2["seeds"] != same_features["seeds"]


def test_every_switch_of_the_protocol_stands_beside_the_figures(trained: tuple[Path, Done]) -> None:
    result = json.loads((trained[0] / "result.json").read_text())
    switches = ("protocol", "dataset", "fold", "test_shot", "size", "resize", "min_object_pixels", "episodes", "seeds")
    more = ("resolution", "ignore_boundary", "classes", "order", "select_on", "novel_in_train", "scales", "flip")
    assert {*switches, *more} <= set(result["protocol"])
    assert result["training"] == {
        "dataset": "shapes", "fold": 0, "way": 1, "shot": 1, "seed": 0, "steps": 4, "size": 65, "augment": "flip",
        "select_on": "base", "novel_in_train": "background", "held_out": 3, "val_episodes": 4,
        "classes": {stage: result["protocol"]["classes"][stage] for stage in ("train", "val")},
    }  # fmt: skip
    assert [len(names) for names in result["training"]["classes"].values()] == [12, 3]
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


def test_the_pictured_episodes_are_the_best_the_median_and_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[EpisodeRow] = []

    def kept(rows: Sequence[EpisodeRow]) -> Image.Image:
        drawn.extend(rows)
        return episode_picture(rows)

    monkeypatch.setattr("sd_aanet.evaluation.evaluate.episode_picture", kept)
    names = evaluated(*PROTOTYPE, "way=2")["protocol"]["classes"]["test"]
    table = np.array(episode_rows(Path("out"))).reshape(6, 2, 8)  # of each episode two classes
    iou = table[:, :, 3].sum(1) / table[:, :, 4].sum(1)
    order = np.argsort(iou, kind="stable")
    assert iou[order[0]] < iou[order[3]] < iou[order[-1]]
    for row, word, i in zip(drawn, ("best", "median", "worst"), (order[-1], order[3], order[0]), strict=True):
        assert row.title == f"{word}: {', '.join(names[c - 1] for c in table[i, :, 2])}, IoU {iou[i]:.2f}"
        assert (row.query_mask == 1).sum() == table[i, :, 7].sum(), "any of the classes is the object"
        assert set(np.unique(row.query_mask)) == {0, 1}


def test_results_have_folders_of_their_own(checkpoint: str) -> None:
    ran("evaluate", *EVALUATION, checkpoint)
    (folder,) = Path("evaluations").iterdir()
    assert (folder / "result.json").is_file()
    ran("evaluate", "-m", "fold=0,1", *EVALUATION, checkpoint)
    assert len(list(Path("evaluations/sweeps").glob("*/*/result.json"))) == 2


def test_a_folder_that_another_process_writes_to_is_refused(checkpoint: str) -> None:
    Path("out").mkdir()
    with FileLock("out/.lock"):
        refused(run("evaluate", *EVALUATION, checkpoint, "out=out"), "out='out' is in use")
    assert [path.name for path in Path("out").iterdir() if path.name != ".lock"] == []


def test_an_untrained_network_can_be_evaluated() -> None:
    settings = [setting for setting in TINY if setting.startswith(("strategy", "dataset", "model", "min", "prec"))]
    ran("evaluate", "checkpoint=null", *settings, "episodes=6", "shot=2", "out=out")
    assert json.loads(Path("out/result.json").read_text())["network"]["channels"] == 8


# Protocols


def test_strict_is_the_default_and_presets_set_every_switch(checkpoint: str) -> None:
    plain = [setting for setting in EVALUATION if not setting.startswith(("seeds", "episodes", "min"))]
    shown = {}
    for name in ("strict", "hsnet", "published"):
        preset = () if name == "strict" else (f"protocol={name}",)
        ran("evaluate", *plain, checkpoint, *preset, "episodes=5", f"out={name}")
        shown[name] = json.loads(Path(name, "result.json").read_text())["protocol"]
    switches = ("seeds", "resolution", "order", "min_object_pixels", "select_on")
    assert [shown["strict"][s] for s in switches] == [5, "original", "classes", 375, "base"]
    assert [shown["hsnet"][s] for s in switches] == [1, "squashed", "pairs", 0, "base"], "as it was trained"
    assert [shown["published"][s] for s in switches] == [1, "squashed", "classes", 375, "base"]
    assert [shown[name]["protocol"] for name in shown] == list(shown)


def test_seeds_are_lists_of_their_own_with_mean_and_spread(trained: tuple[Path, Done]) -> None:
    prototype = (*PROTOTYPE, f"backbone.weights={trained[0] / 'checkpoints/best.ckpt'}")
    several = evaluated(*prototype, "seeds=3", "seed=4")
    assert [one["seed"] for one in several["seeds"]] == [4, 5, 6]
    assert len({one["episodes"] for one in several["seeds"]}) == 3
    alone = evaluated(*prototype, "seed=5", out="alone")
    assert alone["spread"] is None
    assert alone["seeds"][0] == several["seeds"][1]
    for name in ("miou", "fb_iou"):
        values = [one[name] for one in several["seeds"]]
        assert several[name] == pytest.approx(np.mean(values))
        assert several["spread"][name]["sd"] == pytest.approx(np.std(values, ddof=1))
        low, high = several["spread"][name]["interval"]
        assert low <= several[name] <= high
    assert several["episodes"] == 18
    assert "over 3 seeds" in ran("evaluate", *EVALUATION, *prototype, "seeds=3", "out=more").out
    with np.load("out/prototypes.npz", allow_pickle=False) as prototypes:
        assert prototypes["prototype"].shape == (6, 256)
        assert prototypes["class_id"].tolist() == [1, 2, 3, 4, 5, 1]


def test_both_resolutions_are_those_of_each_alone() -> None:
    both = evaluated(*PROTOTYPE, "size=49", "resolution=both", out="both")
    names = ("original", "squashed")
    alone = {name: evaluated(*PROTOTYPE, "size=49", f"resolution={name}", out=name) for name in names}
    assert both["miou"] == alone["original"]["miou"]
    assert both["also"]["squashed"]["seeds"] == alone["squashed"]["seeds"]
    assert list(both["also"]) == ["squashed"]
    for name, result in alone.items():
        assert result["also"] == {}
        assert episode_rows(Path("both"), name) == episode_rows(Path(name), name)
    assert sum(row[4] + row[5] for row in episode_rows(Path("original"))) == 6 * 65 * 65, "the photographs' pixels"
    assert sum(row[4] + row[5] for row in episode_rows(Path("squashed"), "squashed")) == 6 * 49 * 49


def test_views_are_switches_that_stand_beside_the_figures(checkpoint: str) -> None:
    views = evaluated(checkpoint, "scales=[0.8,1.0]", "flip=true")
    assert (views["protocol"]["scales"], views["protocol"]["flip"]) == ([0.8, 1.0], True)
    refused(
        run("evaluate", *EVALUATION, checkpoint, "scales=[0]", "out=bad"), "scales=[0]", "a list of numbers above 0"
    )
    for scales in ("[0.01]", "[0.8,50]"):
        refused(
            run("evaluate", *EVALUATION, checkpoint, f"scales={scales}", "out=bad"),
            f"scales={scales}, expected numbers from 0.25 to 4",
        )


# Lists of episodes, and comparisons


def test_a_list_that_was_written_gives_the_figures_of_the_drawn_one(checkpoint: str) -> None:
    data = [setting for setting in EVALUATION if setting.startswith(("dataset", "min", "episodes"))]
    done = ran("episodes", *data, "shot=2", "seed=3", "--out", "my list.json")
    assert "written: my list.json, 6 episodes of 5 classes" in done.out
    for way in (1, 2):  # neither writes over the other
        ran("episodes", *data, f"way={way}")
        assert Path(f"shapes_fold0_way{way}_shot1_seed0.json").is_file()
    drawn = evaluated(checkpoint, "shot=2", "seed=3", out="drawn")
    plain = [setting for setting in EVALUATION if not setting.startswith("seeds")]  # strict asks for five lists
    ran("evaluate", *plain, checkpoint, 'episodes_file="my list.json"', "out=listed")
    listed = json.loads(Path("listed/result.json").read_text())
    assert listed["miou"] == drawn["miou"]
    assert listed["seeds"][0]["episodes"] == drawn["seeds"][0]["episodes"]
    assert (listed["protocol"]["test_shot"], listed["protocol"]["seeds"]) == (2, 1)
    assert listed["protocol"]["episodes_file"] == "my list.json"
    done = ran("compare", "drawn", "drawn")
    assert "+0.00   [+0.00, +0.00]" in done.out


def test_two_results_are_compared_over_the_same_episodes() -> None:
    network = ("checkpoint=null", "seeds=2")
    for stage, folder in ((3, "a"), (2, "b")):
        for fold in (0, 1):
            evaluated(
                *network, "model=prototype", f"model.features=stage{stage}", f"fold={fold}", out=f"{folder}/{fold}"
            )
    done = ran("compare", "a", "b")
    lines = [line for line in done.out.splitlines() if line.startswith("shapes fold ")]
    assert [line.split()[:3] for line in lines] == [["shapes", "fold", "0"], ["shapes", "fold", "1"]]
    for fold, line in enumerate(lines):
        first, second, difference, low, high = map(float, re.findall(r"[+-]?\d+\.\d+", line))
        expected = [100 * json.loads(Path(f, str(fold), "result.json").read_text())["miou"] for f in "ab"]
        assert (first, second) == pytest.approx(expected, abs=0.0051)
        assert low - 0.01 <= difference <= high + 0.01
    assert "\nmean " in done.out
    refused(run("compare", "a/0", "b/1"), "different lists of episodes", "episodes_file")
    refused(run("compare", "a", "missing"), "'missing' holds no result.json")
    Path("old").mkdir()
    Path("old/result.json").write_text('{"miou": 0.5, "rows": []}')
    refused(run("compare", "a/0", "old"), "'old/result.json'", "evaluate again")
    evaluated(*network, "model=prototype", "fold=0", out="a/again")
    refused(run("compare", "a", "b"), "holds two results of shapes fold 0 1-shot seed -")


# Lists of episodes that are not of the fold


def a_list(*settings: str) -> dict[str, Any]:
    """list.json by `sd-aanet episodes`, of the small data set."""
    data = [setting for setting in EVALUATION if setting.startswith(("dataset", "episodes"))]
    ran("episodes", *data, *settings, "--out", "list.json")
    content: dict[str, Any] = json.loads(Path("list.json").read_text())
    return content


def listed(checkpoint: str, content: dict[str, Any], *settings: str) -> tuple[Done, dict[str, Any]]:
    Path("list.json").write_text(json.dumps(content))
    done = ran("evaluate", *EVALUATION, checkpoint, "episodes_file=list.json", "out=listed", *settings)
    return done, json.loads(Path("listed/result.json").read_text())


def test_a_list_carries_its_own_switches(checkpoint: str) -> None:
    content = a_list("fold=1", "shot=2", "order=pairs", "min_object_pixels=50", "seed=7")
    done, result = listed(checkpoint, content, "fold=1")
    names = ("fold", "order", "min_object_pixels", "short_classes", "seed", "test_shot", "shot")
    assert [result["protocol"][name] for name in names] == [1, "pairs", 50, "refuse", 7, 2, 1]
    assert sorted(result["protocol"]["classes"]["test"]) == sorted(result["classes"])
    assert "CAUTION: this network has seen" in done.out
    for other in ("order", "min_object_pixels", "short_classes", "seed", "fold", "dataset"):
        del content[other]
    done, result = listed(checkpoint, content, "fold=1")
    assert [result["protocol"][name] for name in names] == [1, None, None, None, None, 2, 1]
    assert "CAUTION: this network has seen" in done.out


def test_a_list_of_base_classes_is_of_no_fold(checkpoint: str) -> None:
    content = a_list("fold=1", "min_object_pixels=100")
    del content["fold"]
    done, result = listed(checkpoint, content, "fold=0")
    assert result["protocol"]["fold"] is None
    assert sorted(result["protocol"]["classes"]["test"]) == sorted(result["classes"])
    assert "CAUTION: this network has seen 5 of 5 tested classes" in done.out
    evaluated(checkpoint, out="drawn")
    ran("report", ".")
    with Path("report/table.csv").open(newline="") as file:
        lines = {"CAUTION" in line["model"]: line for line in csv.DictReader(file)}
    assert [lines[True][f"fold-{fold}"] for fold in range(4)] == [""] * 4, "of no fold, and none of them missing"
    assert lines[True]["mean"] == f"{100 * result['miou']:.1f}"
    assert lines[False]["fold-0"] != lines[False]["fold-1"] == "–"
    assert "shapes no fold 1-shot seed 0" in ran("compare", "listed", "listed").out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"fold": 1}, "episodes_file=list.json is a list of fold 1, not of fold=0: set fold=1"),
        ({"dataset": "folder"}, "episodes_file=list.json is a list of the data set folder, not of shapes"),
        ({"fold": "0"}, "episodes_file=list.json says fold='0', expected a whole number"),
        ({"dataset": 3}, "episodes_file=list.json says dataset=3, expected a name"),
    ],
)
def test_a_list_that_is_of_another_data_set_or_fold(checkpoint: str, said: dict[str, Any], words: str) -> None:
    Path("list.json").write_text(json.dumps(a_list("min_object_pixels=100") | said))
    refused(run("evaluate", *EVALUATION, checkpoint, "episodes_file=list.json", "out=listed"), words)


def test_a_list_whose_fold_has_other_classes_here(checkpoint: str) -> None:
    content = a_list("fold=1", "min_object_pixels=100")
    Path("list.json").write_text(json.dumps(content | {"fold": 0}))
    words = ("is a list of fold 0 and has episodes of 'zigzag arrow'", "dataset.source")
    refused(run("evaluate", *EVALUATION, checkpoint, "episodes_file=list.json", "out=listed"), *words)


def test_predictions_that_are_no_numbers_have_no_scores(trained: tuple[Path, Done]) -> None:
    """They would be taken for background."""
    content = torch.load(trained[0] / "checkpoints/best.ckpt", weights_only=True)
    content["state_dict"]["method.decoder.classifier.3.weight"].fill_(3e38)  # finite, and its products are not
    torch.save(content, "spoilt.ckpt")
    done = run("evaluate", *EVALUATION, "checkpoint=spoilt.ckpt", "out=out")
    refused(done, "predictions of the evaluation are not finite", "precision=32-true")
    assert not Path("out").exists()
    segmenter = FewShotSegmenter.from_checkpoint("spoilt.ckpt", device="cpu")
    picture = np.zeros((65, 65, 3), np.uint8)
    segmenter.remember([(picture, np.tri(65, dtype=np.uint8))])
    with pytest.raises(PredictionError, match=r"^predictions are not finite: [^\n]*$"):
        segmenter.segment(picture)


def test_prototypes_of_another_evaluation_do_not_stay(checkpoint: str) -> None:
    evaluated(checkpoint)
    assert Path("out/prototypes.npz").is_file()
    evaluated("checkpoint=null", "model=hsnet")
    assert not Path("out/prototypes.npz").exists()
