"""The jobs of one command with `-m`: how each ends, in whichever process, and the list of those that failed."""

from __future__ import annotations

import dataclasses
import gc
import json
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sd_aanet.arguments import program, word
from sd_aanet.errors import SDAANetError, of_machine
from sd_aanet.files import claimed, is_alive, remove_empty, short, written_whole
from sd_aanet.machine import resolve_workers
from sd_aanet.sweep.devices import device_of_its_own
from sd_aanet.sweep.folder import is_finished, made_ready
from sd_aanet.sweep.launchers import ONE_MACHINE, PLUGINS, check, start_processes_as_usual

Config = dict[str, Any]
FAILURES = "failures"
"""The folder in a sweep's that has a file for each job that failed."""
LEDGERS = f".jobs-{re.sub('[^a-zA-Z0-9]', '_', platform.node())}-"
"""How the names of this machine's ledgers begin, before the number of the process."""
INTERNAL = (".submitit", "multirun.yaml", FAILURES)
"""What is in a sweep's folder beside its jobs."""
STARTS = 2
"""How often one command starts a job whose process is killed: it may be the one that takes all memory."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of its folder.
        state: "done", "finished" (in an earlier sweep) or "failed".
        line: the error, on one line.
        mistake: whether that is the user's.
    """

    name: str
    state: str
    line: str = ""
    mistake: bool = False


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The jobs of one command with `-m`; goes to each of them.

    Attributes:
        folder: of the sweep.
        jobs: the names of their folders.
        launcher: Hydra's name of what runs them.
        at_once: how many of them share this machine.
        more: overrides that Hydra gets in addition.
        checkpoints: those that jobs name, and the file that each was when the sweep began: a job that ends turns
            runs/latest.
        ledger: a folder, there while the command runs, in which a job leaves its outcome under its number.
    """

    folder: Path
    jobs: tuple[str, ...]
    launcher: str
    at_once: int
    more: tuple[str, ...]
    checkpoints: Mapping[str, str]
    ledger: Path

    def run(self, launch: Callable[[], None]) -> int:
        """Run all jobs, then list what failed.

        Args:
            launch: runs them through Hydra, and returns when all have ended.

        Returns:
            The exit code: 0; 2 if jobs failed, all of them by mistakes of the user's; 1 if one failed otherwise.

        Raises:
            SDAANetError: every job failed by the same mistake.
            KeyboardInterrupt: Ctrl-C.
        """
        new, code = not self.folder.exists() or not any(self.folder.iterdir()), 1
        for path in self.folder.glob(f"{LEDGERS}*-*"):
            if not is_alive(int(path.name.removeprefix(LEDGERS).partition("-")[0])):  # its command was killed
                shutil.rmtree(path, ignore_errors=True)
        self.ledger.mkdir(parents=True)
        try:
            broken = self._launch(launch)
            code = self._conclude(self._outcomes(), broken)
        except KeyboardInterrupt:
            print(f"\nthe same command goes on where this one stopped: {short(self.folder)}")
            if PLUGINS.get(self.launcher) == "submitit":
                print("jobs that were handed in go on; on Slurm, scancel stops them")
            raise
        except (SDAANetError, HydraException, OmegaConfBaseException):
            code = 2
            raise
        finally:
            shutil.rmtree(self.ledger, ignore_errors=True)  # a job may just write into it
            with suppress(OSError):  # not empty, or not there
                (self.folder / FAILURES).rmdir()
            if new and code != 1:
                self._forget()
        return code

    def job(self, number: int, folder: Path, attempt: Callable[[], str]) -> None:
        """Run one job, in whichever process, and record how it ended.

        Args:
            number: of the job.
            folder: of the job.
            attempt: does the job; its state, see `Outcome`.
        """
        record, starts = self.ledger / f"{number}.json", self.ledger / f"{number}.starts"
        if record.exists():
            return  # it ended before the launcher gave up
        if self.launcher == "joblib" and starts.exists() and starts.stat().st_size >= STARTS:
            self._record(record, self._failed(folder.name, "its process, or one that ran beside it, was killed"))
            return
        with suppress(FileNotFoundError), starts.open("a") as file:
            file.write(".")
        print(f"\njob {number + 1} of {len(self.jobs)}: {folder.name}", flush=True)
        outcome = self._attempted(folder, attempt)
        _free_memory()
        self._record(record, outcome)

    def _attempted(self, folder: Path, attempt: Callable[[], str]) -> Outcome:
        try:
            with claimed(folder):  # be it by a sweep that was given up but still runs
                outcome = Outcome(folder.name, attempt())
        except Exception as error:
            mistake = error if isinstance(error, SDAANetError) else of_machine(error)
            line = str(mistake or f"{type(error).__name__}: {error}")
            outcome = self._failed(
                folder.name, _one_line(line), "" if mistake else traceback.format_exc(), mistake is not None
            )
        if outcome.state == "failed":
            print(f"{outcome.name} failed, the others go on: {outcome.line}", flush=True)
        else:
            self._failure(outcome.name).unlink(missing_ok=True)  # that of an earlier sweep
        return outcome

    def _failed(self, name: str, line: str, trace: str = "", mistake: bool = False) -> Outcome:
        """The outcome of a job that failed, which stays in a file until the same sweep has finished the job."""
        path = self._failure(name)
        with written_whole(path) as temporary:
            temporary.write_text(f"{line}\n\n{trace}".strip() + "\n", encoding="utf-8")
        return Outcome(name, "failed", f"{line} (traceback: {short(path)})" if trace else line, mistake)

    def _failure(self, name: str) -> Path:
        return self.folder / FAILURES / f"{name}.txt"

    def _record(self, path: Path, outcome: Outcome) -> None:
        with suppress(FileNotFoundError):  # the command that started this job waits no longer
            path.write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")

    def work(self, number: int, folder: Path, config: Config, task: Callable[[Config], object]) -> str:
        """Do what is left to do of a job, on a device of its own where jobs run side by side.

        Args:
            number: of the job.
            folder: of the job.
            config: plain values, checked.
            task: takes them.

        Returns:
            The job's state, see `Outcome`.

        Raises:
            ConfigError: settings that cannot work in a sweep, or the folder holds a training with others.
        """
        check(config, self.launcher)
        if config.get("checkpoint") in self.checkpoints:
            config = {**config, "checkpoint": self.checkpoints[config["checkpoint"]]}
        trains = "resume" in config
        if trains and is_finished(config):
            return "finished"
        with ExitStack() as stack:
            if self.launcher in ONE_MACHINE and "strategy" in config:
                strategy = stack.enter_context(device_of_its_own(config["strategy"], number, self.at_once))
                config = {**config, "strategy": strategy}
                if self.at_once > 1 and "workers" in config:  # of its share of the cores, too
                    config["workers"] = resolve_workers(config["workers"], self.at_once)
            if trains:
                config = made_ready(config)
            if self.launcher == "joblib":
                start_processes_as_usual()
                stack.enter_context(_printing_to(folder / "output.txt"))
            task(config)
        if self.launcher == "joblib":
            print(f"{folder.name} is done, what it printed is in {short(folder / 'output.txt')}", flush=True)
        return "done"

    def _left(self) -> list[Path]:
        """What jobs left in the sweep's folder."""
        return [path for path in self.folder.iterdir() if path != self.ledger and path.name not in INTERNAL]

    def _forget(self) -> None:
        """Remove the sweep's folder if no job left anything in it."""
        if not self._left():
            shutil.rmtree(self.folder)
            remove_empty(self.folder.parent)

    def _launch(self, launch: Callable[[], None]) -> str:
        """Run all jobs; where joblib gives up, since a process of its was killed, those that are left once more.

        Returns:
            Why a launcher gave up for good, or nothing.
        """
        before = 0
        while True:
            try:
                launch()
                return ""
            except Exception as error:
                if self.launcher not in PLUGINS or isinstance(error, HydraException | OmegaConfBaseException):
                    raise
                reason = _one_line(f"{type(error).__name__}: {error}").partition(". ")[0]
            written = sum(path.stat().st_size for path in self.ledger.iterdir())
            if self.launcher != "joblib" or written == before:
                return reason
            before = written
            print(f"\n{reason}: what is left starts again", flush=True)

    def _outcomes(self) -> list[Outcome]:
        """Of all jobs in their order; one that left none was cut off, or did not start."""
        paths = [self.ledger / f"{number}.json" for number in range(len(self.jobs))]
        return [
            Outcome(**json.loads(path.read_text(encoding="utf-8")))
            if path.is_file()
            else self._failed(name, "it has not come to its end")
            for name, path in zip(self.jobs, paths, strict=True)
        ]

    def _conclude(self, outcomes: Sequence[Outcome], broken: str) -> int:
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        mistakes = all(outcome.mistake for outcome in failed)
        if mistakes and len(failed) == len(outcomes) and len({outcome.line for outcome in failed}) == 1:
            for outcome in failed:  # a mistake in the command, and no failure of its jobs
                self._failure(outcome.name).unlink(missing_ok=True)
            raise SDAANetError(failed[0].line)
        if broken:
            print(f"sd-aanet: hydra/launcher={self.launcher} gave up: {broken}", file=sys.stderr)
        if failed:
            print(f"sd-aanet: {len(failed)} of {len(outcomes)} jobs failed:", file=sys.stderr)
            for outcome in failed:
                print(f"  {outcome.name}: {outcome.line}", file=sys.stderr)
        if len(failed) < len(outcomes):
            states = [outcome.state for outcome in outcomes]
            counts = {"done": "done", "finished": "finished before", "failed": "failed"}
            told = ", ".join(f"{states.count(state)} {text}" for state, text in counts.items() if state in states)
            print(f"\n{len(outcomes)} jobs: {told}")
            if self._left():
                print(f"sweep       {short(self.folder)}")
            if any(self.folder.rglob("result.json")):
                print(f"\nnext:\n  {program()} report {word(short(self.folder))}")
        return 0 if not failed else 2 if mistakes else 1


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send what a job prints to a file, so that jobs side by side don't write across each other."""
    try:
        with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            yield
    except SDAANetError:
        path.unlink()  # its line is all that there is to say
        raise


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def _free_memory() -> None:
    """Leave the next job, here or in another process, what this one took of a GPU."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
