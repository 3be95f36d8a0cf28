"""A job of a sweep: the name of its folder, by which the same job finds it again, and what is left to do in there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sd_aanet.errors import ConfigError
from sd_aanet.files import short, written_whole
from sd_aanet.settings import flat, named, read_settings
from sd_aanet.training import TRAINED

Config = dict[str, Any]
FREE = ("strategy", "logger", *named("free"))
"""Settings and groups on which a result does not depend, but for the number of devices."""
FILLING = re.compile(r"(recipe\.(?!(test_)?size$)|dataset\.benchmark\.)")
"""Keys whose values show in the settings that they fill; a recipe's sizes do not, where `size` is null."""


def job_name(fold: object, shot: object, seed: object, overrides: Sequence[str]) -> str:
    """The name of a job's folder: fold, shot, seed, and a digest of the other overrides that its result depends on.

    It depends neither on their order nor on the job's number.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = {override.get_key_element().lstrip("+"): override.value() for override in parsed}
    apart = (*FREE, "fold", "shot", "seed")
    others = {key: value for key, value in given.items() if key.partition(".")[0] not in apart}
    name = f"fold{fold}_shot{shot}_seed{seed}"
    plain = re.sub(r"[^\w-]", "-", name)
    if plain != name:  # no numbers: a mistake, and its folder goes again
        others["name"] = name
    if not others:
        return name
    text = json.dumps(others, sort_keys=True, default=str)
    return f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_finished(config: Config) -> bool:
    """Whether nothing of a training is left to do.

    Raises:
        ConfigError: its folder holds a training with other settings.
    """
    out = Path(config["out"])
    saved = out / "config.yaml"
    if not saved.is_file():
        return False
    _check_same(read_settings(saved), config, out)
    if (out / TRAINED).is_file() and (not config["test_episodes"] or (out / "result.json").is_file()):
        print(f"{out.name} is finished: skipped")
        return True
    return False


def made_ready(config: Config) -> Config:
    """The settings with which a training that is not finished starts, or with which one that was cut off goes on.

    Args:
        config: with the device that it has now, which is not that of before.
    """
    out = Path(config["out"])
    saved = out / "config.yaml"
    if not saved.is_file():
        return config
    with written_whole(saved) as path:  # what it may differ in holds as given now
        OmegaConf.save(OmegaConf.create(config), path)
    if (out / "checkpoints" / "last.ckpt").is_file():
        left = "its evaluation is left" if (out / TRAINED).is_file() else "it goes on from its last checkpoint"
        print(f"{out.name} was cut off: {left}")
    return {**config, "resume": str(out)}


def _check_same(saved: Config, given: Config, out: Path) -> None:
    """Refuse a folder whose training has other settings than this job, where its result depends on them."""
    there, here = _matters(saved), _matters(given)
    for key in (*here, *there):
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"'{short(out)}' holds a training with {key}={there.get(key)}, not {key}={here.get(key)}: give this "
                "sweep a name of its own with sweep=NAME, or remove that folder"
            )


def _matters(config: Config) -> Config:
    """The settings that a result depends on, by their whole keys."""
    strategy = config.get("strategy")
    devices = strategy.get("devices") if isinstance(strategy, dict) else None
    number = {"strategy.devices": len(devices) if isinstance(devices, list) else devices}
    rest = {key: value for key, value in config.items() if key not in FREE}
    return {key: value for key, value in flat(rest) if not FILLING.match(key)} | number
