"""From a command line to a job: conf/*.yaml composed by Hydra, values checked, a user's mistakes in one line."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from sd_aanet.errors import ConfigError, SDAANetError
from sd_aanet.settings import check_settings

Task = Callable[[dict[str, Any]], object]
OPTIONS = ("-m", "--multirun", "-c", "--cfg", "--resolve", "-i", "--info", "-cd", "--config-dir", "--hydra-help")
"""The options of Hydra that are of use here."""


def config_folder() -> Path:
    """The folder of the configuration: in an installed package, or beside src/ in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def run_composed(name: str, find: Callable[[], Task], argv: list[str]) -> int:
    """Compose conf/<name>.yaml with the overrides and run its task, once or for every job of a multirun.

    Args:
        name: of the command.
        find: gives the task; called once the configuration is composed, since the task's imports take seconds.
        argv: KEY=VALUE and options of Hydra.

    Returns:
        The exit code: the largest that a job's task returned, 0 where none did.

    Raises:
        ConfigError: an option or setting that does not exist or cannot work.
        SDAANetError: what the task says is the user's mistake. A multirun goes on after one; the lines of all but the
            last are printed, and that is raised.
    """
    for argument in argv:
        if argument.startswith("-") and argument.partition("=")[0] not in OPTIONS:
            raise ConfigError(f"option '{argument}' is unknown: write settings as KEY=VALUE, as in fold=1; see --help")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing and leaving with 1
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    mistakes: dict[str, SDAANetError] = {}
    parent, command_line = os.getpid(), sys.argv
    codes = [0]

    def task(config: DictConfig) -> None:
        sys.argv = command_line  # with strategy=ddp Lightning starts the other ranks with it
        _log_to_stdout()
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        with _no_empty_folder(Path(HydraConfig.get().runtime.output_dir)):
            try:
                plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
                check_settings(name, plain)
                _check_strategy(plain, multirun)
                code = find()(plain)
                codes.append(code if isinstance(code, int) else 0)
            except (SDAANetError, HydraException, OmegaConfBaseException) as error:
                if os.getpid() != parent:  # a launcher with processes of its own: only the error gets through
                    raise
                mistake = _mistake(error, name)
                mistake.__cause__ = mistake.__cause__ if mistake is error else error  # what --debug shows
                mistakes.setdefault(str(mistake), mistake)

    sys.argv = [f"sd-aanet {name}", *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _mistake(error, name) from error
    finally:
        sys.argv = command_line
    *others, last = mistakes.values() or (None,)
    for mistake in others:
        complain(mistake)
    if last is not None:
        raise last
    return max(codes)


def complain(mistake: SDAANetError) -> None:
    """Print a mistake as one line."""
    print(f"sd-aanet: {' '.join(str(mistake).split())}", file=sys.stderr)


def print_help(name: str, about: str, argv: list[str]) -> None:
    """The settings of a command with their comments, as conf/ has them; for the groups' choices on the command line."""
    from omegaconf import OmegaConf

    folder = config_folder()
    text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    top, _, settings = text.partition("\n\n")
    print(f"usage: sd-aanet {name} [KEY=VALUE ...] [-m]\n\nsd-aanet {name}: {about}.")
    print("With -m, KEY=VALUE1,VALUE2 runs a job for each value.\n")
    print(settings.partition("\nhydra:")[0].strip())
    for entry in OmegaConf.create(top).defaults:
        if entry == "_self_":
            continue
        ((group, choice),) = entry.items()
        if str(group).startswith("override"):
            continue
        choices = sorted(path.stem for path in (folder / group).glob("*.yaml"))
        given = [a.partition("=")[2] for a in argv if a.startswith(f"{group}=")]
        choice = given[-1] if given and given[-1] in choices else choice
        print(f"\n{group}={choice}  # of {', '.join(choices)}")
        for line in _with_bases(folder / group, choice):
            print(f"  {group}.{line}" if re.match(r"\w", line) else f"  {line}")


def _with_bases(folder: Path, choice: str) -> list[str]:
    """The lines of a choice behind those of the choices that it builds on."""
    lines = (folder / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    if "defaults:" not in lines:
        return lines
    start = lines.index("defaults:")
    bases = [line.strip(" -") for line in lines[start + 1 :] if line.startswith("  - ")]
    own = lines[:start] + lines[start + 1 + len(bases) :]
    return [line for base in bases for line in _with_bases(folder, base)] + own


def _check_strategy(config: dict[str, Any], multirun: bool) -> None:
    strategy = config.get("strategy", {}).get("strategy")
    if multirun and strategy == "ddp":
        raise ConfigError(
            "strategy=ddp with -m: every rank would start the whole sweep again; set strategy=ddp_spawn, or start one "
            "run a job without -m"
        )


def _log_to_stdout() -> None:
    """Tell what is going on; standard error is for what goes wrong."""
    log = logging.getLogger("sd_aanet")
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stdout)]


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove the folder that Hydra made for a job if nothing was written, and those above it that then are empty."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, or just taken by another job
            while Path.cwd() in folder.parents:
                if folder.exists():
                    folder.rmdir()
                folder = folder.parent


def _mistake(error: Exception, name: str) -> SDAANetError:
    """A user's mistake from what OmegaConf or Hydra made of it."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, SDAANetError):
        return error
    line = " ".join(str(error).split())
    if isinstance(error, MissingMandatoryValue) or "Missing mandatory value" in line:
        key = getattr(error, "full_key", None) or line.split("Missing mandatory value: ")[-1].split()[0]
        return ConfigError(f"{key} is not set: give {key}=... on the command line")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return ConfigError(f"{group}={choice} is unknown: choose one of {', '.join(error.options)}")
    if unknown := re.search(r"Could not override '([^']+)'", line):
        return ConfigError(f"setting '{unknown[1]}' is unknown{_alike(unknown[1], name)}: see sd-aanet {name} --help")
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", line):
        key, _, values = ambiguous[1].partition("=")
        return ConfigError(f"{key} has several values: give -m for a job each, or {key}=[{values}] for a list")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"'{error.override}' cannot be read: write KEY=VALUE, and a value with special characters in quotes of its "
            "own, as in 'out=\"a=b\"'"
        )
    return ConfigError(f"{line}: see sd-aanet {name} --help")


def _alike(key: str, name: str) -> str:
    """A setting that may have been meant."""
    from omegaconf import DictConfig, OmegaConf

    def keys(config: Any, prefix: str) -> Iterator[str]:
        for part in map(str, config if isinstance(config, DictConfig) else ()):
            yield f"{prefix}{part}"
            yield from keys(config._get_node(part), f"{prefix}{part}.")

    folder = config_folder()
    known = set(keys(OmegaConf.load(folder / f"{name}.yaml"), ""))
    for path in folder.glob("*/*.yaml"):
        known |= {path.parent.name, *keys(OmegaConf.load(path), f"{path.parent.name}.")}
    if key in known:
        return " with these choices"
    close = difflib.get_close_matches(key, known - {"defaults", "hydra"}, n=1)
    return f", did you mean '{close[0]}'?" if close else ""
