"""Files that are whole, folders that are one run's, and what is left of killed processes."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from sd_aanet import files
from sd_aanet.errors import ConfigError, SDAANetError
from sd_aanet.files import claimed, new_folder, remove_partial, results_in, written_whole

FORK = multiprocessing.get_context("fork")


def write(path: Path, text: str) -> None:
    with written_whole(path, synced=True) as temporary:
        temporary.write_text(text)


def half(path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: Path = Path()) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_that_cannot_be_finished_leaves_the_one_of_before() -> None:
    write(Path("a.txt"), "before")
    with pytest.raises(OSError, match="No space") as raised:
        half(Path("a.txt"))
    assert raised.value.filename == "a.txt", "a full disk does not say which file"
    assert names() == {"a.txt"}
    assert Path("a.txt").read_text() == "before"


# Folders


def _take(name: str, taken: Any) -> None:
    taken.put(new_folder(name))


def test_runs_that_start_at_once_have_folders_of_their_own() -> None:
    taken = FORK.Queue()
    processes = [FORK.Process(target=_take, args=("runs/now", taken)) for _ in range(8)]
    for process in processes:
        process.start()
    found = sorted(taken.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["runs/now", *(f"runs/now_{number}" for number in range(2, 9))]
    assert names(Path("runs")) == {Path(name).name for name in found}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here in which nobody can make one")
def test_where_no_folder_can_be_made_the_working_folder_stands_for_it() -> None:
    """Which does no harm where results go elsewhere."""
    assert new_folder("/proc/runs/now") == "."


def _hold(folder: Path, ready: Any, end: Any) -> None:
    with claimed(folder):
        ready.set()
        end.wait(30)


def test_a_folder_is_one_processs() -> None:
    ready, end = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_hold, args=(Path("a/b"), ready, end))
    process.start()
    assert ready.wait(30)
    with pytest.raises(ConfigError, match="out='a/b' is in use"), claimed(Path("a/b")):
        pass
    process.kill()
    process.join()
    assert names() == {"a", "a/b", "a/b/.lock"}
    with claimed(Path("a/b")), claimed(Path("a/b")):
        Path("a/b/result").touch()
    assert names() == {"a", "a/b", "a/b/result"}


def test_folders_that_stay_empty_go_again_but_not_those_of_others() -> None:
    Path("mine").mkdir()
    with claimed(Path("mine/a/b")):
        pass
    assert names() == {"mine"}
    with claimed(Path("mine")):
        pass
    assert names() == {"mine"}


def fails(out: Path, error: BaseException) -> None:
    with results_in(out, also=("logs",)):
        write(out / "old.txt", "now")
        write(out / "new.txt", "now")
        (out / "logs/version_0").mkdir(parents=True)
        (out / "notes.md").touch()  # of somebody else
        (out / "b").mkdir()
        (out / "b/result.json").touch()
        raise error


@pytest.mark.parametrize("error", [SDAANetError("mistake"), KeyboardInterrupt(), OSError(28, "No space left", "x")])
def test_what_fails_takes_only_its_own_files_along(error: BaseException) -> None:
    out = Path("out")
    write(out / "old.txt", "before")
    with pytest.raises((SDAANetError, KeyboardInterrupt)):
        fails(out, error)
    assert names(out) == {"old.txt", "notes.md", "b", "b/result.json"}


def test_what_a_defect_of_ours_leaves_can_be_looked_at() -> None:
    with pytest.raises(ZeroDivisionError):
        fails(Path("out"), ZeroDivisionError())
    assert {"new.txt", "logs/version_0"} <= names(Path("out"))


def test_what_is_worth_keeping_stays() -> None:
    with pytest.raises(KeyboardInterrupt), results_in(Path("out"), keep=lambda _: True):  # noqa: PT012
        write(Path("out/new.txt"), "now")
        raise KeyboardInterrupt
    assert names() == {"out", "out/new.txt"}


def test_a_full_disk_is_one_line() -> None:
    line = r"'out/a.txt': no space left on device; make room"
    with pytest.raises(SDAANetError, match=line), results_in(Path("out")):
        half(Path("out/a.txt"))
    assert names() == set()


# What is left of killed processes


def test_half_written_files_of_dead_processes_go() -> None:
    dead = FORK.Process(target=os.getpid)
    dead.start()
    dead.join()
    Path("checkpoints").mkdir()
    left = [f".episodes.png.{dead.pid}.png", f"checkpoints/.last.ckpt.{dead.pid}.ckpt", f".list.{dead.pid}"]
    stays = [f".a.png.{os.getpid()}.png", ".hidden", f".a.png.{dead.pid}.jpg", f"a.png.{dead.pid}.png"]
    for name in (*left, *stays):
        Path(name).touch()
    remove_partial(Path(), seconds=60)
    assert names() == {"checkpoints", *left, *stays}, "another machine's process may be writing it"
    with claimed(Path()):
        pass
    assert names() == {"checkpoints", *stays}


def test_the_configuration_is_found_in_the_package_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sd_aanet"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert files.config_folder() == package / "conf"
