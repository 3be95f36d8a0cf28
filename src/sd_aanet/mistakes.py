"""A user's mistakes in a command line, which OmegaConf and Hydra tell in their own way, in one line each."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sd_aanet.arguments import setting, word
from sd_aanet.errors import ConfigError, SDAANetError, of_machine
from sd_aanet.settings import TEXTS

LISTS = ("support", "query")
"""The texts of which a list makes sense."""


@contextlib.contextmanager
def told_in_one_line(command: str, folder: Path, composing: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise ConfigError for what Hydra or OmegaConf raise in the block.

    Args:
        command: whose settings are composed.
        folder: of the configuration.
        composing: whether it is still the command line that is read: Hydra and OmegaConf raise nearly anything then.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _mistake(error, command, folder) from error
    except SDAANetError:
        raise
    except Exception as error:  # what the machine refuses; Hydra would print a line of its own before ours
        mistake = of_machine(error) or (_mistake(error, command, folder) if composing() else None)
        if mistake is None:
            raise
        raise mistake from error


def _mistake(error: Exception, command: str, folder: Path) -> SDAANetError:
    """A user's mistake from what OmegaConf or Hydra made of it."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    line = " ".join(str(error).split())
    if isinstance(error, MissingMandatoryValue) or "Missing mandatory value" in line:
        key = getattr(error, "full_key", None) or line.split("Missing mandatory value: ")[-1].split()[0]
        return ConfigError(f"{key} is not set: give {key}=... on the command line")
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        options = error.options or sorted(path.stem for path in (folder / group).glob("*.yaml"))
        return ConfigError(f"{group}={choice} is unknown: choose one of {', '.join(options)}, or leave it out")
    if unknown := re.search(r"Could not override '([^']+)'", line):
        return ConfigError(
            f"setting '{unknown[1]}' is unknown{_alike(unknown[1], command, folder)}: see sd-aanet {command} --help"
        )
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", line):
        key, _, values = ambiguous[1].partition("=")
        ways = ["give -m for a job each"]
        if key in LISTS or key not in TEXTS:
            ways.append(f"{word(f'{key}=[{values}]')} for a list")
        if key in TEXTS:
            ways.append(f"{setting(key, values)} for one text with a comma in it")
        return ConfigError(f"{key} has several values: {', or '.join(ways)}")
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        example = setting(key, value) if equals and key in TEXTS else setting("out", "a,b")
        return ConfigError(
            f"'{error.override}' cannot be read: write KEY=VALUE, and a value with special characters in quotes of its "
            f"own, as in {example}"
        )
    return ConfigError(f"{line}: see sd-aanet {command} --help")


def _alike(key: str, command: str, folder: Path) -> str:
    """A setting that may have been meant."""
    from omegaconf import DictConfig, OmegaConf

    def keys(config: Any, prefix: str) -> Iterator[str]:
        for part in map(str, config if isinstance(config, DictConfig) else ()):
            yield f"{prefix}{part}"
            yield from keys(config._get_node(part), f"{prefix}{part}.")

    known = set(keys(OmegaConf.load(folder / f"{command}.yaml"), ""))
    for path in folder.glob("*/*.yaml"):
        known |= {path.parent.name, *keys(OmegaConf.load(path), f"{path.parent.name}.")}
    if key in known:
        return " with these choices"
    close = difflib.get_close_matches(key, known - {"defaults", "hydra"}, n=1)
    return f", did you mean '{close[0]}'?" if close else ""
