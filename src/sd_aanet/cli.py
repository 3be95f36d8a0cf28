"""One command, `sd-aanet`, thin: it finds what is asked for, and turns a user's mistake into one line."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import cast

from sd_aanet.arguments import in_quotes
from sd_aanet.composition import Task, print_help, run_composed
from sd_aanet.errors import ConfigError, SDAANetError, of_machine
from sd_aanet.signals import Stopped, raising

COMPOSED = {
    "train": ("sd_aanet.training.run", "train on the base classes of a fold, evaluate on its novel ones"),
    "evaluate": ("sd_aanet.evaluation.run", "mIoU and FB-IoU of a checkpoint on classes it never saw"),
    "check": ("sd_aanet.data.check", "read a whole data set, say what is in it and what is wrong with it"),
    "episodes": ("sd_aanet.evaluation.episodes", "write the list of episodes of an evaluation"),
    "predict": ("sd_aanet.segmenting.predict", "find in pictures what some labelled pictures show"),
    "label": ("sd_aanet.segmenting.label", "propose masks to be corrected by hand, and learn from corrected ones"),
    "export": ("sd_aanet.export", "write a model as graphs, for ONNX Runtime or torch.export"),
}
"""Commands configured with Hydra: name -> module with `run(config)`, and what it does."""
PLAIN = {
    "prepare": ("sd_aanet.data.prepare", "build a benchmark's folder from its archives"),
    "compare": ("sd_aanet.report.compare", "the difference of two results over the same episodes"),
    "report": ("sd_aanet.report", "tables, plots and a page of a sweep's results"),
    "parity": ("sd_aanet.models.sd_aanet.parity", "compare the network with recorded outputs of the published one"),
    "import-published": (
        "sd_aanet.models.sd_aanet.convert",
        "turn a published checkpoint into ours, or ours into a published one",
    ),
}
"""Commands with arguments of their own: name -> module with `main(argv)`, which returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its code: 0, 1 for what failed, 2 for a user's mistake, 128 + n for signal n."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, and a notebook's backend may not be installed here
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        with raising():
            sys.exit(_dispatch(argv))
    except BrokenPipeError:  # whoever read what is printed does so no more, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try again at its end
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        mistake = error if isinstance(error, SDAANetError) else of_machine(error)
        if debug or mistake is None:
            raise
        print(f"sd-aanet: {' '.join(str(mistake).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of the processes of ddp one says it
            print(f"sd-aanet: {'interrupted' if number == signal.SIGINT else 'terminated'}", file=sys.stderr)
        sys.exit(128 + number)  # as shells do


def _dispatch(argv: list[str]) -> int:
    commands = COMPOSED | PLAIN
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: sd-aanet COMMAND [KEY=VALUE ...] [--debug]\n\nFew-shot segmentation with SD-AANet.\n")
        print("\n".join(f"  {name:<18}{text}" for name, (_, text) in commands.items()))
        print("\nsd-aanet COMMAND --help shows its settings; --debug shows tracebacks.")
        return 0
    name, *rest = argv
    if name not in commands:
        raise ConfigError(f"command '{name}' is unknown: choose one of {', '.join(commands)}")
    if name in COMPOSED:
        return _composed(name, rest)
    return cast(int, importlib.import_module(PLAIN[name][0]).main(rest))


def _composed(name: str, argv: list[str]) -> int:
    module, about = COMPOSED[name]
    if "-h" in argv or "--help" in argv:
        print_help(name, about, argv)
        return 0
    return run_composed(name, lambda: cast(Task, importlib.import_module(module).run), _with_out(argv))


def _with_out(argv: list[str]) -> list[str]:
    """`--out PATH`, which the plain commands take, as the setting `out=PATH` that it is here."""
    settings: list[str] = []
    for argument in argv:
        if settings and settings[-1] == "--out":
            settings[-1] = f"out={in_quotes(argument)}"
        elif argument.startswith("--out="):
            settings.append(f"out={in_quotes(argument.removeprefix('--out='))}")
        else:
            settings.append(argument)
    return settings
