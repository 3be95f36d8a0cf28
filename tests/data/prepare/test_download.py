"""Fetching and unpacking, from a server on this machine."""

import contextlib
import hashlib
import io
import random
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import Server, serving

from sd_aanet.data.prepare.download import ARCHIVES, download, fetch, unpack
from sd_aanet.errors import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        running.files["/x.zip"] = CONTENT
        yield running


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# Fetching


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, sized: bool) -> None:
    server.sized = sized
    path = tmp_path / "deep/er/x.zip"
    for _ in range(2):
        fetch(f"{server.url}/x.zip", path, MD5)
        assert path.read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert left(path.parent) == ["x.zip"]


def test_a_cut_transfer_goes_on_by_itself(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 1, 500_000]
    fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert [part for _, part in server.asked] == [f"bytes={start}-" for start in (0, 300_000, 300_001, 800_001)]


def test_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000, 0]
    with pytest.raises(
        DataError, match=r"^http://\S+/x\.zip cannot be fetched \(the transfer was cut off\): call again"
    ):
        fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert left(tmp_path) == ["x.zip.part"]
    assert (tmp_path / "x.zip.part").read_bytes() == CONTENT[:300_000]
    fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert server.asked[-1] == ("/x.zip", "bytes=300000-")


def test_a_server_that_knows_no_parts_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:300_000])
    fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    server.cut = [200_000] * 9  # never more than before: it ends
    with pytest.raises(DataError, match="cut off"):
        fetch(f"{server.url}/x.zip", tmp_path / "y.zip", MD5)
    assert len(server.asked) == 3


def test_all_but_the_name_was_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert left(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("part", [b"", b"other", CONTENT + b"more"])
def test_a_wrong_checksum(server: Server, tmp_path: Path, part: bytes) -> None:
    if part:
        (tmp_path / "x.zip.part").write_bytes(part)
    wrong = MD5 if part else "0" * 32
    with pytest.raises(
        DataError,
        match=rf"^http://\S+/x\.zip came with the MD5 \w+, expected {wrong}, and was removed: .*put it at .*x\.zip$",
    ):
        fetch(f"{server.url}/x.zip", tmp_path / "x.zip", wrong)
    assert left(tmp_path) == []
    if part:
        fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)


def test_a_file_put_there_by_hand_is_checked_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT)
    fetch("http://nowhere.invalid/x.zip", path, MD5)
    path.write_bytes(b"an error page")
    with pytest.raises(
        DataError, match=rf"^archive .*x\.zip has the MD5 \w+, expected {MD5}: delete it or replace it by"
    ):
        fetch("http://nowhere.invalid/x.zip", path, MD5)
    assert path.read_bytes() == b"an error page"


def test_what_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/y\.zip cannot be fetched \(Not Found\): .*put it at .*there/y\.zip$"):
        fetch(f"{server.url}/y.zip", tmp_path / "there/y.zip", MD5)
    assert left(tmp_path / "there") == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as gone:
        url = f"{gone.url}/x.zip"
    with pytest.raises(DataError, match=rf"^{url} cannot be fetched \([^\n]*refused\): call again[^\n]*x\.zip$"):
        fetch(url, tmp_path / "x.zip", MD5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device"):
        fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)


def test_bars_only_for_what_takes_long(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(f"{server.url}/x.zip", tmp_path / "x.zip", MD5)
    assert capsys.readouterr().err == ""
    server.files["/y.zip"] = bytes(2**24)
    fetch(f"{server.url}/y.zip", tmp_path / "y.zip", hashlib.md5(server.files["/y.zip"]).hexdigest())
    assert "y.zip: 100%" in (shown := capsys.readouterr().err)
    assert "Checking y.zip" in shown


def test_the_table_of_archives() -> None:
    archives = [archive for group in ARCHIVES.values() for archive in group.items()]
    assert [*ARCHIVES] == ["voc", "sbd", "coco"]
    assert len({url.rpartition("/")[2] for url, _ in archives}) == len(archives) == 5
    assert all(len(bytes.fromhex(md5)) == 16 for _, md5 in archives)


def test_downloading_is_fetching_and_unpacking(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zipped({"train/a.jpg": b"picture"})
    server.files["/a/b.zip"] = packed
    monkeypatch.setitem(ARCHIVES, "mine", {f"{server.url}/a/b.zip": hashlib.md5(packed).hexdigest()})
    for _ in range(2):
        assert download("mine", tmp_path) == tmp_path
        assert (tmp_path / "train/a.jpg").read_bytes() == b"picture"
    assert len(server.asked) == 1


# Unpacking


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], compressed: bool = True) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere"
        archive.addfile(link)
    return file.getvalue()


PACKED = {
    "x.zip": zipped,
    "x.tgz": tarred,
    "x.tar": lambda files: tarred(files, compressed=False),
}
FILES = {"a.txt": b"first", "deep/er/b.txt": CONTENT, "deep/c": b""}


@pytest.mark.parametrize("name", PACKED)
def test_files_are_unpacked_once(tmp_path: Path, name: str) -> None:
    archive, folder = tmp_path / name, tmp_path / "out"
    archive.write_bytes(PACKED[name](FILES))
    unpack(archive, folder)
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert left(folder) == sorted(["a.txt", "deep", "er", "b.txt", "c"])
    (folder / "a.txt").write_bytes(b"FIRST")  # of the right size: is not written again
    (folder / "deep/er/b.txt").write_bytes(CONTENT[:1000])
    unpack(archive, folder)
    assert (folder / "a.txt").read_bytes() == b"FIRST"
    assert (folder / "deep/er/b.txt").read_bytes() == CONTENT


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("member", ["../x", "a/../../x", "/x"])
def test_nothing_is_unpacked_outside_of_the_folder(tmp_path: Path, name: str, member: str) -> None:
    archive, folder = tmp_path / name, tmp_path / "deep/er/out"
    archive.write_bytes(PACKED[name]({member: b"evil"}))
    with contextlib.suppress(DataError):
        unpack(archive, folder)
    assert not [path for path in tmp_path.rglob("x") if folder not in path.parents]
    assert not Path("/x").exists()


@pytest.mark.parametrize("name", PACKED)
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    whole = PACKED[name](FILES)
    for content in (whole[: len(whole) * 2 // 3], b"<html>", b""):
        archive.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"^archive [^\n]*{name} cannot be unpacked into [^\n]*out \([^\n]*\): make"
        ):
            unpack(archive, tmp_path / "out")
        unpacked = tmp_path / "out/deep/er/b.txt"
        assert not unpacked.exists() or len(unpacked.read_bytes()) < len(CONTENT), "is unpacked again"


@pytest.mark.parametrize("name", PACKED)
def test_archives_with_any_damage_are_one_line(tmp_path: Path, name: str) -> None:
    archive, draws = tmp_path / name, random.Random(0)
    wholes = [PACKED[name](FILES), PACKED[name]({".": b"here"})]
    for n in range(150):
        damaged = bytearray(wholes[n % 2])
        for _ in range(3 if n > 1 else 0):
            damaged[draws.choice((draws.randrange(60), draws.randrange(len(damaged)), -draws.randrange(1, 100)))] ^= (
                draws.randrange(1, 256)
            )
        archive.write_bytes(damaged)
        line = f"archive {archive} "
        try:
            unpack(archive, tmp_path / "out")
        except DataError as error:
            line = str(error)
        assert line.startswith(f"archive {archive} ")
        assert "\n" not in line
