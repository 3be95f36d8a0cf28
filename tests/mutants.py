"""`make mutants`: small changes to the code, one at a time, and whether the tests of its folder notice each.

The changes are those of cosmic-ray (an operator, a number, a comparison, a decorator, a loop that is left out, ...);
places are drawn from a seed, and at each place one change. A change that no run can tell from the original (of an
annotation or a docstring) is not drawn. Each is tried in a copy of the project, in a process forked from one that has
imported everything but the project: a fresh one would take longer to import torch than most changes to be noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = Path("src/sd_aanet")
TESTS = {
    "models": ("tests/models",),
    "evaluation": ("tests/evaluation", "tests/test_evaluate.py"),
    "data/episodes.py": ("tests/data/test_episodes.py", "tests/data/test_several_classes.py"),
    "data/transforms.py": ("tests/data/test_transforms.py",),
    "segmenting/segmenter.py": ("tests/segmenting/test_segmenter.py", "tests/segmenting/test_things.py"),
    "segmenting/memory.py": ("tests/segmenting/test_segmenter.py", "tests/segmenting/test_things.py"),
}
"""Of the package: what is changed -> the tests that have to notice."""
PRELOADED = (
    "albumentations",
    "cv2",
    "hydra",
    "hypothesis",
    "pytest",
    "pytorch_lightning",
    "scipy.stats",
    "torchmetrics",
)
ENDLESS = 600
"""Seconds after which a change counts as noticed: somebody would wait for an answer."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: of the file, from the project's root.
        line: of the change.
        operator: cosmic-ray's name for it.
        occurrence: which of the places of this operator in the file.
    """

    path: Path
    line: int
    operator: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(SRC)}:{self.line} {self.operator.removeprefix('core/')} {self.occurrence}"

    def changed(self) -> str:
        """The file's text with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        text = mutate_code(
            (ROOT / self.path).read_text(encoding="utf-8"), get_operator(self.operator)(), self.occurrence
        )
        assert text is not None
        return text

    def difference(self) -> str:
        """The lines that it changes."""
        before, after = (ROOT / self.path).read_text(encoding="utf-8").splitlines(), self.changed().splitlines()
        lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[3:]
        return "\n".join(f"    {line}" for line in lines if not line.startswith("@@"))


def places() -> dict[tuple[Path, tuple[int, int]], list[Mutant]]:
    """Every change that a run could notice, by file and position."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[Path, tuple[int, int]], list[Mutant]] = {}
    for part in TESTS:
        whole = ROOT / SRC / part
        for path in sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]:
            nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
            for name in sorted(operator_names()):
                kind = get_operator(name)
                if kind.arguments():  # to be told what to put in
                    continue
                operator = kind()
                starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
                for occurrence, start in enumerate(starts):
                    mutant = Mutant(path.relative_to(ROOT), start[0], name, occurrence)
                    found.setdefault((mutant.path, start), []).append(mutant)
    return found


def drawn(count: int, seed: int) -> list[Mutant]:
    """So many changes at different places, each with an effect."""
    chance = random.Random(seed)
    groups = list(places().values())
    chance.shuffle(groups)
    chosen: list[Mutant] = []
    for group in groups:
        if len(chosen) == count:
            break
        mutant = chance.choice(group)
        with contextlib.suppress(SyntaxError, AttributeError):  # the latter where cosmic-ray meets `except a.B:`
            if _meaning(mutant.changed()) != _meaning((ROOT / mutant.path).read_text(encoding="utf-8")):
                chosen.append(mutant)
    return chosen


class _Bare(ast.NodeTransformer):
    """Takes away what a run does not look at: annotations and the docstrings."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if isinstance(node.value, ast.Constant):
            node.value.value = None
        self.generic_visit(node)
        return node


def _meaning(text: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(text)))


