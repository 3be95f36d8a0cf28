"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sd_aanet.errors import ConfigError, SDAANetError


def short(path: Path) -> str:
    """A path from the working folder, where it is in that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else str(path)


def remove_empty(folder: Path) -> None:
    """Remove a folder of the working folder if nothing is in it, and those above it that then are empty."""
    with suppress(OSError):  # not empty, or just taken by another process
        while Path.cwd() in folder.parents:
            if folder.exists():
                folder.rmdir()
            folder = folder.parent


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_out(path: Path) -> Iterator[Path]:
    """`written_whole` for the one file that a command was asked for.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        with written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise ConfigError(f"out='{path}' cannot be written ({error.strerror}): choose another file") from None


@contextmanager
def results_in(out: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """A folder for what the block writes; if that ends with a user's mistake, what is new in it goes again.

    Args:
        out: made where it does not exist.
        keep: asked then whether what was written is worth keeping.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = set(out.iterdir())
        probe = out / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"out='{out}' cannot be written ({error.strerror}): choose another folder") from None
    try:
        yield
    except SDAANetError:
        if not keep():
            for path in set(out.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            with suppress(OSError):  # it was there before, and is not empty
                out.rmdir()
        raise
