"""The index of a data set on disk: how many pixels of each class every image holds. Made once, and kept."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.cache import Arrays, kept

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
        place = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        shown = kept(f"index/{self.name}_{self.split}_{place}", self._fingerprint(), self._shown)
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
        for path in self.label_files():
            with suppress(OSError):  # missing: counting says so
                status = os.stat(path)
                name = path.removeprefix(str(self.root))  # the root may be written in several ways
                digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()
