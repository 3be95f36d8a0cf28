"""The index: made once, made anew when it has to be, the same from any number of processes."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.fake_folder import make_folder, make_json
from data.fake_voc import make_voc, voc_pairs
from data.fakes import write_mask
from sd_aanet.data import reading
from sd_aanet.data.sources.folder import Folder
from sd_aanet.data.sources.index import IndexedSource
from sd_aanet.data.sources.labelled import LabelMapSource
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.errors import DataError

Counted = Callable[[IndexedSource], int]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD_AANET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "voc", images=1)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """How many labels a source's `pixels` reads."""
    calls: list[int] = []
    count = LabelMapSource.count
    monkeypatch.setattr(LabelMapSource, "count", lambda self, i: (calls.append(i), count(self, i))[1])

    def read(source: IndexedSource) -> int:
        calls.clear()
        source.pixels()
        return len(calls)

    return read


def test_an_index_is_made_once_for_each_split(root: Path, read: Counted) -> None:
    first = Pascal5i(root, "val").pixels()
    assert first.dtype == np.int64
    assert first.shape == (20, 20)
    assert read(Pascal5i(root, "val")) == 0
    assert read(Pascal5i(root, "train")) == 20
    assert read(Pascal5i(root, "train")) == 0
    assert np.array_equal(Pascal5i(root, "val").pixels(), first)


def test_a_changed_mask_makes_it_anew(root: Path, read: Counted) -> None:
    assert read(Pascal5i(root, "val")) == 20
    label = np.zeros((72, 96), np.uint8)
    label[:5, :5] = 7
    write_mask(voc_pairs(root, "val")[0][1], label)
    assert read(Pascal5i(root, "val")) == 20
    assert Pascal5i(root, "val").pixels()[0].tolist() == [25 * (c == 7) for c in range(1, 21)]


def test_a_mask_of_the_same_size_and_another_time_makes_it_anew(root: Path, read: Counted) -> None:
    read(Pascal5i(root, "val"))
    mask = voc_pairs(root, "val")[0][1]
    os.utime(mask, ns=(0, mask.stat().st_mtime_ns + 1))
    assert read(Pascal5i(root, "val")) == 20


def test_a_mask_of_the_same_size_and_time_makes_it_anew(root: Path, read: Counted) -> None:
    read(Pascal5i(root, "val"))
    mask = voc_pairs(root, "val")[0][1]
    state = mask.stat()
    mask.write_bytes(mask.read_bytes())
    os.utime(mask, ns=(state.st_atime_ns, state.st_mtime_ns))  # as what is unpacked from a second archive
    assert read(Pascal5i(root, "val")) == 20


def test_another_list_makes_it_anew(root: Path, read: Counted) -> None:
    read(Pascal5i(root, "val"))
    names = root / "ImageSets/Segmentation/val.txt"
    lines = names.read_text().splitlines()
    names.write_text("\n".join(lines[1:]))
    assert read(Pascal5i(root, "val")) == 19
    names.write_text("\n".join(lines))
    assert read(Pascal5i(root, "val")) == 20


def test_a_file_that_is_added_makes_it_anew(tmp_path: Path, read: Counted) -> None:
    root = make_folder(tmp_path / "own", images=2, lists=False)
    count = read(Folder(root, "train"))
    source = next(path for path in root.glob("images/*.jpg"))
    for number in range(8):  # their names decide on which side they are
        source.with_name(f"new_{number}.jpg").write_bytes(source.read_bytes())
        mask = root / f"masks/{source.stem}.png"
        mask.with_name(f"new_{number}.png").write_bytes(mask.read_bytes())
    assert read(Folder(root, "train")) == len(Folder(root, "train")) > count
    assert read(Folder(root, "train")) == 0


def test_other_classes_make_it_anew(tmp_path: Path, read: Counted) -> None:
    root = make_folder(tmp_path / "own")
    read(Folder(root, "val"))
    (root / "classes.txt").write_text("cat\ndog\ncup\nfox\nyak\n")
    assert read(Folder(root, "val")) == 12
    assert Folder(root, "val").pixels().shape == (12, 5)


