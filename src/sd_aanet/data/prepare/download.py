"""Archives of the benchmarks: fetched, going on where a transfer was cut off, checked and unpacked."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen

from tqdm import tqdm

from sd_aanet.errors import DataError

_COCO = "http://images.cocodataset.org"
ARCHIVES = {
    "voc": {
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd"
    },
    "sbd": {
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz": (
            "82b4d87ceb2ed10f6038a1cba92111cb"
        )
    },
    "coco": {
        f"{_COCO}/annotations/annotations_trainval2014.zip": "0a379cfc70b0e71301e0f377548639bd",
        f"{_COCO}/zips/val2014.zip": "a3d79f5ed8d289b7a7554ce06a5782b3",
        f"{_COCO}/zips/train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88",
    },
}
"""What the benchmarks are made of: where each archive is, and its MD5."""

_CHUNK = 2**20
_QUIET_BELOW = 2**24
"""Fewer bytes than this are handled without a progress bar: it would flash by."""
_PATIENCE = 60
"""Seconds without a byte until a transfer counts as cut off."""


def download(name: str, folder: Path) -> Path:
    """Fetch and unpack the archives of a data set into a folder; what is there already is passed over.

    Args:
        name: a key of `ARCHIVES`.
        folder: made where it does not exist.

    Returns:
        The folder.

    Raises:
        DataError: see `fetch` and `unpack`.
    """
    for url, md5 in ARCHIVES[name].items():
        path = folder / url.rpartition("/")[2]
        fetch(url, path, md5)
        unpack(path, folder)
    return folder


def fetch(url: str, path: Path, md5: str) -> None:
    """Fetch a file, and check it; one that is there already is only checked.

    What has come is kept beside `path` as `.part` until it is whole: the next call goes on from there.

    Raises:
        DataError: the file cannot be fetched or written, or its checksum is another.
    """
    if path.is_file():
        if (found := _md5(path)) != md5:
            raise DataError(f"archive {path} has the MD5 {found}, expected {md5}: delete it or replace it by {url}")
        return
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    _transfer(url, part, path)
    if (found := _md5(part)) != md5:
        part.unlink()
        raise DataError(
            f"{url} came with the MD5 {found}, expected {md5}, and was removed: call again, or fetch it by other means "
            f"and put it at {path}"
        )
    part.replace(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files of a .zip, .tar or .tgz; those that are there already with the right size are passed over.

    Raises:
        DataError: the archive is damaged, or cannot be unpacked into the folder.
    """
    try:
        with archive.open("rb") as file, _bar(f"Unpacking {archive.name}", archive.stat().st_size) as bar:
            for name, size, extract in _members(archive, file):
                if _size(folder / name) != size or not size:
                    extract(path=folder)
                bar.update(file.tell() - bar.n)
    except Exception as error:  # of a damaged archive it is of almost any kind
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"archive {archive} cannot be unpacked into {folder} ({problem}): make room, or delete the archive and "
            "fetch it anew"
        ) from None


def _transfer(url: str, part: Path, path: Path) -> None:
    """Append to `part` what is missing, by as many requests as bring something."""
    while True:
        have, problem = _size(part), "the transfer was cut off"
        try:
            request = Request(url, headers={"Range": f"bytes={have}-"})
            with urlopen(request, timeout=_PATIENCE) as response:  # nosec B310 # addresses of ours
                start = have if response.status == 206 else 0  # else the server sends all of it again
                length = response.headers["Content-Length"]
                total = None if length is None else start + int(length)
                with part.open("ab" if start else "wb") as file, _bar(part.stem, total, start) as bar:
                    while chunk := response.read(_CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
            if total is None or _size(part) >= total:
                return
        except (OSError, HTTPException) as error:
            if getattr(error, "code", None) == 416 and have:  # nothing is behind what is here; the checksum tells more
                return
            problem = str(getattr(error, "reason", None) or error)
        if _size(part) <= have:
            raise DataError(
                f"{url} cannot be fetched ({problem}): call again to go on, or fetch it by other means and put it at "
                f"{path}"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar(f"Checking {path.name}", _size(path)) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _bar(title: str, total: int | None, start: int = 0) -> tqdm:
    """Of bytes; none is shown for few of them."""
    quiet = total is not None and total < _QUIET_BELOW
    return tqdm(desc=title, initial=start, total=total, unit="B", unit_scale=True, disable=quiet)


def _members(archive: Path, file: IO[bytes]) -> Iterator[tuple[str, int, Callable[..., object]]]:
    """The regular files of an archive: name, size, and what extracts each to a `path`, never outside of it.

    Links have no business in a data set, and could lead anywhere.
    """
    if archive.suffix == ".zip":
        with zipfile.ZipFile(file) as members:
            for info in members.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(members.extract, info)
    else:
        with tarfile.open(fileobj=file) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # which Python 3.11.3 does not have
            for member in tar:
                if member.isfile():
                    yield member.name, member.size, partial(tar.extract, member)
