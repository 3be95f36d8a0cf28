"""Folders of jobs: their names, and what is left to do in one."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sd_aanet.errors import ConfigError
from sd_aanet.sweep.folder import is_finished, job_name, made_ready

KEYS = ("lr", "steps", "model", "dataset.root", "+dataset.source.extra", "augment", "model.loss.alpha", "checkpoint")
values = st.one_of(st.integers(0, 9), st.sampled_from(["a", "b", "0.1", "[1,2]", "[12]", "null", "a/b", "'a=b,c'"]))
overrides = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
FREE = ("out=x", "workers=3", "strategy=cpu", "strategy.devices=2", "logger=wandb", "sweep=y", "cache_dir=z")


def name(given: dict[str, Any], *more: str) -> str:
    return job_name(0, 1, 2, [*(f"{key}={value}" for key, value in given.items()), *more])


@given(overrides, overrides)
def test_different_overrides_have_different_folders(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (name(one) == name(other)) == (one == other)


@given(overrides, st.randoms(), st.sets(st.sampled_from(FREE)))
def test_neither_their_order_nor_what_no_result_depends_on_matters(
    given: dict[str, Any], random: Any, free: set[str]
) -> None:
    shuffled = [*given.items()]
    random.shuffle(shuffled)
    assert name(dict(shuffled), *free) == name(given)


@given(overrides)
def test_no_command_line_reads_a_name_ill(given: dict[str, Any]) -> None:
    assert re.fullmatch(r"fold0_shot1_seed2(_[0-9a-f]{8})?", name(given))


def test_fold_shot_and_seed_stand_in_the_name() -> None:
    assert job_name(3, 5, 1, ["seed=1", "fold=3", "workers=2"]) == "fold3_shot5_seed1"
    assert name({"lr": 0.1}) == name({"lr": "0.10"})
    assert name({"lr": 0.1}).rpartition("_")[2] == job_name(3, 5, 1, ["lr=0.1"]).rpartition("_")[2]
    odd = job_name("a/b", 1, 0, ["fold=a/b"])
    assert odd.startswith("folda-b_shot1_seed0_")
    assert odd != job_name("a-b", 1, 0, ["fold=a-b"])


SETTINGS: dict[str, Any] = {
    "fold": 0,
    "lr": 0.1,
    "test_episodes": 5,
    "workers": 0,
    "model": {"sdpm": True, "loss": {}},
    "dataset": {"name": "shapes", "benchmark": {"held_out": 3}},
    "recipe": {"lr": 0.1, "size": 97},
    "strategy": {"accelerator": "cpu", "devices": 1},
    "resume": None,
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "logs").mkdir()
    OmegaConf.save(OmegaConf.create(SETTINGS | {"out": str(folder)}), folder / "config.yaml")
    for path in ("checkpoints/last.ckpt", "trained.json", "result.json"):
        (folder / path).touch()
    return folder


def settings(out: Path, **change: Any) -> dict[str, Any]:
    return SETTINGS | {"out": str(out)} | change


def test_a_finished_job_is_left_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings(out, workers=4, sweep="x", strategy={"accelerator": "gpu", "devices": [3]})
    assert is_finished(given)
    assert capsys.readouterr().out == "job is finished: skipped\n"


@pytest.mark.parametrize("missing", ["trained.json", "result.json"])
def test_what_was_cut_off_resumes_with_what_is_given_now(out: Path, missing: str) -> None:
    (out / missing).unlink()
    given = settings(out, strategy={"accelerator": "gpu", "devices": [3]})
    assert not is_finished(given)
    assert made_ready(given) == given | {"resume": str(out)}
    assert OmegaConf.load(out / "config.yaml").strategy.devices == [3]


def test_without_an_evaluation_there_is_no_result_to_wait_for(out: Path) -> None:
    (out / "result.json").unlink()
    OmegaConf.save(OmegaConf.create(settings(out, test_episodes=0)), out / "config.yaml")
    assert is_finished(settings(out, test_episodes=0))


def test_what_has_no_checkpoint_starts_afresh(out: Path) -> None:
    (out / "checkpoints/last.ckpt").unlink()
    (out / "result.json").unlink()
    (out / "notes.txt").touch()
    given = settings(out)
    assert not is_finished(given)
    assert made_ready(given) == given | {"resume": str(out)}


def test_a_new_job_starts(tmp_path: Path) -> None:
    given = settings(tmp_path / "new")
    assert not is_finished(given)
    assert made_ready(given) == given


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.2}, "lr=0.1, not lr=0.2"),
        ({"model": {"sdpm": False, "loss": {}}}, "model.sdpm=True, not model.sdpm=False"),
        ({"extra": 1}, "extra=None, not extra=1"),
        ({"strategy": {"accelerator": "cpu", "devices": 2}}, "strategy.devices=1, not strategy.devices=2"),
        ({"recipe": {"lr": 0.3, "size": 97}}, None),
        ({"dataset": {"name": "shapes", "benchmark": {"held_out": 2}}}, None),
        ({"recipe": {"lr": 0.1, "size": 65}}, "recipe.size=97, not recipe.size=65"),
    ],
)
def test_a_training_with_other_settings_is_left_alone(out: Path, change: dict[str, Any], words: str | None) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    if words is None:
        assert is_finished(settings(out, **change))
    else:
        with pytest.raises(ConfigError, match=r"holds a training with .*: give this sweep a name of its own") as raised:
            is_finished(settings(out, **change))
        assert words in str(raised.value)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
