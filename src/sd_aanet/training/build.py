"""From a composed configuration, as plain values, to the module, the data and the trainer's settings."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.errors import ConfigError
from sd_aanet.memory import GIGABYTE
from sd_aanet.precision import ON_GPU, resolve_precision, set_tf32
from sd_aanet.training.module import SDAANetModule
from sd_aanet.weights import load_backbone_weights, stride_of

logger = logging.getLogger(__name__)
NOISE = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    r".*does not have many workers",  # `workers` is a setting
    r".*module\(s\) in eval mode at the start of training",  # the frozen backbone
    r"Total length of `list` across ranks is zero",  # select_on=none
    r"It is recommended to use .*sync_dist=True",  # the metric itself is summed over the devices
    r"Checkpoint directory .* exists and is not empty",  # resume
)
Config = dict[str, Any]


def network_arguments(backbone: Config, model: Config) -> Config:
    """The arguments of `models.build_network`, every `auto` resolved.

    Args:
        backbone: conf/backbone/*.yaml.
        model: conf/model/*.yaml.
    """
    weights, trainable, norm = backbone["weights"], backbone["trainable"], backbone["norm"]
    trainable = (weights is None) if trainable == "auto" else trainable
    arguments = {
        **{key: value for key, value in model.items() if key != "loss"},
        "backbone": backbone["name"],
        "stride_on": stride_of(weights) if backbone["stride_on"] == "auto" else backbone["stride_on"],
        "backbone_trainable": trainable,
        "backbone_norm": ("batch" if trainable else "frozen") if norm == "auto" else norm,
    }
    if model["method"] == "sd_aanet":
        arguments |= {"channels": backbone["head_channels"], "prior_stage": backbone["prior_stage"]}
    return arguments


def build_module(config: Config, classes: int, preprocess: Config, **settings: Any) -> SDAANetModule:
    """An untrained module with its backbone's weights, saying aloud where these come from.

    Args:
        config: with `backbone` and `model`.
        classes: the largest class id of the data set.
        preprocess: arguments of `Preprocess`.
        settings: further arguments of `SDAANetModule`.
    """
    arguments = network_arguments(config["backbone"], config["model"])
    module = SDAANetModule(arguments, dict(config["model"]["loss"]), preprocess, classes, **settings)
    weights = config["backbone"]["weights"]
    if weights is None:
        state = "trains with the head" if arguments["backbone_trainable"] else "does NOT train: it stays random"
        logger.info("backbone %s starts from random weights and %s", config["backbone"]["name"], state)
    else:
        logger.info("%s", load_backbone_weights(module.network.backbone, str(weights)))
    return module


def open_data(source: Config, **settings: Any) -> EpisodeDataModule:
    """A DataModule over conf/dataset/*.yaml's `source`."""
    return EpisodeDataModule(source=dict(source), **settings)


def trainer_settings(strategy: Config, precision: str, num_nodes: int = 1) -> Config:
    """What every Trainer here gets: devices, machines, precision, and quiet.

    Raises:
        ConfigError: the machine does not have what the strategy asks for.
    """
    if strategy["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise ConfigError("strategy asks for a GPU, and torch sees none here: set strategy=cpu or strategy=auto")
    return {
        **{key: strategy[key] for key in ("accelerator", "devices", "strategy")},
        "num_nodes": num_nodes,
        "precision": resolve_precision(precision, strategy["accelerator"]),
        "use_distributed_sampler": False,  # the data module shards episodes itself, without padding
        "enable_model_summary": False,
    }


def affordable(gigabytes: float, settings: Config) -> float:
    """How much a run may remember of so many gigabytes: at most half of what is free on the GPU it runs on, if any."""
    if settings["accelerator"] not in ON_GPU or not torch.cuda.is_available():
        return gigabytes
    devices = settings["devices"]
    free = torch.cuda.mem_get_info(devices[0] if isinstance(devices, list) else 0)[0] / GIGABYTE
    if gigabytes <= free / 2:
        return gigabytes
    logger.info("remember_gb=%g is more than half of the %.1f GB free on the GPU: that half is used", gigabytes, free)
    return free / 2


def world_size(strategy: Config, num_nodes: int = 1) -> int:
    """How many devices a strategy trains on, over all machines."""
    devices = strategy["devices"]
    if devices in ("auto", -1):
        on_gpu = strategy["accelerator"] in ON_GPU and torch.cuda.is_available()
        devices = torch.cuda.device_count() if on_gpu else 1
    return int(len(devices) if isinstance(devices, list) else devices) * num_nodes


def build_trainer(settings: Config, **more: Any) -> pl.Trainer:
    """A Trainer, its refusal of the settings said in one line.

    Raises:
        ConfigError: Lightning knows no such device, strategy or precision, or the machine has none.
    """
    tf32 = settings["precision"] == "tf32"
    set_tf32(tf32)
    try:
        return pl.Trainer(**settings | {"precision": "32-true" if tf32 else settings["precision"]}, **more)
    except (MisconfigurationException, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"no such run is possible here: {line}; check strategy and precision") from error


def link_latest(out: Path) -> None:
    """Make runs/latest point to this run, if it is in runs/, so that the next command finds it."""
    root = Path("runs").resolve()
    if root in out.resolve().parents:
        temporary = root / f".latest.{out.name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(out.resolve().relative_to(root), target_is_directory=True)
        temporary.replace(root / "latest")


def quiet() -> None:
    """Keep Lightning's banners, and warnings that the user of a command can do nothing about, off the terminal."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
