"""What every Lightning run here shares: devices, precision, a progress bar, and quiet."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only

from sd_aanet.errors import ConfigError
from sd_aanet.feature_cache import GIGABYTE
from sd_aanet.precision import ON_GPU, resolve_precision, set_tf32

logger = logging.getLogger(__name__)
NOISE = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    r".*does not have many workers",  # `workers` is a setting
    r".*module\(s\) in eval mode at the start of training",  # the frozen backbone
    r"Total length of `list` across ranks is zero",  # select_on=none
    r"It is recommended to use .*sync_dist=True",  # the metric itself is summed over the devices
    r"Checkpoint directory .* exists and is not empty",  # resume
    r"You're resuming from a checkpoint that ended before the epoch ended",  # our sampler goes on there
)
Config = dict[str, Any]


class Progress(TQDMProgressBar):
    """Lightning's bar without the number of the logger's version."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        items = dict(super().get_metrics(trainer, pl_module))
        items.pop("v_num", None)
        return items


def trainer_settings(strategy: Config, precision: str, num_nodes: int = 1) -> Config:
    """What every Trainer here gets: devices, machines, precision, and quiet.

    Raises:
        ConfigError: the machine does not have what the strategy asks for.
    """
    if strategy["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise ConfigError("strategy asks for a GPU, and torch sees none here: set strategy=cpu or strategy=auto")
    if world_size(strategy, num_nodes) == 1:  # whatever number a job system gave this process
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    return {
        **{key: strategy[key] for key in ("accelerator", "devices", "strategy")},
        "num_nodes": num_nodes,
        "precision": resolve_precision(precision, strategy["accelerator"]),
        "use_distributed_sampler": False,  # the data module shards episodes itself, without padding
        "enable_model_summary": False,
    }


def affordable(gigabytes: float, settings: Config) -> float:
    """How much a run may keep of so many gigabytes: at most half of what is free on the GPU it runs on, if any."""
    if settings["accelerator"] not in ON_GPU or not torch.cuda.is_available():
        return gigabytes
    devices = settings["devices"]
    free = torch.cuda.mem_get_info(devices[0] if isinstance(devices, list) else 0)[0] / GIGABYTE
    if gigabytes <= free / 2:
        return gigabytes
    logger.info("cache_gb=%g is more than half of the %.1f GB free on the GPU: that half is used", gigabytes, free)
    return free / 2


def world_size(strategy: Config, num_nodes: int = 1) -> int:
    """How many devices a strategy trains on, over all machines."""
    devices = strategy["devices"]
    if devices in ("auto", -1):
        on_gpu = strategy["accelerator"] in ON_GPU and torch.cuda.is_available()
        devices = torch.cuda.device_count() if on_gpu else 1
    return int(len(devices) if isinstance(devices, list) else devices) * num_nodes


def for_test(settings: Config) -> Config:
    """Settings for a test: on all devices with strategy=ddp, whose processes stay to the end, else on one of them."""
    if settings["strategy"] == "ddp":
        return settings
    devices = settings["devices"]
    one = devices[:1] if isinstance(devices, list) else 1
    return settings | {"devices": one, "num_nodes": 1, "strategy": "auto"}


def is_first(strategy: Config, num_nodes: int = 1) -> bool:
    """Whether this process is the first of those that run a command together."""
    return world_size(strategy, num_nodes) == 1 or getattr(rank_zero_only, "rank", 0) == 0


def build_trainer(settings: Config, **more: Any) -> pl.Trainer:
    """A Trainer, its refusal of the settings said in one line.

    Raises:
        ConfigError: Lightning knows no such device, strategy or precision, or the machine has none.
    """
    tf32 = settings["precision"] == "tf32"
    if world_size(settings, settings["num_nodes"]) == 1:  # a process of its own, also where Slurm started several
        more["plugins"] = [*more.get("plugins", ()), LightningEnvironment()]
    set_tf32(tf32)
    try:
        return pl.Trainer(**settings | {"precision": "32-true" if tf32 else settings["precision"]}, **more)
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"no such run is possible here: {line}; check strategy and precision") from error


def silence_lightning() -> None:
    """Keep Lightning's banners, and warnings that the user of a command can do nothing about, off the terminal."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
