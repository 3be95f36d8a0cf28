"""From a command line to a job: conf/*.yaml composed by Hydra, values checked, a user's mistakes in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from sd_aanet.arguments import spelt
from sd_aanet.effects import without_effect
from sd_aanet.errors import ConfigError, SDAANetError
from sd_aanet.files import config_folder, remove_empty, remove_unused
from sd_aanet.mistakes import told_in_one_line
from sd_aanet.rules import check
from sd_aanet.settings import RULES, TEXTS

if TYPE_CHECKING:  # their imports take long
    from omegaconf import DictConfig

    from sd_aanet.sweep.run import Sweep

Task = Callable[[dict[str, Any]], object]
OPTIONS = ("-m", "--multirun", "-c", "--cfg", "--resolve", "-i", "--info", "-cd", "--config-dir", "--hydra-help")
"""The options of Hydra that are of use here."""
FLAGS = ("-m", "--multirun", "--resolve", "--hydra-help")
"""Those of them that take no value."""


@dataclass
class Job:
    """What Hydra calls with a composed configuration, for a single run or for each job of a sweep, in any process.

    Attributes:
        command: its name.
        find: gives the task; called once the configuration is composed, since the task's imports take seconds.
        command_line: with which Lightning starts the other ranks (strategy=ddp).
        sweep: whose job this is; None for a single run.
        mistake: the user's, in a single run.
        code: the largest exit code that a task in this process asks for.
        started: whether a configuration could be composed.
    """

    command: str
    find: Callable[[], Task]
    command_line: list[str]
    sweep: Sweep | None = None
    mistake: SDAANetError | None = None
    code: int = 0
    started: bool = False

    def __call__(self, config: DictConfig) -> None:
        """Run it; a user's mistake is kept, so that Hydra does not print it its way."""
        from hydra.core.hydra_config import HydraConfig

        sys.argv, self.started = self.command_line, True
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        try:
            if self.sweep is None:
                with told_in_one_line(self.command, config_folder()):
                    self._task(self._plain(config), config)
            else:
                self._in_sweep(self.sweep, hydra.job.num, folder, config)
        except SDAANetError as error:
            self.mistake = error
        finally:
            remove_empty(folder)

    def _in_sweep(self, sweep: Sweep, number: int, folder: Path, config: DictConfig) -> None:
        def attempt() -> str:
            with told_in_one_line(self.command, config_folder()):
                return sweep.work(number, folder, self._plain(config), lambda plain: self._task(plain, config))

        sweep.job(number, folder, attempt)

    def _plain(self, config: DictConfig) -> dict[str, Any]:
        from omegaconf import OmegaConf

        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        check(plain, RULES)
        return plain

    def _task(self, plain: dict[str, Any], config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        _log_to_stdout()
        given = [re.split("[=@]", one.lstrip("+"))[0] for one in HydraConfig.get().overrides.task]
        for line in without_effect(self.command, given, config):
            logging.getLogger(__name__).warning("CAUTION: %s", line)
        code = self.find()(plain)
        self.code = max(self.code, code if isinstance(code, int) else 0)


def run_composed(name: str, find: Callable[[], Task], argv: list[str]) -> int:
    """Compose conf/<name>.yaml with the overrides and run its task, once or for every job of a sweep.

    Args:
        name: of the command.
        find: gives the task, see `Job`.
        argv: KEY=VALUE and options of Hydra.

    Returns:
        The exit code.

    Raises:
        ConfigError: an option or setting that does not exist or cannot work.
        SDAANetError: what the task says is the user's mistake; of a sweep, what all its jobs say.
    """
    argv = _read(argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing and leaving with 1
    from sd_aanet.sweep.plan import plan

    job = Job(name, find, sys.argv)
    try:
        with (
            told_in_one_line(name, config_folder(), lambda: not job.started),
            _command_line(f"sd-aanet {name}", argv, job.command_line),
        ):
            job.sweep = sweep = plan(name, config_folder(), argv)
            if sweep is not None:
                return max(sweep.run(lambda: _hydra(job, [*argv, *sweep.more])), job.code)
            _hydra(job, argv)
    finally:
        remove_unused()
    if job.mistake is not None:
        raise job.mistake
    return job.code


def _read(argv: list[str]) -> list[str]:
    """The arguments as Hydra reads what was meant: options that it has, texts letter by letter."""
    several = bool({"-m", "--multirun"} & {*argv}) or any(a.upper() == "HYDRA.MODE=MULTIRUN" for a in argv)
    read: list[str] = []
    for argument in sorted(argv, key=lambda one: one not in FLAGS):  # behind settings Hydra does not see them
        key, equals, value = argument.partition("=")
        if argument.startswith("-") and key not in OPTIONS:
            raise ConfigError(f"option '{argument}' is unknown: write settings as KEY=VALUE, as in fold=1; see --help")
        if argument.startswith("~"):
            raise ConfigError(
                f"'{argument}' takes a setting away, which none can be: leave it out, or give another value as "
                f"{key[1:]}=..."
            )
        name = key.lstrip("+")
        group = (config_folder() / name).is_dir()
        if equals and (group or name in TEXTS):
            argument = f"{key}={spelt(value, several, null=not group)}"
        read.append(argument)
    return read


def _hydra(job: Job, argv: Sequence[str]) -> None:
    import hydra

    with _command_line(f"sd-aanet {job.command}", argv, job.command_line):
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=job.command)(job)()


@contextmanager
def _command_line(program: str, argv: Sequence[str], own: list[str]) -> Iterator[None]:
    """What Hydra reads settings and its own name from, until the block ends; `own` is then there again."""
    sys.argv = [program, *argv]
    try:
        yield
    finally:
        sys.argv = own


def print_help(name: str, about: str, argv: list[str]) -> None:
    """The settings of a command with their comments, as conf/ has them; for the groups' choices on the command line."""
    folder = config_folder()
    text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    top, _, settings = text.partition("\n\n")
    print(f"usage: sd-aanet {name} [KEY=VALUE ...] [-m]\n\nsd-aanet {name}: {about}.")
    print("With -m, KEY=VALUE1,VALUE2 runs a job for each value.\n")
    print(settings.partition("\nhydra:")[0].strip())
    chosen: dict[str, str] = {}
    groups = list(_defaults(top))
    overridden = {group.removeprefix("override ") for group, _ in groups if group.startswith("override ")}
    while groups:
        group, choice = groups.pop(0)
        choices = sorted(path.stem for path in (folder / group).glob("*.yaml"))
        if group.startswith("override ") or not choices:
            continue
        if choice == "null":
            print(f"\n{group}=null  # or one of {', '.join(choices)}")
            continue
        given = [a.partition("=")[2] for a in argv if a.startswith(f"{group}=")]
        choice = given[-1] if given and given[-1] in choices else chosen.get(choice.strip("${}"), choice)
        chosen[group] = choice
        print(f"\n{group}={choice}  # of {', '.join(choices)}")
        lines, brought = _with_bases(folder / group, choice)
        for line in lines:
            print(f"  {group}.{line}" if re.match(r"\w", line) else f"  {line}")
        groups = [both for both in brought if both[0] not in overridden] + groups


def _defaults(text: str) -> Iterator[tuple[str, str]]:
    """The groups of a defaults list and their choices, as written; of a base the group is empty."""
    for group, choice in re.findall(r"^  - (?:([^:#\n]+): )?([^\s#]+)", text, re.MULTILINE):
        if choice != "_self_":
            yield group.partition("@")[0].removeprefix("/"), choice


def _with_bases(folder: Path, choice: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines of a choice behind those of the choices that it builds on; the groups that they bring."""
    text = (folder / f"{choice}.yaml").read_text(encoding="utf-8")
    lines, bases, brought = re.sub(r"^defaults:\n(  - .*\n)*", "", text, flags=re.MULTILINE).splitlines(), [], []
    for group, base in _defaults(text):
        if group:
            brought.append((group, base))
        else:
            more, also = _with_bases(folder, base)
            bases += more
            brought += also
    return bases + lines, brought


def _log_to_stdout() -> None:
    """Tell what is going on; standard error is for what goes wrong."""
    log = logging.getLogger("sd_aanet")
    log.setLevel(logging.INFO)
    log.handlers = [_Handler(sys.stdout)]


class _Handler(logging.StreamHandler[TextIO]):
    """One whose stream's errors are errors, which Python's prints as tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout  # as it is now: who calls commands from Python may have put another in its place
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        raise
