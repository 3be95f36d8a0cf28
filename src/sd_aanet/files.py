"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from sd_aanet.errors import ConfigError, SDAANetError, of_machine

_PARTIAL = re.compile(r"\.(.+)\.(\d+)(\.[^.]+)?")
"""A name that `written_whole` gives: of the file, the process and the file's suffix."""
_new_files: list[list[Path]] = []
"""For each `results_in` that is open, what was written and had not been there."""
_folders: list[Path] = []
"""Those that `new_folder` made, for `remove_unused`."""


def config_folder() -> Path:
    """The folder of the configuration: in an installed package, or beside src/ in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def short(path: Path) -> str:
    """A path from the working folder, where it is in that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else str(path)


def real(path: str) -> str:
    """A path as it is, or, where a link leads elsewhere, which another run may turn, the path of what it leads to."""
    resolved = Path(path).resolve()
    return path if resolved == Path(path).absolute() else short(resolved)


def new_folder(name: str) -> str:
    """Make a folder that was not there before, whoever else does so at the same time.

    Args:
        name: of the folder, taken as it is or with _2, _3, ... behind it.

    Returns:
        The name that it has now; that of the working folder where nothing can be made.
    """
    for number in count(1):
        path = Path(name if number == 1 else f"{name}_{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            continue
        except (OSError, ValueError) as error:  # the latter of a name that no file can have
            if getattr(error, "errno", 0) in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):  # ENOENT: in /proc
                break  # which does no harm where results go elsewhere
            remove_empty(path.parent.absolute())
            raise
        _folders.append(path)
        return str(path)
    return "."


def remove_unused() -> None:
    """Remove what `new_folder` made and nobody wrote into."""
    while _folders:
        remove_empty(_folders.pop().absolute())


def remove_empty(folder: Path) -> None:
    """Remove a folder of the working folder if nothing is in it, and those above it that then are empty."""
    while Path.cwd() in folder.parents:
        try:
            folder.rmdir()
        except (FileNotFoundError, ValueError):
            pass
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # not empty, or just taken by another process
                return
        folder = folder.parent


def remove_partial(folder: Path, seconds: float = 0) -> None:
    """Remove what killed processes left half written in a folder, and in those in it.

    Args:
        folder: where there is one.
        seconds: for how long nobody wrote into the file: processes of other machines are seen by this alone.
    """
    for path in folder.rglob(".*"):
        parts = _PARTIAL.fullmatch(path.name)
        if parts and parts[1].endswith(parts[3] or "") and not is_alive(int(parts[2])):
            with suppress(OSError):
                if path.stat().st_mtime <= time.time() - seconds:
                    path.unlink()


def is_alive(process: int) -> bool:
    """Whether a process of this machine has that number."""
    if os.name != "posix":  # where asking would stop it
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


@contextmanager
def written_whole(path: Path, synced: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well: no reader ever sees half a file.

    Args:
        path: the file; its folder is made where it does not exist.
        synced: it is on the disk before it has its name, so that a machine that stops does no harm either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, is_new = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}"), not path.exists()
    try:
        yield temporary
        if synced:
            _sync(temporary)
        temporary.replace(path)
        if synced:
            with suppress(OSError):  # of a folder not everywhere
                _sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk tells none
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if is_new:
        for files in _new_files:
            files.append(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def claimed(folder: Path) -> Iterator[None]:
    """Work in a folder, made where there is none, in which no other process works; it goes again if it stays empty.

    Raises:
        ConfigError: the folder cannot be made or written, or another process works in it.
    """
    above = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder.absolute() / ".lock", is_singleton=True)  # which the same process may take again
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"out='{short(folder)}' is in use, another process works there: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        _remove_empty(above)
        raise ConfigError(f"out='{folder}' cannot be written ({error.strerror}): choose another folder") from None
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            remove_partial(folder)
        yield
    finally:
        if outermost:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        _remove_empty(above)


def _remove_empty(folders: Collection[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it
        for folder in folders:
            folder.rmdir()


@contextmanager
def results_in(
    out: Path, keep: Callable[[BaseException], bool] = lambda _: False, also: Collection[str] = ()
) -> Iterator[None]:
    """A folder for what the block writes; if that ends with a user's mistake or is stopped, what is new in it goes.

    Args:
        out: claimed, see there.
        keep: asked then, with what ended it, whether what was written is worth keeping.
        also: names in `out` that are written by others than `written_whole`.

    Raises:
        ConfigError: the folder cannot be made or written, or is another process's.
        SDAANetError: the machine refused to write something, a full disk for example.
    """
    with claimed(out):
        others = [out / name for name in also if not (out / name).exists()]
        files: list[Path] = []
        _new_files.append(files)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError):
                error.filename = error.filename or str(out)
            mistake = error if isinstance(error, SDAANetError | KeyboardInterrupt) else of_machine(error)
            if mistake is not None and not keep(error):
                for path in (*files, *others):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            if mistake is None or mistake is error:
                raise
            raise mistake from error
        finally:
            _new_files.pop()
