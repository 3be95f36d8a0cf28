"""From a command line to a sweep: its name, its jobs, and what it cannot do, said before it starts."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig

from sd_aanet.arguments import setting
from sd_aanet.errors import ConfigError
from sd_aanet.files import new_folder, real
from sd_aanet.mistakes import told_in_one_line
from sd_aanet.sweep.launchers import at_once, check, check_plugin
from sd_aanet.sweep.run import LEDGERS, Sweep


def plan(command: str, conf: Path, argv: Sequence[str]) -> Sweep | None:
    """The sweep that a command line asks for; None if it asks for a single run, or for Hydra's information only.

    Args:
        command: whose conf/<command>.yaml is composed.
        conf: the folder of the configuration.
        argv: KEY=VALUE and options of Hydra.

    Raises:
        ConfigError: a launcher whose plugin is not installed, or what no job of the sweep could do.
        HydraException: a job's configuration cannot be composed.
    """
    given = _options(command, argv)
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    own = [override for override in overrides if not override.is_hydra_override()]
    for_hydra = [override for override in overrides if override.is_hydra_override()]
    values = {override.key_or_group: override.value() for override in for_hydra}
    check_plugin(values.get("hydra/launcher"))
    multirun = given.multirun or str(values.get("hydra.mode")).upper() == "MULTIRUN"
    if not multirun or given.cfg or given.info or given.hydra_help:
        return None
    (jobs,) = BasicSweeper.split_arguments(own, max_batch_size=None)
    common = [str(override.input_line) for override in for_hydra]
    if given.config_dir:
        common.append(f"hydra.searchpath=['file://{Path(given.config_dir).resolve()}']")
    with initialize_config_dir(str(conf), version_base="1.3"):
        configs = [_composed(command, [*common, *job], _apart(job, jobs), conf) for job in jobs]
    config = configs[0]
    launcher = str(config.hydra.runtime.choices["hydra/launcher"])
    check(config, launcher)
    if "sweep" in config:
        name = _sweep_name(config, own)
        if "${now:" in str(config._get_node("sweep")):  # others may start in this second, too
            name = Path(new_folder(str(config.hydra.sweep.dir))).name or name
        for each in configs:
            each.sweep = name
        more = f"sweep='{name}'"
    else:  # the time in its name is that of now
        more = "hydra.sweep.dir=" + QuotedString(str(config.hydra.sweep.dir), Quote.single).with_quotes()
    _check_out(configs)
    folder = Path(str(config.hydra.sweep.dir)).resolve()
    return Sweep(
        folder=folder,
        jobs=tuple(_job_name(each, number) for number, each in enumerate(configs)),
        launcher=launcher,
        at_once=at_once(launcher, config, len(jobs)),
        more=(more,),
        checkpoints={str(each.checkpoint): real(each.checkpoint) for each in configs if each.get("checkpoint")},
        ledger=folder / f"{LEDGERS}{os.getpid()}-{time.time_ns()}",
    )


def _apart(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """What a job has that not all have."""
    return " ".join(one for one in job if not all(one in other for other in jobs))


def _composed(command: str, overrides: list[str], apart: str, conf: Path) -> DictConfig:
    """A job's configuration; what is wrong with it, with the job that it is."""
    try:
        with told_in_one_line(command, conf):
            return compose(command, overrides, return_hydra_config=True)
    except ConfigError as error:
        raise ConfigError(f"{error} (job {apart})" if apart else str(error)) from error


def _options(command: str, argv: Sequence[str]) -> Namespace:
    """Hydra's options, what it would say of them in several lines or in a traceback said in one."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see sd-aanet {command} --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(argv))
    if given.resolve and given.cfg is None:
        refuse("option --resolve needs --cfg, as in --cfg job --resolve")
    if given.multirun + (given.cfg is not None) + (given.info is not None) > 1:
        refuse("of the options -m, --cfg and --info one can be given")
    return given


def _job_name(config: DictConfig, number: int) -> str:
    config.hydra.job.num = number
    return Path(str(config.hydra.sweep.subdir)).name


def _check_out(configs: Sequence[DictConfig]) -> None:
    """Refuse an `out` that jobs share: each would write over what another one wrote there."""
    # What Hydra fills in is a job's own, as is the folder that it has by default.
    given = [str(config.out) for config in configs if "${hydra:" not in str(config._get_node("out"))]
    out, jobs = next(iter(Counter(given).most_common(1)), ("", 0))
    if jobs > 1:
        path = Path(out)
        own = path.with_name(f"{path.stem}_${{hydra:job.num}}{path.suffix}")
        fix = "leave it out, and each has a folder in the sweep's, or set" if "sweep" in configs[0] else "set"
        fix += f" {setting('out', own)}"
        raise ConfigError(f"out={out} with -m: {jobs} jobs would write over one another there; {fix}")


def _sweep_name(config: DictConfig, overrides: Sequence[Override]) -> str:
    """The one given, or by default the choices, a swept one with all its values."""
    if config.sweep is None:
        swept = {o.key_or_group: list(o.sweep_string_iterator()) for o in overrides if o.is_sweep_override()}
        choices = config.hydra.runtime.choices
        parts = [swept.get(group, [str(choices[group])]) for group in ("dataset", "backbone", "model")]
        return re.sub(r"[^\w-]", "-", "_".join("-".join(part) for part in parts))
    name = str(config.sweep)
    if any(override.key_or_group == "sweep" and override.is_sweep_override() for override in overrides):
        raise ConfigError("sweep has several values: it is the name of one sweep, give one")
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(f"sweep='{name}', expected a name of letters, digits, '.', '_' and '-': choose another")
    return name
