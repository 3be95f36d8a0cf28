"""What every Trainer gets: devices, precision, and one line where a run is impossible."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from sd_aanet.errors import ConfigError
from sd_aanet.feature_cache import GIGABYTE
from sd_aanet.trainer import affordable, build_trainer, trainer_settings, world_size

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}


def test_settings_of_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = trainer_settings(CPU | {"name": "not the trainer's"}, "32-true")
    assert settings["use_distributed_sampler"] is False  # ours shards without padding
    trainer = build_trainer(settings, logger=False, enable_checkpointing=False)
    assert trainer.world_size == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^strategy asks for a GPU, and torch sees none here: set strategy=cpu or "):
        trainer_settings(CPU | {"accelerator": "gpu"}, "auto")


@pytest.mark.parametrize(
    "change", [{"precision": "17-bit"}, {"accelerator": "abacus"}, {"accelerator": "tpu"}, {"strategy": "hope"}]
)
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


def test_a_gpu_keeps_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    free = {0: 24 * GIGABYTE, 3: 10 * GIGABYTE}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80 * GIGABYTE))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    caplog.set_level("INFO")
    assert affordable(8, CPU | {"devices": [3]}) == 8  # of the machine's memory, not of the GPU's
    assert affordable(8, CPU | {"accelerator": "auto", "devices": 2}) == 8
    assert caplog.messages == []
    assert affordable(8, CPU | {"accelerator": "gpu", "devices": [3]}) == 5
    assert caplog.messages == ["cache_gb=8 is more than half of the 10.0 GB free on the GPU: that half is used"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert affordable(800, CPU | {"accelerator": "auto"}) == 800


def test_float32_is_rounded_where_one_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's own, here again after the test
    for precision, rounded in (("32-true", False), ("tf32", True), ("bf16-mixed", False)):
        trainer = build_trainer(trainer_settings(CPU, precision), logger=False, enable_checkpointing=False)
        assert trainer.precision == ("bf16-mixed" if precision == "bf16-mixed" else "32-true")
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is rounded


@pytest.mark.parametrize("number", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_run_on_one_device_is_no_part_of_another(number: str) -> None:
    """As the shell of a job, or of one of the trainings that `srun --ntasks=2` started, has it: no curves were kept."""
    code = (
        "from sd_aanet.trainer import build_trainer, trainer_settings\n"
        "one = {'accelerator': 'cpu', 'devices': 1, 'strategy': 'auto'}\n"
        "from pytorch_lightning.utilities import rank_zero_only\n"
        "build_trainer(trainer_settings(one, '32-true'), logger=False)\n"
        "print(rank_zero_only(lambda: 'the first')())"
    )
    of_a_job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0"}
    environment = os.environ | of_a_job | {number: "1", "SLURM_LOCALID": "1", "SLURM_NODELIST": "n1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("the first"), done.stderr[-2000:]
