"""Commands in processes of their own that can be killed: started from one that has imported everything already."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from commands import Done
from sd_aanet.cli import main
from sd_aanet.training.module import FewShotModule

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["processes", "sd_aanet.training.run", "sd_aanet.evaluation.run", "sd_aanet.sweep.plan"])
PATIENCE = 240


@dataclass(frozen=True)
class Running:
    """A command that runs in a session of its own, and where it prints to."""

    process: BaseProcess
    out: Path
    err: Path

    def signal(self, number: int, group: bool = False) -> None:
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def done(self) -> Done:
        """Wait for its end."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.signal(signal.SIGKILL, group=True)
            raise TimeoutError(self.out.read_text() + self.err.read_text())
        return Done(self.process.exitcode, self.out.read_text(), self.err.read_text())


def start(
    *arguments: object, prepare: Callable[[], object] | None = None, after: Callable[[], object] | None = None
) -> Running:
    """Start `sd-aanet` with these arguments in the working folder.

    Args:
        arguments: of the command.
        prepare: called in the process before; can be pickled.
        after: the same at its end.
    """
    number = len(list(Path().glob(".stdout*")))
    out, err = (Path(f".{name}{number}").absolute() for name in ("stdout", "stderr"))
    for path in (out, err):
        path.touch()
    given = ([str(argument) for argument in arguments], str(Path.cwd()), out, err, prepare, after)
    process = CONTEXT.Process(target=_command, args=given)
    process.start()
    return Running(process, out, err)


def _command(
    arguments: list[str],
    folder: str,
    out: Path,
    err: Path,
    prepare: Callable[[], object] | None,
    after: Callable[[], object] | None,
) -> None:
    os.setsid()
    os.chdir(folder)
    torch.set_num_threads(1)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    if prepare is not None:
        prepare()
    try:
        main(arguments)
    finally:
        if after is not None:
            after()
        if "joblib.externals.loky" in sys.modules:  # whose idle processes only the end of an interpreter ends
            sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown()


# What `prepare` may be


def signal_in_step(step: int, number: int = signal.SIGKILL, group: bool = False) -> None:
    """Send a signal to oneself, or to the whole group, in the middle of a training's step."""
    original = FewShotModule.training_step

    def dying(self: FewShotModule, *batch: Any) -> Any:
        loss = original(self, *batch)
        if self.trainer.global_step == step:
            (os.killpg if group else os.kill)(os.getpid(), number)
        return loss

    FewShotModule.training_step = dying  # type: ignore[method-assign]


def signal_in_validation(step: int, number: int = signal.SIGKILL, group: bool = False) -> None:
    """The same in the second batch of the validation after a step."""
    original = FewShotModule.validation_step

    def dying(self: FewShotModule, batch: Any, index: int) -> None:
        original(self, batch, index)
        if self.trainer.global_step == step and index == 1:
            (os.killpg if group else os.kill)(os.getpid(), number)

    FewShotModule.validation_step = dying  # type: ignore[method-assign]


def mount(folder: str, *options: str) -> None:
    """Give a folder a file system of its own, which other processes do not see and which ends with this one."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    Path(folder).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True)
    if "ro" in options:
        os.chdir(folder)


def kill_in_checkpoint(name: str, number: int, share: float = 0.5) -> None:
    """Die in the `number`-th writing of a checkpoint, of any where the name is "", with a share of it in the file."""
    original, seen = torch.save, [0]

    def dying(content: Any, file: Any) -> None:
        if not str(file.name).endswith(f"{name}.{os.getpid()}.ckpt"):
            return original(content, file)
        seen[0] += 1
        original(content, file)
        if seen[0] == number:
            file.flush()
            file.truncate(int(file.tell() * share))
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    torch.save = dying
