"""Killed ten times and resumed = never killed, to the bit: every logger, every way to keep features, with workers.

Slow: python -m pytest -m slow tests/test_killed.py. tests/test_stopped.py has the short version.
"""

import functools
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from commands import TINY, ran
from processes import kill_in_checkpoint, signal_in_step, signal_in_validation, start
from test_stopped import assert_same, checkpoint

pytestmark = pytest.mark.slow
KILLS = 10
STEPS = 24
FROZEN = ("features=cache", "augment=flip", "backbone.trainable=false", "backbone.norm=frozen")
KINDS = {
    "csv": (),
    "wandb": ("logger=wandb",),
    "cache": FROZEN,
    "cache_dir": (*FROZEN, "cache_dir=features"),
    "little cache": (*FROZEN, "cache_gb=0.0001"),
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of wandb's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def deaths(seed: int) -> list[Callable[[], None]]:
    """Ten ways to die, the further on the later, each of which comes after the checkpoint of the one before."""
    draw = random.Random(seed)
    ways: list[Callable[[], None]] = []
    for epoch in range(KILLS // 2):  # of four steps
        first, second = sorted(draw.sample(range(4), 2))
        either = draw.choice([signal.SIGTERM, signal.SIGKILL])
        ways.append(functools.partial(signal_in_step, 4 * epoch + first, signal.SIGTERM))
        ways.append(
            draw.choice(
                [
                    functools.partial(signal_in_step, 4 * epoch + second),
                    functools.partial(kill_in_checkpoint, "last.ckpt", 1, draw.random()),
                    functools.partial(kill_in_checkpoint, "", 1, draw.random()),  # best.ckpt where it is better
                    functools.partial(signal_in_validation, 4 * epoch + 4, either),
                    functools.partial(signal_in_step, 4 * epoch + second, signal.SIGINT),
                ]
            )
        )
    return ways


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_kills_change_nothing(kind: str, workers: int) -> None:
    given = (*TINY, f"steps={STEPS}", "val_every=4", "test_batch_size=2", "lr=0.001", f"workers={workers}")
    given = (*given, *KINDS[kind], "augment=flip")
    assert start("train", *given, "out=whole").done().code == 0
    codes = []
    for number, way in enumerate(deaths(workers * 100 + len(kind))):
        command = ("resume=run",) if number else (*given, "out=run")
        codes.append(start("train", *command, prepare=way).done().code)
    assert all(code in (143, 130, -signal.SIGKILL) for code in codes), codes
    done = start("train", "resume=run").done()
    assert done.code == 0, done
    assert checkpoint(Path("run"))["global_step"] == STEPS
    assert_same(Path("run"), Path("whole"))


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_each_job_of_a_sweep_that_is_killed_is_done_once(launcher: str) -> None:
    """Killed at any time, ten times over, with all its processes."""
    job = (*TINY, "steps=12", "val_every=2", "workers=0")
    given = ("-m", "fold=0,1,2", *job, "sweep=mine", f"hydra/launcher={launcher}")
    draw = random.Random(0)
    for _ in range(KILLS):
        running = start("train", *given)
        time.sleep(draw.uniform(1, 12))
        if running.process.is_alive():
            running.signal(signal.SIGKILL, group=True)
        running.done()
    done = start("train", *given).done()
    assert done.code == 0, done
    sweep = Path("runs/sweeps/mine")
    folders = [path for path in sweep.iterdir() if path.is_dir()]
    assert len(folders) == 3
    assert not [path for path in sweep.rglob(".*") if path.is_file() or path.name.startswith(".jobs")]
    for folder in folders:
        fold = folder.name[len("fold")]
        ran("train", *job, f"fold={fold}", f"out=whole{fold}")
        assert_same(folder, Path(f"whole{fold}"))
    again = ran("train", *given)
    assert "3 jobs: 3 finished before" in again.out
