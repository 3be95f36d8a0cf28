"""What is in a folder, and texts that a user wrote. All names are composed (NFC): some systems take letters apart."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sd_aanet.data.sources.refusal import refuse
from sd_aanet.errors import DataError


def composed(name: str) -> str:
    """A name with each letter and its accents as one character (NFC), so that equal names are equal."""
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name can be written to a file of results, as one that is not in UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(name: str) -> str:
    """A file's name as a list or annotations have it (Windows writes backslashes), as `files_below` has it."""
    return posixpath.normpath(composed(name.replace("\\", "/")))


def read_text(path: Path) -> str:
    """A text of a user's, composed.

    Raises:
        DataError: the file is missing, or no text in UTF-8 (with or without a byte order mark).
    """
    try:
        return composed(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "it is not in UTF-8"
        raise DataError(f"{path} cannot be read ({problem}), expected a text: save it as UTF-8") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank, without the blanks around them.

    Raises:
        DataError: see `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def files_below(folder: Path) -> dict[str, str]:
    """The files that a file browser shows in a folder and in those below it, each real folder once, links last.

    Hidden files and folders are left out, such as the "._b.jpg" that macOS puts beside each file.

    Returns:
        {path from the folder, composed, "/" between its parts: whole path}, sorted.

    Raises:
        DataError: two files whose names are the same once they are composed.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    start = len(os.path.join(folder, ""))
    folders, links = [str(folder)], deque[str]()
    while folders or links:
        place = folders.pop() if folders else links.popleft()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        entries: list[os.DirEntry[str]] = []
        with suppress(OSError), os.scandir(place) as opened:  # there may be folders that one may not look into
            entries = sorted(opened, key=lambda entry: entry.name)
        for entry in entries:
            name = composed(entry.path[start:].replace(os.sep, "/"))
            if entry.name.startswith("."):
                continue
            if not is_text(entry.name):
                refuse(f"{entry.path} has a name that is not in UTF-8, as old archives have them: rename it")
                continue
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif name in found:
                refuse(f"{found[name]} and {entry.path} have one name in two spellings (Unicode): rename one")
            else:
                found[name] = entry.path
    return dict(sorted(found.items()))


def by_last_part(places: Iterable[str]) -> dict[str, str]:
    """{last part: place} of those places whose last part no other has."""
    places = list(places)
    count = Counter(map(posixpath.basename, places))
    return {end: place for place in places if count[end := posixpath.basename(place)] == 1}