def test_data_sets_of_one_name_in_two_folders_keep_their_own(tmp_path: Path, read: Counted) -> None:
    roots = [make_voc(tmp_path / name, images=1) for name in ("one", "two")]
    write_mask(voc_pairs(roots[1], "val")[0][1], np.full((72, 96), 20, np.uint8))
    one, two = (Pascal5i(root, "val").pixels() for root in roots)
    assert not np.array_equal(one, two)
    assert [read(Pascal5i(root, "val")) for root in roots] == [0, 0]
    assert np.array_equal(Pascal5i(roots[0], "val").pixels(), one)


def test_a_folder_is_the_same_by_any_path(root: Path, read: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    read(Pascal5i(root, "val"))
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    assert read(Pascal5i(root, "val")) == 0
    for path in ("voc", "link"):
        assert read(Pascal5i(path, "val")) == 0, path


def test_a_damaged_index_is_made_anew(root: Path, cache: Path, read: Counted) -> None:
    expected = Pascal5i(root, "val").pixels()
    (path,) = cache.glob("index/*")
    whole = path.read_bytes()
    for content in (b"", b"no index", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert read(Pascal5i(root, "val")) == 20
        assert np.array_equal(Pascal5i(root, "val").pixels(), expected)
        assert read(Pascal5i(root, "val")) == 0


def test_any_damage_is_found(root: Path, cache: Path, read: Counted) -> None:
    expected = Pascal5i(root, "val").pixels()
    (path,) = cache.glob("index/*")
    whole = path.read_bytes()
    draws = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] ^= draws.randrange(1, 256)
        path.write_bytes(bytes(damaged))
        assert read(Pascal5i(root, "val")) == 20
    assert np.array_equal(Pascal5i(root, "val").pixels(), expected)


@pytest.mark.parametrize("cache_is", ["a file", "in a file"])
def test_a_cache_that_cannot_be_written_costs_only_time(
    cache_is: str, root: Path, read: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" if cache_is == "a file" else tmp_path / "file/cache"
    monkeypatch.setenv("SD_AANET_CACHE", str(place))
    assert read(Pascal5i(root, "val")) == 20
    assert read(Pascal5i(root, "val")) == 20
    assert (tmp_path / "file").read_text() == ""


def test_who_has_no_home_goes_without_a_cache(root: Path, read: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise KeyError

    for name in ("SD_AANET_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", none)
    for _ in range(2):
        assert read(Pascal5i(root, "val")) == 20
    assert len(Folder(make_json(root / "own"), "val")) == 12


def test_what_cannot_be_indexed_leaves_no_index(root: Path, cache: Path) -> None:
    voc_pairs(root, "val")[3][1].unlink()
    with pytest.raises(DataError, match=r"val_003\.png does not exist"):
        Pascal5i(root, "val").pixels()
    assert list(cache.rglob("*")) == []


def test_many_images_are_indexed_by_processes_as_by_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_voc(tmp_path / "large", images=11)
    several = Pascal5i(root, "val").pixels()
    assert "Indexing the val images of pascal5i: 100%" in capsys.readouterr().err
    next(cache.glob("index/*")).unlink()
    monkeypatch.setattr(reading, "FEW", 1000)
    one = Pascal5i(root, "val").pixels()
    assert capsys.readouterr().err == ""
    assert len(one) == 220
    assert np.array_equal(one, several)


def test_a_mistake_in_a_process_of_its_own_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FEW", 0)
    path = voc_pairs(root, "val")[3][1]
    path.write_bytes(b"no picture")
    with pytest.raises(DataError) as raised:
        Pascal5i(root, "val").pixels()
    assert str(raised.value).startswith(f"mask {path} cannot be read")
    assert "\n" not in str(raised.value)


def test_the_folder_itself_may_have_any_name(tmp_path: Path, read: Counted) -> None:
    root = make_voc(tmp_path / os.fsdecode(b"caf\xe9"), images=1)
    assert [read(Pascal5i(root, "val")) for _ in range(2)] == [20, 0]


def test_the_cache_may_be_named_from_home(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SD_AANET_CACHE", "~/kept")
    Pascal5i(root, "val").pixels()
    assert list((tmp_path / "home/kept").rglob("*.kept"))
