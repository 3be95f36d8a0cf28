"""`sd-aanet train` from end to end: what it leaves, what repeats, and that an interruption costs nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from commands import EVALUATION, TINY, Done, episode_rows, metrics, ran, refused, run
from data.fake_folder import make_folder
from data.fake_fss import make_fss
from data.fake_voc import make_voc
from sd_aanet.checkpoint import load_trained
from sd_aanet.training.module import FewShotModule
from sd_aanet.training.plots import draw_curves, read_metrics

STILL = ("backbone.trainable=false", "backbone.norm=frozen")
SHORT = (*TINY, "test_episodes=0")
TERMS = {"train/main", "train/auxiliary", "train/distillation", "train/support", "train/total", "train/lr"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return state


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What a training leaves


def test_every_loss_the_rate_and_the_validation_are_logged(trained: tuple[Path, Done]) -> None:
    rows = metrics(trained[0])
    steps = [row for row in rows if "train/total" in row]
    assert [row["step"] for row in steps] == [0, 1, 2, 3]
    assert all(set(row) >= TERMS for row in steps)
    assert [row["step"] for row in rows if {"val/miou", "val/fb_iou"} <= set(row)] == [1, 3]
    for row in steps:
        total = row["train/main"] + row["train/auxiliary"] + 50 * row["train/distillation"] + row["train/support"] / 2
        assert row["train/total"] == pytest.approx(total, rel=1e-5)


def test_the_rate_follows_the_poly_schedule_step_by_step(trained: tuple[Path, Done]) -> None:
    first, *others = [row["train/lr"] for row in metrics(trained[0]) if "train/lr" in row]
    assert others == pytest.approx([first * (1 - step / 4) ** 0.9 for step in (1, 2, 3)], rel=1e-6)


def test_checkpoints_are_the_best_and_the_last(trained: tuple[Path, Done]) -> None:
    folder = trained[0] / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    best, last = (torch.load(folder / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    assert last["global_step"] == 4
    validations = [row["val/miou"] for row in metrics(trained[0]) if "val/miou" in row]
    assert best["global_step"] == 2 * (1 + validations.index(max(validations)))


def test_pictures_and_result(trained: tuple[Path, Done]) -> None:
    folder = trained[0]
    for name in ("curves.png", "episodes.png"):
        with Image.open(folder / name) as picture:
            picture.load()
    result = json.loads((folder / "result.json").read_text())
    assert {"miou", "fb_iou", "classes", "protocol", "seconds", "episodes_per_second", "versions", "seeds"} <= set(
        result
    )
    assert 0 <= result["miou"] <= 1
    assert len(episode_rows(trained[0])) == result["episodes"] == 6
    assert len(result["classes"]) == 5
    assert result["checkpoint"].endswith("checkpoints/best.ckpt")


def test_the_summary_names_files_that_exist_and_commands_that_work(trained: tuple[Path, Done]) -> None:
    folder, done = trained
    working = folder.parents[3]
    named = [
        line.split()[1]
        for line in done.out.splitlines()
        if line.startswith(("checkpoint ", "curves ", "epi", "scores "))
    ]
    assert len(named) == 4
    assert all((working / name).is_file() for name in named)
    assert f"evaluate checkpoint={named[0]} dataset=shapes fold=0 shot=5" in done.out
    assert (working / "runs/latest").resolve() == folder


def test_the_next_fold_is_one_that_the_data_set_has(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "folder")
    small = [setting for setting in SHORT if not setting.startswith("dataset.source")]
    small += ["size=65", "steps=1"]
    given = (f"dataset.root={root}", "dataset.source.folds=3", "fold=2")
    done = ran("train", "dataset=folder", *given, *small, "out=run")
    assert f"train dataset=folder dataset.root={root} fold=0 (other novel classes); " in done.out
    root = make_fss(tmp_path / "fss")
    done = ran("train", "dataset=fss1000", f"dataset.root={root}", *small, "out=fss_run")
    assert "(other novel classes)" not in done.out, "there is one fold"
    assert done.out.splitlines()[-1].endswith("train --help (all settings)")


def test_the_whole_configuration_is_in_the_folder(trained: tuple[Path, Done]) -> None:
    text = (trained[0] / "config.yaml").read_text()
    assert "steps: 4" in text
    assert "???" not in text
    assert "${" not in text


def test_what_is_not_made_is_not_named() -> None:
    done = ran("train", *SHORT, "steps=2", "select_on=none", "out=run")
    assert "result.json" not in done.out
    assert "episodes.png" not in done.out
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert same(weights(Path("run"), "best"), weights(Path("run")))
    assert not any("val/miou" in row for row in metrics(Path("run")))
    assert not Path("runs").exists(), "Hydra's own folder goes where it stays empty"


def test_selection_on_the_novel_classes_early_stopping_clipping_and_aspect() -> None:
    given = ("select_on=novel", "early_stopping=1", "gradient_clip=0.1", "resize=keep_aspect", "augment=published")
    unmoved = ("lr=1e-30", "model=baseline", *STILL)  # no step changes the mIoU, so that it stops
    done = ran("train", *TINY, *given, *unmoved, "steps=8", "out=run")
    assert "trained 4 steps" in done.out
    protocol = json.loads(Path("run/result.json").read_text())["protocol"]
    assert protocol["select_on"] == "novel"
    assert protocol["classes"]["val"] == protocol["classes"]["test"]
    assert (protocol["resize"], protocol["size"]) == ("keep_aspect", 65)
    preprocess = load_trained("run/checkpoints/best.ckpt").preprocess
    assert (preprocess.size, preprocess.resize) == (65, "keep_aspect")


def test_clipping_bounds_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def look(self: FewShotModule, *_: object) -> None:
        grads = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))

    monkeypatch.setattr(FewShotModule, "on_train_batch_end", look)
    ran("train", *SHORT, "gradient_clip=0.01", "out=run")
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_pascal_layout_trains_with_workers(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    some = (
        "strategy=cpu",
        "backbone=resnet18",
        "model.channels=8",
        "precision=32-true",
        *("size=33", "workers=1", "seeds=1"),
    )
    few = ("batch_size=2", "steps=2", "val_every=2", "val_episodes=3", "test_episodes=5", "augment=published")
    done = ran("train", "dataset=pascal5i", f"dataset.root={root}", *some, *few)
    assert f"dataset=pascal5i dataset.root={root} fold=0 shot=5" in done.out
    names = json.loads(Path("runs/latest/result.json").read_text())["classes"]
    assert list(names) == ["aeroplane", "bicycle", "bird", "boat", "bottle"]


def test_one_size_is_meant_everywhere(tmp_path: Path) -> None:
    """What is asked for is what is trained, validated and scored at; the recipe's where nothing is."""
    root = make_voc(tmp_path / "voc")
    few = ("batch_size=2", "steps=1", "val_every=1", "val_episodes=2", "test_episodes=2", "seeds=1", "workers=0")
    some = ("strategy=cpu", "backbone=resnet18", "model.channels=8", "precision=32-true", "augment=none")
    sizes = {
        "size=49": (49, 49),
        "size=49 test_size=65": (49, 65),
        "test_size=33": (41, 33),
        "": (41, 57),
    }
    for number, (given, expected) in enumerate(sizes.items()):
        recipe = ("recipe.size=41", "recipe.test_size=57", *given.split(), f"out={number}")
        ran("train", "dataset=pascal5i", f"dataset.root={root}", *some, *few, *recipe)
        result = json.loads(Path(f"{number}/result.json").read_text())
        assert (result["training"]["size"], result["protocol"]["size"]) == expected
        assert load_trained(f"{number}/checkpoints/best.ckpt").preprocess.size == expected[1]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_other_optimizers_train(name: str) -> None:
    ran("train", *SHORT, f"optimizer={name}", "out=run")
    config = OmegaConf.load("run/config.yaml")
    assert (config.optimizer.name, config.lr) == (name, config.optimizer.lr)
    rates = [row["train/lr"] for row in metrics(Path("run")) if "train/lr" in row]
    assert rates == pytest.approx([config.lr * (1 - step / 4) ** config.optimizer.power for step in range(4)])
    (state,) = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert {"exp_avg", "exp_avg_sq"} <= set(next(iter(state["state"].values())))


