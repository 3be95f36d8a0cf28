"""A job of a sweep does what is left of it, on the device that is handed to it."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sd_aanet.sweep import devices
from sd_aanet.sweep.run import Sweep


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of job 2 on a machine of four GPUs that nobody uses."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    out = tmp_path / "sweep/job2"
    (out / "checkpoints").mkdir(parents=True)
    strategy = {"accelerator": "gpu", "devices": 1, "strategy": "auto"}
    return {"out": str(out), "resume": None, "num_nodes": 1, "test_episodes": 1, "fold": 0, "strategy": strategy}


def worked(config: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The state of job 2, and the settings with which its training was called."""
    out, given = Path(config["out"]), []
    sweep = Sweep(
        out.parent,
        tuple(f"job{n}" for n in range(4)),
        "joblib",
        at_once=4,
        more=(),
        checkpoints={"latest/best.ckpt": "runs/a/best.ckpt"},
        ledger=out / ".jobs",
    )
    return sweep.work(2, out, config, given.append), given


def save(config: dict[str, Any], *files: str) -> None:
    """What a job leaves that ran on GPU 1."""
    out = Path(config["out"])
    OmegaConf.save(OmegaConf.create(config | {"strategy": config["strategy"] | {"devices": [1]}}), out / "config.yaml")
    for file in files:
        (out / file).touch()


def test_a_new_job_has_the_device_handed_to_it(config: dict[str, Any]) -> None:
    assert worked(config) == ("done", [config | {"strategy": config["strategy"] | {"devices": [2]}}])


def test_jobs_start_from_what_a_link_led_to_when_the_sweep_began(config: dict[str, Any]) -> None:
    """A job that ends turns runs/latest to itself."""
    for given, expected in (("latest/best.ckpt", "runs/a/best.ckpt"), ("b.ckpt", "b.ckpt"), (None, None)):
        _, (worked_with,) = worked(config | {"checkpoint": given})
        assert worked_with["checkpoint"] == expected


def test_a_job_loads_with_its_share_of_the_cores(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sd_aanet.machine.cores", lambda: 16)
    for workers, expected in (("auto", 3), (5, 5)):  # of 16 cores among 4 jobs; what is asked for stays
        _, (given,) = worked(config | {"workers": workers})
        assert given["workers"] == expected


@pytest.mark.parametrize("files", [("checkpoints/last.ckpt",), ("checkpoints/last.ckpt", "trained.json")])
def test_one_that_was_cut_off_resumes_on_the_device_handed_to_it_now(
    config: dict[str, Any], files: tuple[str, ...]
) -> None:
    save(config, *files)
    state, (given,) = worked(config)
    assert state == "done"
    assert given["resume"] == config["out"]
    saved = OmegaConf.load(Path(config["out"]) / "config.yaml")  # with which a resumed training goes on
    assert saved.strategy.devices == given["strategy"]["devices"] == [2]


def test_a_finished_job_waits_for_no_device(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    save(config, "trained.json", "result.json")
    monkeypatch.setattr(devices, "free_device", lambda *_: pytest.fail("asked for a device"))
    assert worked(config) == ("finished", [])
