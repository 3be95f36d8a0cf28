"""The same result, however it is run: on how many processes, with how many workers, within which memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import DATA, TINY, Done, episode_rows, metrics, run_process

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TOGETHER = ("strategy=ddp", "strategy.accelerator=cpu")
OF_ITS_OWN = ("seconds", "episodes_per_second")
"""What a result has of the run and not of the network."""
TIES = 1e-5
"""Of the pixels, as many may be taken otherwise where pictures are put together to other batches, see `ties`."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(out: str, *settings: str) -> Done:
    """An evaluation with one thread a process: 5 classes, 2 lists."""
    data = [setting for setting in DATA if not setting.startswith(("seeds=", "strategy="))]
    common = ("checkpoint=null", "model.channels=8", "seeds=2", "episodes=41", "batch_size=4", "workers=0")
    done = run_process("evaluate", *common, *data, *settings, f"out={out}", environment=ONE_THREAD)
    assert done.code == 0, done.err
    return done


def result(out: str) -> dict[str, Any]:
    found = json.loads(Path(out, "result.json").read_text())
    return {name: value for name, value in found.items() if name not in OF_ITS_OWN}


def ties(one: str, other: str) -> float:
    """The share of pixels that two evaluations of the same episodes take for something else, as far as counts tell."""
    a, b = (np.array(episode_rows(Path(out))) for out in (one, other))
    np.testing.assert_array_equal(a[:, [0, 1, 2, 7]], b[:, [0, 1, 2, 7]])  # seed, index, class id, object
    pixels = a[:, 4] + a[:, 5]  # the class's union and the background's intersection: all that count
    return float(np.abs(a[:, 3:7] - b[:, 3:7]).max(1).sum() / pixels.sum())


@pytest.mark.slow
@pytest.mark.parametrize("way", [1, 2])
def test_an_evaluation_is_the_same_on_one_process_two_and_three(way: int) -> None:
    for processes in (1, 2, 3):
        done = evaluated(f"on{processes}", *TOGETHER, f"strategy.devices={processes}", f"way={way}")
        assert done.out.count("mIoU") == 1, "one process speaks"
        assert {path.name for path in Path().iterdir()} == {f"on{p}" for p in range(1, processes + 1)}
    evaluated("alone", "strategy=cpu", f"way={way}")
    rows = episode_rows(Path("alone"))
    assert [row[:2] for row in rows[::way]] == [[seed, index] for seed in (0, 1) for index in range(41)]
    for processes in (1, 2, 3):
        assert episode_rows(Path(f"on{processes}")) == rows
        assert result(f"on{processes}") == result("alone")
        ours, expected = (np.load(f"{out}/prototypes.npz") for out in (f"on{processes}", "alone"))
        np.testing.assert_array_equal(ours["class_id"], expected["class_id"])
        np.testing.assert_allclose(ours["prototype"], expected["prototype"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["workers=1", "workers=4", "cache_gb=0.001", "cache_gb=0.000001", "batch_size=1"])
def test_neither_workers_nor_memory_change_an_evaluation(setting: str) -> None:
    evaluated("usual", "strategy=cpu")
    evaluated("other", "strategy=cpu", setting)
    assert ties("usual", "other") <= (0 if setting.startswith("workers") else TIES)
    if setting.startswith("workers"):
        assert result("usual") == result("other")


@pytest.mark.slow
def test_two_processes_train_as_one_of_twice_the_batch() -> None:
    """What looks at a batch is left out: batch norms that move, and dropout, which each process draws for itself.

    In float32 the losses are 1e-7 apart in the first step and 2e-5 after eight, each step adding its rounding.
    """
    tiny = [setting for setting in TINY if not setting.startswith(("strategy=", "batch_size="))]
    still = ("backbone.norm=frozen", "model.saam=false", "model.dropout=0", "lr=0.001", "augment=none", "steps=8")
    runs = {"one": ("strategy=cpu", "batch_size=4"), "two": (*TOGETHER, "strategy.devices=2", "batch_size=2")}
    for out, settings in runs.items():
        done = run_process("train", *tiny, *still, *settings, "test_episodes=0", f"out={out}", environment=ONE_THREAD)
        assert done.code == 0, done.err
    one, two = (metrics(Path(out)) for out in runs)
    assert [row["step"] for row in one if "train/total" in row] == list(range(8))
    for ours, expected in zip(two, one, strict=True):
        close = 1e-6 if expected["step"] == 0 else 1e-4
        assert ours == pytest.approx(expected, abs=close, rel=close)
