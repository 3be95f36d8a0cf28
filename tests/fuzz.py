"""`make fuzz`: odd inputs of every kind, and whether each is taken, or refused in one line.

Pictures, data sets, lists, checkpoints, results, archives and command lines: valid ones with damaged bytes or odd
content, and drawn ones. An input is a function of the seed and its number. They are read in processes that are bounded
in time and memory and may write to a temporary folder alone; what is neither taken nor refused is printed with the
command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

SECONDS, PATIENCE = 20, 200
"""Of the processor for an input, and of waiting, after which it counts as endless."""
GIGABYTE = 2**30
MEMORY, ADDRESSES = 2 * GIGABYTE, 6 * GIGABYTE
"""That an input may take, and that it may ask for, beside what a process has from the start."""
SHOWN = 25
"""Lines of a traceback."""
VALID = "valid"
"""The folder of what is damaged in copies."""
MODULES = ("pictures", "datasets", "checkpoints", "results", "command_lines")
HARMLESS = ("/dev/null", "/dev/shm/", "/proc/self/", "/dev/tty")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"), 1)
CHANGES["os.rename"] = 2
"""Events of Python's that change a file: how many of their first arguments are its name."""
BY_FOLDER = ("os.mkdir", "os.remove", "os.rmdir")
"""Events of which the last argument is an open folder's number, or -1."""
FOREIGN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
"""Events that no input may cause."""
Kind = Callable[[Any], None]


def kinds() -> dict[str, tuple[int, Kind]]:
    """Every kind of input: its share, and what makes and reads one."""
    found: dict[str, tuple[int, Kind]] = {}
    for name in MODULES:
        found |= importlib.import_module(f"fuzzing.{name}").KINDS
    return found


def kind_of(number: int, seed: int, shares: dict[str, int]) -> tuple[str, random.Random]:
    """An input's kind, and what all of it is drawn from."""
    chance = random.Random(f"{seed} {number}")
    return chance.choices([*shares], [*shares.values()])[0], chance


@dataclass
class End:
    """What became of an input: whether it was refused, its seconds, and, of a finding, what is wrong."""

    refused: bool
    seconds: float
    wrong: str = ""


