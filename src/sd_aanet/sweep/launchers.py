"""What Hydra's launchers run jobs with, and what they cannot."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from sd_aanet.errors import ConfigError
from sd_aanet.machine import cores

PLUGINS = {"joblib": "joblib", "slurm": "submitit", "submitit_slurm": "submitit", "submitit_local": "submitit"}
"""Launcher -> the Hydra plugin that brings it."""
ONE_MACHINE = ("joblib", "submitit_local")
"""The launchers that run jobs side by side on one machine."""


def check(config: Mapping[str, Any] | DictConfig, launcher: str) -> None:
    """Refuse what cannot work in a sweep.

    Args:
        config: of a job.
        launcher: what runs it.

    Raises:
        ConfigError: it resumes by hand, starts processes that start the sweep again, or takes devices of other jobs.
    """
    if config.get("resume") is not None:
        raise ConfigError(
            f"resume={config['resume']} with -m: a sweep that is repeated resumes by itself what was cut off; "
            "leave resume out, or run one job without -m"
        )
    strategy = config.get("strategy") or {}
    devices = strategy.get("devices", 1)
    devices = list(devices) if isinstance(devices, ListConfig) else devices
    if launcher in ONE_MACHINE and devices != 1 and not isinstance(devices, list):
        raise ConfigError(
            f"strategy.devices={devices} with hydra/launcher={launcher}: jobs side by side have one device each; set "
            "strategy.devices=1, or leave the launcher out, and the jobs run one after the other on all devices"
        )
    if "num_nodes" in config or strategy.get("strategy") == "ddp":  # otherwise an evaluation takes one of the devices
        _check_ranks(config.get("num_nodes", 1), {**strategy, "devices": devices})


def _check_ranks(num_nodes: object, strategy: dict[str, Any]) -> None:
    """Refuse a job whose further processes would run this command themselves, a whole sweep each."""
    again = "would start the whole sweep again"
    if num_nodes != 1:
        raise ConfigError(
            f"num_nodes={num_nodes} with -m: every machine {again}; set num_nodes=1, or start one run a job without -m"
        )
    kind, devices = str(strategy.get("strategy", "auto")), strategy["devices"]
    if kind.startswith("ddp_spawn"):
        return
    if kind != "auto":
        given = f"strategy={kind}"
    elif _are_several(devices, strategy):
        given = f"strategy.devices={devices}"  # of which Lightning makes ddp
    else:
        return
    raise ConfigError(
        f"{given} with -m: every rank {again}; set strategy.strategy=ddp_spawn, or start one run a job without -m"
    )


def _are_several(devices: object, strategy: dict[str, Any]) -> bool:
    if devices == 1 or not (devices == "auto" or isinstance(devices, int | list)):
        return False  # what is no number of devices is refused where all settings are checked
    from sd_aanet.trainer import world_size  # whose imports take seconds

    return world_size(strategy) > 1


def check_plugin(launcher: object) -> None:
    """Refuse a launcher whose plugin is not installed."""
    plugin = PLUGINS.get(str(launcher))
    if plugin is None:
        return
    try:
        importlib.import_module(f"hydra_plugins.hydra_{plugin}_launcher")
    except ModuleNotFoundError:
        raise ConfigError(
            f"hydra/launcher={launcher} needs hydra-{plugin}-launcher, which is not installed: "
            "pip install 'sd-aanet[sweep]'"
        ) from None


def at_once(launcher: str, config: DictConfig, jobs: int) -> int:
    """How many jobs this machine runs at once."""
    if launcher != "joblib":
        return jobs if launcher == "submitit_local" else 1
    number = int(config.hydra.launcher.n_jobs)
    if number < 1 and number != -1:
        raise ConfigError(
            f"hydra.launcher.n_jobs={number}, expected at least 1, or -1 for a job a core: set hydra.launcher.n_jobs=2"
        )
    return min(jobs, cores() if number == -1 else number)


def start_processes_as_usual() -> None:
    """In a process of joblib's: start others in Python's way; a data loader's workers do not start in joblib's."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)
