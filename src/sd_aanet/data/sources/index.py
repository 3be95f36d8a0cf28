"""The index of a data set on disk: how many pixels of each class every image holds. Made once, and kept."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.cache import Arrays, kept, state_of

VERSION = 1
"""Of the indexes; counts that are made otherwise need another one."""


class IndexedSource(ImageSource):
    """A data set of files. Its index is kept in the cache folder, and made anew when a file that it depends on changes.

    Attributes:
        root: the data set's folder.
    """

    root: Path

    @abstractmethod
    def label_files(self) -> Sequence[str]:
        """The files that the counts depend on."""

    def pixels(self) -> NDArray[np.int64]:
        shown = kept(_place(f"{self.name}_{self.split}", self.root), self._fingerprint(), self._shown)
        counts = np.zeros((len(self), len(self.classes)), np.int64)
        counts[shown["rows"], shown["columns"]] = shown["counts"]
        return counts

    def _shown(self) -> Arrays:
        """The counts that are not zero, for an image shows few of the classes."""
        title = f"Indexing the {self.split} images of {self.name}"
        counts = np.array([*read_all(self.count, len(self), title)], np.int64).reshape(len(self), len(self.classes))
        rows, columns = np.nonzero(counts)
        return {"rows": rows.astype(np.int32), "columns": columns.astype(np.int16), "counts": counts[rows, columns]}

    def _fingerprint(self) -> str:
        """Of all that the index depends on: the images' names in order, the classes, each file's size and time."""
        digest = hashlib.sha256(f"{VERSION} {self.name} {self.split} {self.classes}".encode())
        for i in range(len(self)):
            digest.update(self.key(i).encode() + b"\n")
        _add_states(digest, self.label_files(), self.root)
        return digest.hexdigest()


def any_holds(holds: Callable[[str], bool], files: Sequence[str], root: Path, title: str) -> bool:
    """Whether something is true of any of the files; the answer is kept, and found anew when one of them changes.

    Args:
        holds: tells it of a file.
        files: their paths.
        root: the data set's folder.
        title: what the bar says.
    """
    digest = hashlib.sha256(f"{VERSION} {holds.__name__}".encode())
    _add_states(digest, files, root)

    def answer() -> Arrays:
        return {"answer": np.array(any(read_all(partial(_of_file, holds, files), len(files), title)))}

    return bool(kept(_place(holds.__name__, root), digest.hexdigest(), answer)["answer"])


def _of_file(holds: Callable[[str], bool], files: Sequence[str], i: int) -> bool:
    return holds(files[i])


def _place(name: str, root: Path) -> str:
    """Where an index is kept."""
    return f"index/{name}_{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"


def _add_states(digest: hashlib._Hash, files: Iterable[str], root: Path) -> None:
    """Add the names, sizes and times of files."""
    for path in files:
        with suppress(OSError, ValueError):  # missing, or no name of a file: who reads it says so
            state = state_of(os.stat(path))
            name = path.removeprefix(str(root))  # the root may be written in several ways
            digest.update(os.fsencode(f"{name} {state}\n"))
