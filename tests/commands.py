"""Running commands in the process of the tests, on the smallest of settings."""

import contextlib
import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sd_aanet.cli import main

DATA = ("strategy=cpu", "dataset.source.size=65", "dataset.source.images=100", "min_object_pixels=100", "seeds=1")
TINY = (
    *(*DATA, "model.channels=8", "precision=32-true"),
    *("batch_size=2", "steps=4", "val_every=2", "val_episodes=4", "test_episodes=6", "test_batch_size=4"),
)
"""A training of about a second."""
EVALUATION = (*DATA, "episodes=6", "batch_size=4")


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: object
    out: str
    err: str


def run(*arguments: object) -> Done:
    """`sd-aanet` with these arguments in the working folder; raises only what is no exit."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def ran(*arguments: object) -> Done:
    """The same, which has to end well and without a warning."""
    done = run(*arguments)
    assert done.code == 0, done.err
    assert done.err == ""
    return done


def run_process(*arguments: object, module: str = "sd_aanet", environment: dict[str, str] | None = None) -> Done:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, *words: str) -> None:
    """Exactly one line, exit code 2, and no file in the working folder."""
    assert done.code == 2, done
    assert done.err.startswith("sd-aanet: ")
    assert done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """The block adds nothing to the working folder."""
    before = {*Path().rglob("*")}
    yield
    assert {*Path().rglob("*")} - before == set()


def episode_rows(folder: Path, resolution: str = "original") -> list[list[int]]:
    """The rows of episodes.csv as numbers: seed, index, class id, and the five counts."""
    counts = ("intersection", "union", "background_intersection", "background_union", "object")
    with (folder / "episodes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["resolution"] == resolution]
    return [[int(row[name]) for name in ("seed", "index", "class_id", *counts)] for row in rows]


def metrics(folder: Path, version: int = 0) -> list[dict[str, float]]:
    """The rows of metrics.csv without their empty cells."""
    with (folder / f"logs/version_{version}/metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
