"""Disks that are full, cannot be written, or are another one than that of temporary files."""

import functools
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands import DATA, EVALUATION, TINY, Done, ran, run
from processes import kill_in_checkpoint, mount, start

mounts = pytest.mark.skipif(
    sys.platform != "linux" or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode,
    reason="mounting needs Linux and root",
)
SIX = (*TINY, "steps=6", "val_every=3", "test_episodes=0", "workers=0")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than that of the tests and of temporary files."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev in (tmp_path.stat().st_dev, Path(tempfile.gettempdir()).stat().st_dev):
        pytest.skip("no second file system here")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


def step(folder: Path, name: str = "last") -> int:
    return int(torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["global_step"])


def one_line(done: Done, *words: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("sd-aanet: ")
    assert done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err


def test_a_checkpoint_on_another_file_system_is_killed_while_it_is_written(memory: Path) -> None:
    """Lightning's own would first be in $TMPDIR, then be copied over the good one."""
    for share in (0.1, 0.9):
        out = memory / f"run{share}"
        die = functools.partial(kill_in_checkpoint, "last.ckpt", 2, share)
        assert start("train", *SIX, f"out={out}", prepare=die).done().code == -signal.SIGKILL
        assert step(out) == 3
    ran("train", f"resume={out}")
    assert step(out) == 6


# Full


full = functools.partial(mount, "small")
"""With the size, as in "size=1m"."""


@mounts
def test_a_disk_that_fills_up_during_a_training(trained: tuple[Path, Done]) -> None:
    size = (trained[0] / "checkpoints/last.ckpt").stat().st_size
    keep = functools.partial(shutil.copytree, "small/run", "kept")
    prepare = functools.partial(full, f"size={2 * size + size // 2}")
    done = start("train", *SIX, "out=small/run", prepare=prepare, after=keep).done()
    one_line(done, "no space left on device; make room")
    assert (step(Path("kept"), "best"), step(Path("kept"))) == (3, 3)
    assert {path.name for path in Path("kept/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@mounts
@pytest.mark.parametrize(
    "command",
    ["evaluate", "check", "train", "train logger=wandb", "train -m", "evaluate cache_dir=small/cache out=e"],
)
def test_a_full_disk(command: str, trained: tuple[Path, Done]) -> None:
    name, *more = command.split()
    given = {"evaluate": (*EVALUATION, f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}"), "train": SIX}
    out = () if more and more[-1].startswith("out=") else ("out=small/out",)
    kept = functools.partial(shutil.copytree, "small", "kept", ignore_dangling_symlinks=True)
    prepare = functools.partial(full, "size=24k")
    done = start(name, *more, *given.get(name, DATA[1:4]), *out, prepare=prepare, after=kept).done()
    if "logger=wandb" in more:  # which has lines of its own to say
        done = Done(done.code, done.out, "".join(done.err.splitlines(keepends=True)[-1:]))
    one_line(done, "small/", "o space left on device")
    assert not list(Path("kept").rglob(".*")), "nothing half written"
    assert not Path("e").exists()


# Not to be written


READ_ONLY = {
    "evaluate": (*EVALUATION, "workers=0"),
    "check": DATA[1:4],
    "train": (*SIX, "steps=1", "val_every=1"),
}


@mounts
@pytest.mark.parametrize("command", READ_ONLY)
def test_a_working_folder_that_cannot_be_written(command: str, trained: tuple[Path, Done], tmp_path: Path) -> None:
    more = (f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}",) if command == "evaluate" else ()
    read_only = functools.partial(mount, "here", "size=1m", "ro")
    done = start(command, *READ_ONLY[command], *more, f"out={tmp_path / 'out'}", prepare=read_only).done()
    assert done.code == 0, done
    assert any((tmp_path / "out").iterdir())
    done = start(command, *READ_ONLY[command], *more, prepare=read_only).done()
    one_line(done, "out=", "cannot be written (Read-only file system): choose another folder")


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_limits_of_the_process_are_one_line() -> None:
    import resource

    small_files = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))
    done = start("evaluate", *EVALUATION, "checkpoint=null", "model=prototype", "out=e", prepare=small_files).done()
    one_line(done, "'e/episodes.png': file too large; raise the limit (ulimit -f)")
    assert not Path("e").exists()


def test_a_cache_dir_that_can_be_no_folder_is_one_line() -> None:
    Path("file").touch()
    done = run("evaluate", *EVALUATION, "checkpoint=null", "model=prototype", "cache_dir=file/cache", "out=e")
    one_line(done, "cache_dir='file/cache' can be no folder (Not a directory): choose another one")
    assert not Path("e").exists()