class Watch:
    """Notes what is written outside of a folder, and what starts a program, loads a class or calls a network.

    Args:
        folder: in which all may be written but `VALID`.
    """

    def __init__(self, folder: Path) -> None:
        self.allowed = (f"{folder}{os.sep}", *HARMLESS)
        self.valid = f"{folder / VALID}{os.sep}"
        self.noted: list[str] = []
        self.looks = False
        sys.addaudithook(self)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look while the block runs, which fails if something was noted."""
        self.looks = True
        try:
            yield
        finally:
            self.looks, noted = False, [*dict.fromkeys(self.noted)]
            self.noted.clear()
        if noted:
            raise RuntimeError(f"did what no input may cause: {'; '.join(noted)}")

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.looks:
            return
        if event in FOREIGN:
            self.noted.append(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        paths = arguments[:1] if writes else arguments[: CHANGES.get(event, 0)]
        if event in BY_FOLDER and arguments[-1] != -1:  # within an open folder, which shutil.rmtree has told
            return
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                with contextlib.suppress(OSError, ValueError):
                    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                    whole = os.path.join(os.path.realpath(folder), name)
                    if not whole.startswith(self.allowed) or whole.startswith(self.valid):
                        self.noted.append(f"{event} of {whole}")


def one(kind: Kind, chance: random.Random, valid: Path, place: Path, watch: Watch | None = None) -> End:
    """Make and read an input in a new folder; without a watch it is left whole."""
    from fuzzing.inputs import Input

    folder = place / "working"
    folder.mkdir(parents=True)
    os.environ["SD_AANET_CACHE"] = str(place / "cache")
    made, wrong = Input(chance, valid, whole=watch is None), ""
    before, start = peak(), time.process_time()
    try:
        with contextlib.chdir(folder), contextlib.nullcontext() if watch is None else watch.looking():
            kind(made)
    except BaseException as error:
        lines = [*"".join(traceback.format_tb(error.__traceback__)).splitlines()[-SHOWN:]]
        lines += "".join(traceback.format_exception_only(error)).splitlines()[:5]  # torch tells long stories
        wrong = "\n".join(line[:500] for line in lines)
    seconds, more = time.process_time() - start, peak() - before
    shutil.rmtree(place, ignore_errors=True)
    if not wrong and more > MEMORY:
        wrong = f"took {more / GIGABYTE:.1f} GB"
    if not wrong and made.whole and (made.refused or not made.taken):
        wrong = f"is in order, but was refused: {made.said}"
    return End(not made.taken, seconds, wrong)


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Worker:
    """A process that reads inputs, one after the other."""

    def __init__(self, folder: Path, name: int, seed: int, table: dict[str, tuple[int, Kind]]) -> None:
        self.log = folder / f"{name}.log"
        self.number, self.started = -1, 0.0
        self.connection, other = multiprocessing.Pipe()
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            self.connection.close()
            try:
                _work(other, folder, self.log, name, seed, table)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        other.close()

    def give(self, number: int) -> None:
        self.number, self.started = number, time.monotonic()
        self.connection.send(number)

    def end(self) -> str:
        """Make an end of it, if it is not at one; what it died of."""
        self.connection.close()
        _, status = os.waitpid(self.process, os.WNOHANG)
        if not _:
            time.sleep(1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            _, status = os.waitpid(self.process, 0)
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        why = f"took over {SECONDS} s of the processor" if name == "SIGPROF" else f"its process died: {name}"
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        at = next((place for place, line in enumerate(said) if line.startswith(("Current thread", "Fatal"))), 0)
        return "\n".join([why, *said[at : at + SHOWN]])


def _work(
    connection: Connection, folder: Path, log: Path, name: int, seed: int, table: dict[str, tuple[int, Kind]]
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.enable(file=out)
    faulthandler.register(signal.SIGPROF, file=out, chain=True)  # where it was when its time was over
    with contextlib.suppress(OSError, ValueError, FileNotFoundError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, now + ADDRESSES))
    watch = Watch(folder)
    shares = {kind: share for kind, (share, _) in table.items()}
    while True:
        number = connection.recv()
        kind, chance = kind_of(number, seed, shares)
        os.ftruncate(out, 0)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        end = one(table[kind][1], chance, folder / VALID, folder / f"{name}-{number}", watch)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(end)


def ends(
    numbers: Sequence[int], seed: int, jobs: int, folder: Path, table: dict[str, tuple[int, Kind]]
) -> Iterator[tuple[int, End]]:
    """What became of each input, as it comes to its end."""
    left, names = list(reversed(numbers)), iter(range(10**9))
    workers: list[Worker] = []
    try:
        while left or any(worker.number >= 0 for worker in workers):
            while left and len(workers) < jobs:
                workers.append(Worker(folder, next(names), seed, table))
            for worker in workers:
                if worker.number < 0 and left:
                    worker.give(left.pop())
            ready = wait([worker.connection for worker in workers if worker.number >= 0], timeout=1)
            for worker in [*workers]:
                if worker.connection in ready:
                    try:
                        end: End = worker.connection.recv()
                    except EOFError:
                        end = End(False, 0.0, worker.end())
                elif worker.number >= 0 and time.monotonic() - worker.started > PATIENCE:
                    os.kill(worker.process, signal.SIGPROF)  # which tells where it is
                    end = End(False, PATIENCE, f"no end in {PATIENCE} s: {worker.end()}")
                else:
                    continue
                yield worker.number, end
                worker.number = -1
                if end.wrong:  # what it is in now nobody knows
                    worker.connection.close()
                    workers.remove(worker)
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process, signal.SIGKILL)
            os.waitpid(worker.process, 0)


def prepare(folder: Path, table: dict[str, tuple[int, Kind]]) -> list[str]:
    """Make the valid things, and read each kind whole: it has to be taken, and all modules are loaded then."""
    valid = folder / VALID
    valid.mkdir()
    for name in MODULES:
        module = importlib.import_module(f"fuzzing.{name}")
        if hasattr(module, "make"):
            module.make(valid)
    wrong = []
    for number, (kind, (_, call)) in enumerate(table.items()):
        end = one(call, random.Random(0), valid, folder / f"whole-{number}")
        wrong += [f"{kind}: {end.wrong}"] if end.wrong else []
    return wrong


def _state(folder: Path) -> list[tuple[str, int, int]]:
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")))
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in found if path.is_file()]


def environment(folder: Path) -> None:
    """One thread, no network, and nothing of the user's."""
    os.environ |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "COLUMNS": "200"}
    os.environ |= {
        name: str(folder / name.lower())
        for name in ("HOME", "MPLCONFIGDIR", "TORCH_HOME", "HF_HOME", "WANDB_DIR", "HYPOTHESIS_STORAGE_DIRECTORY")
    }
    os.environ |= {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    os.environ.pop("SD_AANET_MAX_PIXELS", None)
    sys.dont_write_bytecode = True
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # no thread beside those that are forked


def main() -> int:
    """Read so many inputs, print the findings and a table; 1 where there are findings."""
    parser = argparse.ArgumentParser("make fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (0)")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some of them")
    parser.add_argument("--kind", default="", help="those alone whose kind, as printed, has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary).resolve()
        environment(folder)
        table = kinds()
        shares = {kind: share for kind, (share, _) in table.items()}
        if wrong := prepare(folder, table):
            print(*wrong, sep="\n")
            return 2
        numbers = given.only or range(given.count)
        drawn = {number: kind_of(number, given.seed, shares)[0] for number in numbers}
        numbers = [number for number in numbers if given.kind in drawn[number]]
        found: dict[str, list[End]] = defaultdict(list)
        before = _state(folder / VALID)
        begun = time.monotonic()
        for number, end in ends(numbers, given.seed, given.jobs, folder, table):
            found[drawn[number]].append(end)
            if end.wrong:
                print(f"\n{drawn[number]}: --seed {given.seed} --only {number}\n{end.wrong}", flush=True)
        assert _state(folder / VALID) == before, "an input changed the valid things: what followed counts for nothing"
    wrong_ends = sum(bool(end.wrong) for of_kind in found.values() for end in of_kind)
    print(f"\n{'what':<34}{'inputs':>8}{'refused':>9}{'taken':>8}{'wrong':>7}{'slowest':>9}{'all':>8}")
    for kind, some in {kind: found[kind] for kind in table if kind in found}.items():
        print(_line(kind, some))
    print(_line("all", [end for some in found.values() for end in some]))
    print(
        f"{len(numbers)} inputs, {wrong_ends} findings, {time.monotonic() - begun:.0f} s on {given.jobs} cores "
        f"after {begun - start:.0f} s of getting ready; seed {given.seed}"
    )
    return int(wrong_ends > 0)


def _line(what: str, some: Sequence[End]) -> str:
    refused, wrong = sum(end.refused and not end.wrong for end in some), sum(bool(end.wrong) for end in some)
    seconds = [end.seconds for end in some]
    return (
        f"{what:<34}{len(some):>8}{refused:>9}{len(some) - refused - wrong:>8}{wrong:>7}"
        f"{max(seconds, default=0):>8.1f}s{sum(seconds):>7.0f}s"
    )


if __name__ == "__main__":
    sys.exit(main())
