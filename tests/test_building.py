"""From a composed configuration to the module and the trainer's settings."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.errors import CheckpointError, ConfigError
from sd_aanet.machine import resolve_workers
from sd_aanet.memory import GIGABYTE
from sd_aanet.models.backbone import build_backbone
from sd_aanet.precision import resolve_precision
from sd_aanet.training.build import (
    affordable,
    build_module,
    build_trainer,
    link_latest,
    network_arguments,
    open_data,
    trainer_settings,
    world_size,
)

BACKBONE: dict[str, Any] = {
    "name": "resnet18",
    "weights": None,
    "stride_on": "auto",
    "trainable": "auto",
    "norm": "auto",
    "head_channels": 8,
    "prior_stage": 3,
}
MODEL: dict[str, Any] = {"method": "sd_aanet", "variant": "paper", "saam": False, "loss": {"alpha": 2.0}}
CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({}, ("3x3", True, "batch")),  # random weights train
        ({"weights": "x.pth"}, ("3x3", False, "frozen")),
        ({"weights": "x.npz"}, ("1x1", False, "frozen")),
        ({"weights": "torchvision://resnet18"}, ("3x3", False, "frozen")),
        ({"weights": "x.npz", "stride_on": "3x3"}, ("3x3", False, "frozen")),
        ({"weights": "x.pth", "trainable": True}, ("3x3", True, "batch")),
        ({"weights": "x.pth", "trainable": True, "norm": "frozen"}, ("3x3", True, "frozen")),
        ({"weights": "x.pth", "norm": "batch"}, ("3x3", False, "batch")),  # as published
        ({"trainable": False}, ("3x3", False, "frozen")),
    ],
)
def test_auto_is_resolved(backbone: dict[str, Any], expected: tuple[str, bool, str]) -> None:
    arguments = network_arguments(BACKBONE | backbone, MODEL)
    assert (arguments["stride_on"], arguments["backbone_trainable"], arguments["backbone_norm"]) == expected
    assert arguments["backbone"] == "resnet18"
    assert (arguments["channels"], arguments["prior_stage"]) == (8, 3)
    assert (arguments["method"], arguments["variant"], arguments["saam"]) == ("sd_aanet", "paper", False)
    assert "loss" not in arguments


def test_the_prototype_has_no_head() -> None:
    arguments = network_arguments(BACKBONE, {"method": "prototype", "stage": 3, "loss": {}})
    assert not {"channels", "prior_stage"} & arguments.keys()


def test_a_module_with_random_weights_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    module = build_module({"backbone": BACKBONE, "model": MODEL}, 5, {"size": 33}, lr=0.5)
    assert caplog.messages == ["backbone resnet18 starts from random weights and trains with the head"]
    assert module.lr == 0.5
    assert module.loss.alpha == 2.0
    assert module.hparams["preprocess"] == {"size": 33}
    assert module.val_metric.counts.shape == (6, 4)
    caplog.clear()
    build_module({"backbone": BACKBONE | {"trainable": False}, "model": MODEL}, 5, {"size": 33})
    assert caplog.messages == ["backbone resnet18 starts from random weights and does NOT train: it stays random"]


def test_a_module_with_weights_reports_them(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    backbone = build_backbone("resnet18")
    path = tmp_path / "x.pth"
    torch.save(backbone.state_dict(), path)
    config = {"backbone": BACKBONE | {"weights": str(path)}, "model": MODEL}
    module = build_module(config, 5, {"size": 33})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"backbone weights from {path}: 90 tensors, none missing; 30 not needed")
    for name, value in module.network.backbone.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name])
    with pytest.raises(CheckpointError, match="does not exist"):
        build_module({"backbone": BACKBONE | {"weights": "missing.pth"}, "model": MODEL}, 5, {"size": 33})


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert resolve_precision("auto", "auto") == resolve_precision("auto", "cpu") == expected
    assert resolve_precision("64-true", "cpu") == "64-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not native)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("auto", "gpu") == {"bf16-mixed": "32-true", "32-true": "bf16-mixed"}[expected]


def test_settings_of_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = trainer_settings(CPU | {"name": "not the trainer's"}, "32-true")
    assert settings["use_distributed_sampler"] is False  # ours shards without padding
    trainer = build_trainer(settings, logger=False, enable_checkpointing=False)
    assert trainer.world_size == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^strategy asks for a GPU, and torch sees none here: set strategy=cpu or "):
        trainer_settings(CPU | {"accelerator": "gpu"}, "auto")


@pytest.mark.parametrize("change", [{"precision": "17-bit"}, {"accelerator": "abacus"}, {"strategy": "hope"}])
def test_impossible_trainers_are_one_line(change: dict[str, Any]) -> None:
    settings = trainer_settings(CPU, "32-true") | change
    with pytest.raises(ConfigError, match=r"^no such run is possible here: [^\n]*; check strategy and precision$"):
        build_trainer(settings, logger=False)


def test_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world_size(CPU | {"devices": 2}, num_nodes=3) == 6
    assert world_size(CPU | {"devices": [0, 2]}) == 2
    assert world_size(CPU | {"devices": "auto", "accelerator": "auto"}) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert world_size(CPU | {"devices": "auto", "accelerator": "auto"}) == 4
    assert world_size(CPU | {"devices": "auto"}) == 1


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 0), (2, 1, 1), (64, 1, 8), (16, 4, 3), (2, 4, 0)])
def test_workers_by_themselves(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert resolve_workers("auto", processes) == expected
    assert resolve_workers(5, processes) == 5
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert resolve_workers("auto", processes) == expected


def test_a_gpu_remembers_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = {0: 24 * GIGABYTE, 3: 10 * GIGABYTE}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80 * GIGABYTE))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    caplog.set_level("INFO")
    assert affordable(8, CPU | {"devices": [3]}) == 8  # of the machine's memory, not of the GPU's
    assert affordable(8, CPU | {"accelerator": "auto", "devices": 2}) == 8
    assert caplog.messages == []
    assert affordable(8, CPU | {"accelerator": "gpu", "devices": [3]}) == 5
    assert caplog.messages == ["remember_gb=8 is more than half of the 10.0 GB free on the GPU: that half is used"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert affordable(800, CPU | {"accelerator": "auto"}) == 800


def test_float32_is_rounded_where_one_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's own, here again after the test
    for precision, rounded in (("32-true", False), ("tf32", True), ("bf16-mixed", False)):
        trainer = build_trainer(trainer_settings(CPU, precision), logger=False, enable_checkpointing=False)
        assert trainer.precision == ("bf16-mixed" if precision == "bf16-mixed" else "32-true")
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is rounded


def test_open_data() -> None:
    data = open_data({"_target_": "sd_aanet.data.sources.shapes.Shapes", "images": 20}, fold=1, shot=2, size=33)
    assert isinstance(data, EpisodeDataModule)
    assert (data.fold, data.shot, data.size) == (1, 2, 33)


def test_latest_points_to_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shapes/one", "shapes/two"):
        out = Path("runs") / name
        out.mkdir(parents=True)
        (out / "mark").write_text(name)
        link_latest(out)
        assert (tmp_path / "runs" / "latest" / "mark").read_text() == name
    assert not Path("runs/latest").readlink().is_absolute()  # the folder may move
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link_latest(elsewhere)
    assert (tmp_path / "runs" / "latest" / "mark").read_text() == "shapes/two"