# What is no number


def finite(folder: Path) -> bool:
    return all(torch.isfinite(value).all() for name in ("best", "last") for value in weights(folder, name).values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("steps=4", ("the loss is not finite at step 1 (main ", "episodes 2, 3 of epoch 0", "smaller lr")),
        ("steps=2 val_every=1", ("predictions of the validation after step 1 are not finite", "smaller lr")),
    ],
)
def test_a_rate_that_is_too_large_stops_in_one_line(settings: str, words: tuple[str, ...]) -> None:
    refused(run("train", *SHORT, "lr=1e30", *settings.split(), "out=run"), *words)
    assert Path("run/config.yaml").is_file()
    assert not Path("run/checkpoints").exists(), "nothing good was there to be kept"
    saved = Path("run/not_finite.json")
    assert saved.is_file() == ("loss" in words[0])
    if saved.is_file():
        batch = json.loads(saved.read_text())
        assert (batch["step"], batch["split"], len(batch["episodes"])) == (1, "train", 2)


@pytest.mark.parametrize("step", [2, 3])
def test_the_last_good_checkpoint_stays(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose gradients overflow shows in the next loss, or at the end of its epoch."""
    original = FewShotModule.training_step

    def overflows(self: FewShotModule, *batch: Any) -> Any:
        loss = original(self, *batch)
        return loss * float("inf") if self.trainer.global_step == step else loss

    monkeypatch.setattr(FewShotModule, "training_step", overflows)
    words = {2: "the weights are not finite after step 2 ", 3: "is not finite after step 4"}
    done = run("train", *TINY, "out=run")
    refused(done, words[step], "smaller lr")
    kept = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert finite(Path("run"))
    if step == 2:  # the batch of that step, not the next one, whose loss told
        assert "episodes 0, 1 of epoch 1: " in done.err
        assert json.loads(Path("run/not_finite.json").read_text())["step"] == 2
    assert not Path("run/result.json").exists()
    ran("evaluate", *EVALUATION, "checkpoint=run/checkpoints/best.ckpt", "out=evaluated")


# What repeats


def test_the_same_seed_gives_the_same_training_and_workers_change_nothing(trained: tuple[Path, Done]) -> None:
    ran("train", *SHORT, "workers=2", "out=run")
    assert metrics(Path("run")) == metrics(trained[0])
    assert same(weights(Path("run")), weights(trained[0]))


def test_another_seed_gives_another_training(trained: tuple[Path, Done]) -> None:
    ran("train", *SHORT, "steps=2", "seed=1", "out=run")
    assert metrics(Path("run"))[0] != metrics(trained[0])[0]


def test_cached_features_give_the_losses_of_computed_ones() -> None:
    # Batches of other compositions round differently; a small rate keeps that from growing.
    given = (*SHORT, *STILL, "shot=2", "steps=6", "val_every=3", "lr=0.001")
    ran("train", *given, "features=compute", "out=compute")
    ran("train", *given, "features=cache", "out=cache")
    ran("train", *given, "features=cache", "cache_dir=features", "out=on_disk")
    computed = metrics(Path("compute"))
    for other in ("cache", "on_disk"):
        rows = metrics(Path(other))
        assert len(rows) == len(computed)
        for row, expected in zip(rows, computed, strict=True):
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_training_starts_from_a_checkpoint(trained: tuple[Path, Done]) -> None:
    start = trained[0] / "checkpoints/last.ckpt"
    ran("train", *SHORT, f"checkpoint={start}", "steps=1", "lr=1e-30", "model.dropout=0", "out=run")
    moved, given = weights(Path("run")), weights(trained[0])
    parameters = [f"method.{name}" for name, _ in load_trained(start).method.named_parameters()]
    assert parameters
    assert all(torch.equal(moved[name], given[name]) for name in parameters)


def test_what_the_first_weights_have_seen_is_seen(trained: tuple[Path, Done]) -> None:
    """Fold 1 is novel to this training, not to the one whose weights it starts from."""
    start = trained[0] / "checkpoints/last.ckpt"
    done = ran("train", *TINY, f"checkpoint={start}", "fold=1", "steps=1", "out=run")
    assert "CAUTION: this network has seen 5 of 5 tested classes (zigzag arrow, " in done.out
    training = load_trained("run/checkpoints/best.ckpt").training
    assert training is not None
    assert {*json.loads(Path("run/result.json").read_text())["classes"]} <= {*training["classes"]["train"]}
    ran("train", *SHORT, "checkpoint=run/checkpoints/last.ckpt", "fold=0", "steps=1", "out=again")
    training = load_trained("again/checkpoints/best.ckpt").training
    assert training is not None
    assert len(training["classes"]["train"]) == 20, "of all that came before"


def test_the_backbone_of_a_checkpoint_is_loaded(trained: tuple[Path, Done]) -> None:
    start = trained[0] / "checkpoints/last.ckpt"
    done = ran("train", *SHORT, f"backbone.weights={start}", "steps=1", "lr=1e-12", "out=run")
    assert f"backbone weights from {start}" in done.out
    moved, given = weights(Path("run")), weights(trained[0])
    backbone = [name for name in given if name.startswith("method.backbone.")]
    assert backbone
    assert all(torch.equal(moved[name], given[name]) for name in backbone), "loaded, and frozen by default"


# An interruption costs nothing


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, *arguments: str) -> None:
    original = FewShotModule.training_step

    def until(self: FewShotModule, *batch: Any) -> Any:
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        return original(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(FewShotModule, "training_step", until)
        done = run("train", *arguments)
    assert done.code == 130
    assert done.err == "sd-aanet: interrupted\n"
    assert "train resume=" in done.out


def test_a_resumed_training_is_the_uninterrupted_one(
    trained: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 3, *TINY, "out=run")
    done = ran("train", "resume=run")
    assert "trained 4 steps" in done.out
    run_folder = Path("run")
    for name in ("best", "last"):
        assert same(weights(run_folder, name), weights(trained[0], name))
    assert metrics(run_folder)[:3] == metrics(trained[0])[:3]
    assert metrics(run_folder, version=1) == metrics(trained[0])[3:]
    assert read_metrics(run_folder) == read_metrics(trained[0]), "the curves show each step once"
    mine, theirs = (json.loads((f / "result.json").read_text()) for f in (run_folder, trained[0]))
    assert mine["seeds"] == theirs["seeds"]


def test_features_kept_in_memory_make_it_no_other_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that a break loses them nor how many are kept: bitwise, though other pictures then are missing."""
    given = (*TINY, *STILL, "features=cache", "test_episodes=0")
    ran("train", *given, "out=whole")
    ran("train", *given, "cache_gb=0.0001", "out=little")
    interrupt(monkeypatch, 3, *given, "out=run")
    ran("train", "resume=run")
    for other in ("little", "run"):
        for name in ("best", "last"):
            assert same(weights(Path(other), name), weights(Path("whole"), name)), other


def test_resume_takes_a_checkpoint_and_a_folder_that_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 2, *TINY, "select_on=none", "out=run")
    Path("run").rename("moved")
    ran("train", "resume=moved/checkpoints/last.ckpt")
    assert not Path("run").exists()
    ran("train", *SHORT, "select_on=none", "out=whole")
    assert same(weights(Path("moved")), weights(Path("whole")))
    Path("moved/result.json").unlink()
    ran("train", "resume=moved")  # complete: what is left is its evaluation
    assert same(weights(Path("moved")), weights(Path("whole")))
    assert Path("moved/result.json").is_file()


def test_a_folder_that_holds_a_training_is_not_written_into() -> None:
    ran("train", *SHORT, "steps=1", "out=run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    refused(run("train", *SHORT, "steps=1", "out=run"), "out='run'", "holds a training already", "resume=run")
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_an_evaluations_folder_is_refused() -> None:
    """Its scores would stand beside the training, as if they were this one's."""
    Path("other").mkdir()
    Path("other/result.json").write_text("{}")
    refused(run("train", *SHORT, "steps=1", "out=other"), "out='other' holds the scores of an evaluation")
    assert [path.name for path in Path("other").iterdir()] == ["result.json"]


# Loggers


def test_wandb_without_a_key_is_offline_and_two_trainings_are_two_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    for name in ("one", "two"):
        done = run("train", *SHORT, "steps=2", "logger=wandb", f"out={name}")
        assert done.code == 0, done.err
        assert "wandb is offline" in done.out
        (offline,) = Path(name, "wandb").glob("offline-run-*")
        assert list(offline.glob("run-*.wandb"))
        assert metrics(Path(name)), "metrics.csv is there all the same, and so are the curves"
        assert Path(name, "curves.png").is_file()
    assert not Path("wandb").exists()


def test_curves_of_nothing_are_none(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