def tests_of(path: Path) -> list[str]:
    """The tests of a file's part of the package, those named after the file first: most changes end there."""
    part = next(part for part in TESTS if path.is_relative_to(SRC / part))
    own = [str(found.relative_to(ROOT)) for found in sorted((ROOT / "tests").rglob(f"test_{path.stem}.py"))]
    return [*(one for one in own if any(Path(one).is_relative_to(tests) for tests in TESTS[part])), *TESTS[part]]


@dataclass
class Place:
    """A copy of the project in which one change at a time is tried."""

    folder: Path
    mutant: Mutant | None = None
    process: int = 0
    started: float = 0.0

    def start(self, mutant: Mutant) -> None:
        """Make the change, and run the tests in a process of its own."""
        self.mutant, self.started = mutant, time.monotonic()
        (self.folder / mutant.path).write_text(mutant.changed(), encoding="utf-8")
        self.process = run_tests(self.folder, tests_of(mutant.path))

    def end(self) -> Mutant:
        """Undo the change."""
        assert self.mutant is not None
        shutil.copyfile(ROOT / self.mutant.path, self.folder / self.mutant.path)
        with contextlib.suppress(ProcessLookupError):  # what a test has started
            os.killpg(self.process, signal.SIGKILL)
        mutant, self.mutant = self.mutant, None
        return mutant


def run_tests(folder: Path, tests: list[str]) -> int:
    """Fork a process that runs tests in a copy of the project, and leaves with pytest's code; its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder / "src")
        sys.path[:0] = [str(folder / "src"), str(folder / "tests")]
        out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        import pytest

        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
        code = int(pytest.main([*options, f"--basetemp={folder / 'temporary'}", *tests]))
    finally:
        os._exit(code)


def tried(mutants: list[Mutant], folders: list[Path]) -> Iterator[tuple[Mutant, str]]:
    """Each change, as it ends, and what became of it: "noticed", "endless", or "SURVIVED"."""
    free, busy, waiting = [Place(folder) for folder in folders], {}, list(reversed(mutants))
    while waiting or busy:
        while waiting and free:
            place = free.pop()
            place.start(waiting.pop())
            busy[place.process] = place
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            place = busy.pop(process)
            yield place.end(), "noticed" if os.waitstatus_to_exitcode(status) else "SURVIVED"
            free.append(place)
            continue
        for late in [one for one in busy.values() if time.monotonic() - one.started > ENDLESS]:
            os.killpg(late.process, signal.SIGKILL)  # and so not 0
        time.sleep(0.05)


def copy_of_project(folder: Path) -> Path:
    """The files that tests need, without what the copied checkout has beside it."""
    for name in ("src", "tests", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def main() -> int:
    """Try a sample, print what became of each change; 1 where too many are not noticed."""
    parser = argparse.ArgumentParser("make mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="changes to try (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--only", default="", help="those alone whose name, as printed, has this in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="changes at a time (one a core)")
    parser.add_argument("--least", type=float, default=0.95, help="the share that has to be noticed (0.95)")
    given = parser.parse_args()
    mutants = [mutant for mutant in drawn(given.count, given.seed) if given.only in str(mutant)]
    sys.dont_write_bytecode = True  # two changes within a second would share it
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    for name in PRELOADED:
        importlib.import_module(name)
    survived = 0
    with tempfile.TemporaryDirectory() as temporary:
        folders = [copy_of_project(Path(temporary, str(job), "project")) for job in range(given.jobs)]
        for tests in TESTS.values():
            _, status = os.waitpid(run_tests(folders[0], list(tests)), 0)
            if status:
                print((folders[0] / "output.txt").read_text(), f"{' '.join(tests)} fail without any change", sep="\n")
                return 2
        for number, (mutant, became) in enumerate(tried(mutants, folders), start=1):
            survived += became == "SURVIVED"
            print(f"{number:>4} {became} {mutant}" + (f"\n{mutant.difference()}" * (became == "SURVIVED")), flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} noticed")
    return int(len(mutants) - survived < given.least * len(mutants))


if __name__ == "__main__":
    sys.exit(main())
