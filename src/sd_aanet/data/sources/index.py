"""The index of a data set on disk: how many pixels of each class every image holds. Made once, and kept."""

from __future__ import annotations

import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.cache import cache_folder
from sd_aanet.errors import ConfigError
from sd_aanet.files import written_whole

VERSION = 1
"""Of the index files; counts that are made otherwise need another one."""


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
        fingerprint = self._fingerprint()
        place = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        path: Path | None = None
        with suppress(ConfigError):  # no home folder
            path = cache_folder() / "index" / f"{self.name}_{self.split}_{place}.index"
        counts = None if path is None else _read(path, fingerprint, (len(self), len(self.classes)))
        if counts is None:
            counts = np.zeros((len(self), len(self.classes)), np.int64)
            title = f"Indexing the {self.split} images of {self.name}"
            for i, row in enumerate(read_all(self.count, len(self), title)):
                counts[i] = row
            with suppress(OSError):  # a cache that cannot be written costs the next start its time, nothing else
                if path is not None:
                    _write(path, fingerprint, counts)
        return counts

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


def _write(path: Path, fingerprint: str, counts: NDArray[np.int64]) -> None:
    """Only what is not zero, for an image shows few of the classes; behind a checksum."""
    rows, columns = np.nonzero(counts)
    buffer = io.BytesIO()
    np.savez(buffer, rows=rows.astype(np.int32), columns=columns.astype(np.int16), counts=counts[rows, columns])
    with written_whole(path) as temporary:
        temporary.write_bytes(_checksum(fingerprint, buffer.getvalue()) + buffer.getvalue())


def _read(path: Path, fingerprint: str, shape: tuple[int, int]) -> NDArray[np.int64] | None:
    """The counts of an index file; None where it is missing, damaged or of other files."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = len(_checksum("", b""))
    if content[:size] != _checksum(fingerprint, content[size:]):
        return None
    file = np.load(io.BytesIO(content[size:]), allow_pickle=False)
    counts = np.zeros(shape, np.int64)
    counts[file["rows"], file["columns"]] = file["counts"]
    return counts


def _checksum(fingerprint: str, content: bytes) -> bytes:
    return hashlib.sha256(fingerprint.encode() + content).digest()
