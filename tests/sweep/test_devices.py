"""Devices are handed out one a job, across processes; cores are shared."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sd_aanet.machine import cores
from sd_aanet.sweep import devices
from sd_aanet.sweep.devices import device_of_its_own, free_device, jobs_at_once, visible_gpus

HOLD = """
import sys
from pathlib import Path
from sd_aanet.sweep.devices import free_device
with free_device(["a", "b"], int(sys.argv[2]), Path(sys.argv[1]), pause=0.05) as device:
    print(device, flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(folder: Path, first: int) -> Iterator[subprocess.Popen[str]]:
    """A process that takes a device, says which, and holds it until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(folder), str(first)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_jobs_of_several_processes_never_share_a_device(tmp_path: Path) -> None:
    with holder(tmp_path, 2) as one, holder(tmp_path, 4) as two:
        assert sorted([line(one), line(two)]) == ["0", "1"], "both ask for the first; one gets the next"
        with holder(tmp_path, 0) as three:
            assert line(three) == "waiting for a device: others use all of them"
            two.kill()  # without a word, as the system does where memory runs out
            two.wait()
            freed = line(three)
        with free_device(["a", "b"], 0, tmp_path) as device:
            assert str(device) == freed


def test_in_turn(tmp_path: Path) -> None:
    for number in range(5):
        with free_device(["a", "b", "c"], number, tmp_path) as device:
            assert device == number % 3
            with free_device(["a", "b", "c"], number, tmp_path) as other:
                assert other == (number + 1) % 3


def test_a_device_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), free_device(["a"], 0, tmp_path):
        raise ZeroDivisionError
    with free_device(["a"], 7, tmp_path) as device:
        assert device == 0


def test_gpus_have_the_same_name_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8932f937")
    assert visible_gpus() == ["5", "GPU-8932f937"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.parametrize(("gpus", "available", "expected"), [(3, 2, 3), (0, 1, 1), (0, 2, 2), (0, 7, 2), (0, 32, 8)])
def test_as_many_jobs_as_gpus_or_some_for_the_cores(
    gpus: int, available: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(devices, "cores", lambda: available)
    assert jobs_at_once() == expected


def test_a_strategy_gets_its_device_and_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "cores", lambda: 8)
    one = {"accelerator": "auto", "devices": 1, "strategy": "auto"}
    with device_of_its_own(one, 0, 2) as first, device_of_its_own(one, 0, 3) as second:
        assert sorted([*first["devices"], *second["devices"]]) == [0, 1]
        assert first | {"devices": 1} == one
    assert threads == [4, 2]
    for untouched in (one | {"accelerator": "cpu"}, one | {"devices": [1]}):
        with device_of_its_own(untouched, 0, 100) as given:
            assert given == untouched
    assert threads[-1] == 1


def test_cores_are_those_that_the_process_may_use() -> None:
    assert cores() >= 1
