"""Texts and folders as people have them."""

import os
import unicodedata
from pathlib import Path

import pytest

from examples import refused
from sd_aanet.data.sources.listing import by_last_part, files_below, plain, read_lines, read_text
from sd_aanet.data.sources.refusal import collecting
from sd_aanet.errors import DataError

APART = unicodedata.normalize("NFD", "Möwe")


@pytest.mark.parametrize(
    "content",
    [
        "cat\nMöwe\n".encode(),
        "cat\r\nMöwe\r\n".encode(),
        "\ufeffcat\nMöwe".encode(),
        "\n  cat \n\n\tMöwe\n \n".encode(),
        f"cat\n{APART}\n".encode(),
    ],
    ids=["plain", "CRLF", "BOM", "blanks", "NFD"],
)
def test_lines_are_read_however_they_were_saved(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert read_lines(tmp_path / "list.txt") == ["cat", "Möwe"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_texts_in_another_encoding_are_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("Möwe", encoding=encoding)
    with pytest.raises(DataError, match=r"list\.txt cannot be read \(it is not in UTF-8\).*: save it as UTF-8$"):
        read_text(path)


def test_texts_that_are_not_there_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match=r"cannot be read \((No such file|Is a)"):
            read_text(path)


def test_files_are_those_that_a_file_browser_shows(tmp_path: Path) -> None:
    names = ("b.jpg", "a/Bild 1.JPG", f"a/{APART}.png", "a/c/deep.tif", "._b.jpg", ".DS_Store", ".hidden/x.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a/c", target_is_directory=True)
    found = files_below(tmp_path)
    assert list(found) == ["a/Bild 1.JPG", "a/Möwe.png", "a/c/deep.tif", "b.jpg"]
    assert all(Path(path).is_file() for path in found.values())


def test_each_real_folder_is_looked_into_once_by_whatever_links(tmp_path: Path) -> None:
    """Also by links to a folder above, to each other and to themselves, and by two to one outside."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "z", outside):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    for name, target in {
        "a": root / "z",
        "z/up": root,
        "z/all": tmp_path,
        "itself": root / "itself",
        "there": root / "back",
        "back": root / "there",
        "nowhere": tmp_path / "none",
        "b": outside,
        "c": outside,
    }.items():
        (root / name).symlink_to(target, target_is_directory=True)
    found = files_below(root)
    assert {name for name in found if name.endswith("jpg")} == {"z/x.jpg", "b/x.jpg"}
    assert set(found) <= {"z/x.jpg", "b/x.jpg", "itself", "there", "back", "nowhere"}


def test_two_files_of_one_name_in_two_spellings_are_named(tmp_path: Path) -> None:
    for name in (f"{APART}.jpg", f"{unicodedata.normalize('NFC', APART)}.jpg"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 2:  # some systems keep one
        with refused(DataError, "have one name in two spellings (Unicode): rename one"):
            files_below(tmp_path)


@pytest.mark.parametrize("name", ["a/b.jpg", "./a/b.jpg", "a\\b.jpg", "a//b.jpg", "a/./b.jpg", "a/c/../b.jpg"])
def test_names_of_one_file_are_the_same(name: str) -> None:
    assert plain(name) == "a/b.jpg"
    assert plain(f"{APART}/x") == plain(unicodedata.normalize("NFC", APART) + "/x")


def test_the_last_part_of_a_path_stands_for_it_where_it_is_the_only_one() -> None:
    assert by_last_part(["a/x", "b/x", "b/y", "z"]) == {"y": "b/y", "z": "z"}


def test_names_that_are_not_in_utf_8_are_refused(tmp_path: Path) -> None:
    """An old archive's: results, which are in UTF-8, could not tell of them."""
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / "b.png").touch()
    with pytest.raises(
        DataError, match=r"caf.*\.png has a name that is not in UTF-8, as old archives have them: rename"
    ):
        files_below(tmp_path)
    with collecting() as collected:
        assert list(files_below(tmp_path)) == ["b.png"]
    assert len(collected) == 1
