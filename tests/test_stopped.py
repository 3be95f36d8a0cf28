"""Commands that are stopped or killed: what they leave, and that going on from there gives the same as without."""

import datetime
import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import EVALUATION, TINY, Done, metrics, ran, refused, run
from processes import Running, kill_in_checkpoint, signal_in_step, signal_in_validation, start
from sd_aanet.training.plots import read_metrics

STOPPED = {signal.SIGTERM: (143, "sd-aanet: terminated\n"), signal.SIGINT: (130, "sd-aanet: interrupted\n")}
SIX = (*TINY, "steps=6", "val_every=3", "test_batch_size=2", "test_episodes=0", "workers=0")
"""Two epochs of three steps, each with a validation of two batches."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """As in the processes; sums over other numbers of threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ran("train", *SIX, f"out={out}")
    return out


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return dict(torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True))


def assert_same(folder: Path, whole: Path) -> None:
    """The same bits in both checkpoints, the same curves, and nothing that does not belong there."""
    for name in ("best", "last"):
        mine, theirs = (checkpoint(path, name) for path in (folder, whole))
        assert mine["global_step"] == theirs["global_step"]
        assert mine["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(torch.equal(value, theirs["state_dict"][key]) for key, value in mine["state_dict"].items()), name
    assert read_metrics(folder) == read_metrics(whole)
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def stopped(done: Done, number: signal.Signals) -> None:
    assert (done.code, done.err) == STOPPED[number], done


# A training


@pytest.mark.parametrize(
    ("prepare", "step"),
    [
        (functools.partial(signal_in_step, 1, signal.SIGTERM), 2),
        (functools.partial(signal_in_step, 5, signal.SIGTERM), 6),
        (functools.partial(signal_in_validation, 3, signal.SIGTERM), 3),
        (functools.partial(signal_in_step, 4, signal.SIGINT), 3),
    ],
)
def test_what_is_stopped_has_written_its_last_step_and_goes_on(
    prepare: functools.partial[None], step: int, whole: Path
) -> None:
    done = start("train", *SIX, "out=run", prepare=prepare).done()
    stopped(done, prepare.args[1])
    assert "go on with: " in done.out
    assert done.out.endswith(" train resume=run\n")
    assert checkpoint(Path("run"))["global_step"] == step
    ran("train", "resume=run")
    assert_same(Path("run"), whole)


def test_a_signal_to_all_processes_of_a_training_with_workers(whole: Path) -> None:
    stop = functools.partial(signal_in_step, 1, signal.SIGTERM, group=True)
    stopped(start("train", *SIX, "workers=2", "out=run", prepare=stop).done(), signal.SIGTERM)
    assert checkpoint(Path("run"))["global_step"] == 2
    ran("train", "resume=run")
    assert_same(Path("run"), whole)


def test_killed_before_the_first_checkpoint_starts_afresh(whole: Path) -> None:
    assert start("train", *SIX, "out=run", prepare=functools.partial(signal_in_step, 1)).done().code == -signal.SIGKILL
    refused(run("train", *SIX, "out=run"), "go on with resume=run, which starts it afresh: it made no checkpoint")
    assert "run was cut off before its first checkpoint: it starts afresh\n" in ran("train", "resume=run").out
    assert_same(Path("run"), whole)


@pytest.mark.parametrize(("name", "number"), [("best.ckpt", 1), ("last.ckpt", 2)])
def test_killed_while_a_checkpoint_is_written(name: str, number: int, whole: Path) -> None:
    die = functools.partial(kill_in_checkpoint, name, number)
    assert start("train", *SIX, "out=run", prepare=die).done().code == -signal.SIGKILL
    assert [path for path in Path("run/checkpoints").iterdir() if path.name.startswith(f".{name}.")]
    assert Path("run/checkpoints/last.ckpt").is_file() == (name == "last.ckpt")
    ran("train", "resume=run")
    assert_same(Path("run"), whole)


def test_a_folder_that_was_moved_keeps_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning alone would take the first validation of the resumed part for the best."""
    from sd_aanet.training.module import FewShotModule

    values = iter([0.5, 0.25, 0.125])

    def scored(self: FewShotModule) -> None:
        self.log("val/miou", next(values))

    monkeypatch.setattr(FewShotModule, "on_validation_epoch_end", scored)
    original = FewShotModule.training_step

    def until(self: FewShotModule, *batch: Any) -> Any:
        if self.trainer.global_step == 2:
            raise KeyboardInterrupt
        return original(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(FewShotModule, "training_step", until)
        assert run("train", *TINY, "test_episodes=0", "out=run").code == 130
    Path("run").rename("moved")
    ran("train", "resume=moved")
    assert checkpoint(Path("moved"))["global_step"] == 4
    assert checkpoint(Path("moved"), "best")["global_step"] == 2


# Other commands


def long_evaluation(trained: tuple[Path, Done], *more: str) -> Running:
    given = (*EVALUATION, "episodes=5000", "dataset.source.images=300", "workers=0")
    return start("evaluate", *more, f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}", *given)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", STOPPED)
def test_an_evaluation_that_is_stopped_leaves_nothing(number: signal.Signals, trained: tuple[Path, Done]) -> None:
    running = long_evaluation(trained, "out=e")
    until(lambda: "Testing" in running.out.read_text())
    running.signal(number)
    stopped(running.done(), number)
    assert not Path("e").exists()


def test_a_sweep_that_is_stopped_goes_on_with_the_same_command(trained: tuple[Path, Done]) -> None:
    running = long_evaluation(trained, "-m", "fold=0,1", "sweep=mine")
    until(lambda: "Testing" in running.out.read_text())
    running.signal(signal.SIGTERM, group=True)
    done = running.done()
    stopped(done, signal.SIGTERM)
    assert "the same command goes on where this one stopped: evaluations/sweeps/mine" in done.out
    assert not list(Path("evaluations").rglob("*.json"))
    assert not list(Path("evaluations").rglob(".*"))


def test_evaluations_that_start_at_once_have_a_folder_each(trained: tuple[Path, Done]) -> None:
    given = (f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}", *EVALUATION, "workers=0")
    at_once = [start("evaluate", *given, prepare=_at_the_same_second) for _ in range(4)]
    for running in at_once:
        done = running.done()
        assert (done.code, done.err) == (0, ""), done
    folders = sorted(Path("evaluations").iterdir())
    assert [path.name for path in folders] == [f"2026-01-01_00-00-00{number}" for number in ("", "_2", "_3", "_4")]
    assert len({json.dumps(json.loads((path / "result.json").read_text())["seeds"]) for path in folders}) == 1


def test_only_one_of_those_that_start_at_once_has_a_given_folder() -> None:
    at_once = [start("train", *SIX, "out=run") for _ in range(2)]
    codes = {running.done().code: running for running in at_once}
    assert set(codes) == {0, 2}
    assert codes[2].err.read_text().startswith("sd-aanet: out='run' ")
    assert codes[2].err.read_text().count("\n") == 1
    assert len(metrics(Path("run"))) > 0
    assert [path.name for path in Path("run/logs").iterdir()] == ["version_0"]


def _at_the_same_second() -> None:
    import hydra.core.utils

    class Now(datetime.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Now":
            return cls(2026, 1, 1)

    hydra.core.utils.datetime = Now


# Workers


def kill_a_worker() -> None:
    """Take a worker away while the training waits for it, as a machine without memory does."""
    from sd_aanet.data.episodes import EpisodeDataset

    original = EpisodeDataset.__getitem__

    def dies(self: EpisodeDataset, place: Any) -> Any:
        if isinstance(place, tuple) and place[1] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, place)

    EpisodeDataset.__getitem__ = dies  # type: ignore[method-assign]


def test_a_worker_that_is_killed_is_one_line() -> None:
    done = start("train", *SIX, "workers=2", "out=run", prepare=kill_a_worker).done()
    assert done.code == 2, done
    assert done.err.startswith("sd-aanet: DataLoader worker ")
    assert done.err.endswith(": set workers=0, or fewer of them\n")
    assert done.err.count("\n") == 1, done.err


# Sweeps


def killed_sweep(*more: str) -> None:
    """A sweep over two folds that is killed in the second job."""
    given = ("-m", "fold=0,1", *TINY, "workers=0", "test_episodes=0", "sweep=mine", *more)
    done = start("train", *given, prepare=_kill_in_the_second_job).done()
    assert done.code == -signal.SIGKILL
    assert list(Path("runs/sweeps/mine").glob(".jobs-*"))


def _kill_in_the_second_job() -> None:
    from sd_aanet.training.module import FewShotModule

    original = FewShotModule.training_step

    def dies(self: FewShotModule, *batch: Any) -> Any:
        if self.trainer.datamodule.fold == 1 and self.trainer.global_step == 3:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *batch)

    FewShotModule.training_step = dies  # type: ignore[method-assign]


def test_a_sweep_that_is_killed_does_each_job_once() -> None:
    killed_sweep()
    done = ran("train", "-m", "fold=0,1", *TINY, "workers=0", "test_episodes=0", "sweep=mine")
    assert "2 jobs: 1 done, 1 finished before" in done.out
    assert "was cut off: it goes on from its last checkpoint" in done.out
    assert not [path for path in Path("runs").rglob(".*") if path.name != ".gitignore"]
    ran("train", *TINY, "fold=1", "workers=0", "test_episodes=0", "out=whole")
    (job,) = Path("runs/sweeps/mine").glob("fold1_*")
    assert_same(job, Path("whole"))


def test_sweeps_that_start_at_once_have_a_folder_each() -> None:
    given = ("-m", "shot=1,2", "dataset.source.size=65", "dataset.source.images=100", "min_object_pixels=100")
    at_once = [start("check", *given, prepare=_at_the_same_second) for _ in range(2)]
    assert [running.done().code for running in at_once] == [0, 0]
    folders = sorted(Path("checks/sweeps").iterdir())
    assert [path.name for path in folders] == ["2026-01-01_00-00-00", "2026-01-01_00-00-00_2"]
    assert all(len(list(path.glob("*/check.json"))) == 2 for path in folders)
