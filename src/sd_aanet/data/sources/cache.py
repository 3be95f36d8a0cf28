"""Where what was read once is kept: indexes of classes, annotations split by image."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.files import written_whole

Arrays = dict[str, NDArray[Any]]
_CHECK = 32
"""Bytes of a checksum, before what is kept."""


def cache_folder() -> Path | None:
    """$SD_AANET_CACHE, else sd_aanet in the user's cache folder; None where there is no home. Not made here."""
    if own := os.environ.get("SD_AANET_CACHE"):
        return Path(own).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if caches.startswith("~") else Path(caches) / "sd_aanet"


def state_of(file: os.stat_result) -> str:
    """What differs once a file has changed: its size and times. Tools that copy or unpack set back one time alone."""
    return f"{file.st_size} {file.st_mtime_ns} {file.st_ctime_ns}"


def kept(name: str, fingerprint: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the cache folder where it is there.

    Args:
        name: of the file, without its suffix.
        fingerprint: of all that the arrays depend on; those with another one are made anew, and so are damaged ones.
        make: makes them. Where there is no cache, or none that can be written, the next start makes them again.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / f"{name}.kept"
    with suppress(OSError):
        content = path.read_bytes()
        if content[:_CHECK] == _check(fingerprint, content[_CHECK:]):
            return dict(np.load(io.BytesIO(content[_CHECK:]), allow_pickle=False))
    arrays, buffer = make(), io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with suppress(OSError), written_whole(path) as temporary:
        temporary.write_bytes(_check(fingerprint, buffer.getvalue()) + buffer.getvalue())
    return arrays


def _check(fingerprint: str, content: bytes) -> bytes:
    return hashlib.sha256(fingerprint.encode() + content).digest()
