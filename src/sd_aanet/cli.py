"""One command, `sd-aanet`, thin: it finds what is asked for, and turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

from sd_aanet.composition import Task, complain, print_help, run_composed
from sd_aanet.errors import ConfigError, SDAANetError

COMPOSED = {
    "train": ("sd_aanet.training.run", "train on the base classes of a fold, evaluate on its novel ones"),
    "evaluate": ("sd_aanet.evaluation.run", "mIoU and FB-IoU of a checkpoint on classes it never saw"),
    "predict": ("sd_aanet.predict", "find in pictures what some labelled pictures show"),
}
"""Commands configured with Hydra: name -> module with `run(config)`, and what it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code: 0, 1 for failed checks, 2 for a user's mistake, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        sys.exit(_dispatch(argv))
    except SDAANetError as error:
        if debug:
            raise
        complain(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("sd-aanet: interrupted", file=sys.stderr)
        sys.exit(130)  # as shells do for Ctrl-C


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, tuple[Callable[[list[str]], int], str]] = {
        **{name: (partial(_composed, name), text) for name, (_, text) in COMPOSED.items()},
        "parity": (_parity, "compare the network with recorded outputs of the published one"),
        "import-published": (_import_published, "turn a published checkpoint into ours, or ours into a published one"),
    }
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: sd-aanet COMMAND [KEY=VALUE ...] [--debug]\n\nFew-shot segmentation with SD-AANet.\n")
        print("\n".join(f"  {name:<18}{text}" for name, (_, text) in commands.items()))
        print("\nsd-aanet COMMAND --help shows its settings; --debug shows tracebacks.")
        return 0
    if argv[0] not in commands:
        raise ConfigError(f"command '{argv[0]}' is unknown: choose one of {', '.join(commands)}")
    return commands[argv[0]][0](argv[1:])


def _composed(name: str, argv: list[str]) -> int:
    module, about = COMPOSED[name]
    if "-h" in argv or "--help" in argv:
        print_help(name, about, argv)
    else:
        run_composed(name, lambda: cast(Task, importlib.import_module(module).run), argv)
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parity(argv: list[str]) -> int:
    parser = _Parser("sd-aanet parity", description="Compare with recorded outputs, in float64.")
    parser.add_argument("folder", type=Path, help="holds cases.json, official_keys_*.json and one .npz a case")
    from sd_aanet.evaluation.parity import run_folder

    failed = total = 0
    for report in run_folder(parser.parse_args(argv).folder):
        print(report, flush=True)
        failed, total = failed + (not report.passed), total + 1
    print(f"{total - failed} of {total} cases hold")
    return int(failed > 0)


def _import_published(argv: list[str]) -> int:
    parser = _Parser("sd-aanet import-published", description="Published checkpoint <-> ours.")
    parser.add_argument("source", type=Path, help="the file to read")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--export", action="store_true", help="source is ours, out gets the published names")
    given = parser.parse_args(argv)
    from sd_aanet.checkpoint import export_published, import_published

    if given.export:
        export_published(given.source, given.out)
        print(f"written: {given.out}, in the published names")
    else:
        print(f"written: {given.out}, a network with {import_published(given.source, given.out)}")
    return 0
