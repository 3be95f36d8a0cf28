"""Annotations in COCO's JSON format, split by image once, so that an image's labels are had on demand."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.sources.cache import cache_folder
from sd_aanet.data.sources.coco_json import CocoContent, read_coco
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.data.sources.run_lengths import paint, unpack
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError

_VERSION = 3
"""Of the stored files: to be raised when what is in them changes."""
_AT_ONCE = 5_000
"""Masks to unpack: their temporary arrays take some 10 MB."""


class CocoAnnotations:
    """Labels of the images of one JSON file in COCO's format for instances.

    The JSON of COCO itself has 450 MB. The first opening reads and checks it whole and keeps the outlines, split by
    image, in the cache folder; later ones, by any process, only map that. A changed file is read anew.

    Attributes:
        path: of the JSON file, links resolved.
        state: another one where the file's size or time, or the way that labels are made, changes.
        categories: id and name of each, by id; ids need be neither dense nor positive.
        used: places in `categories` of those with an outlined object; exporters list others, such as a parent of all.
        images: file names as the JSON has them, sorted.
        sizes: int32 (N, 2), height and width as the JSON has them.
        annotated: bool (N,), the images that have an outlined object or crowd.
        boxes_only: annotations that outline nothing (no segmentation, or polygons of under three corners), left out.
        wrong: a line on each malformed entry, see `CocoContent`; none outside of `refusal.collecting`.
    """

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file, from the cache where it was read before.

        Raises:
            DataError: the file is missing or malformed, or the cache folder cannot be written.
        """
        found = cls._stored(Path(path).expanduser().resolve())
        refuse(*(f"annotations {found.path}: {line}" for line in found.wrong))
        return found

    @classmethod
    def _stored(cls, path: Path) -> Self:
        store = _store(path)
        try:
            return cls(path, store)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(store, ignore_errors=True)  # damaged, if it is there at all
        _write(path, store)
        return cls(path, store)

    def __init__(self, path: Path, store: Path) -> None:
        index = json.loads((store / "index.json").read_bytes())
        self.path = path
        self.state = store.name.rpartition("-")[2]
        self.categories: tuple[tuple[int, str], ...] = tuple((number, name) for number, name in index["categories"])
        self.used = frozenset(index["used"])
        self.images = tuple(index["images"])
        self.boxes_only = int(index["boxes_only"])
        self.wrong: tuple[str, ...] = tuple(index["wrong"])
        self.sizes: NDArray[np.int32] = np.load(store / "sizes.npy")
        self._first = np.load(store / "first.npy")
        self.annotated = np.diff(self._first) > 0
        self._regions = np.load(store / "regions.npy", mmap_mode="r")
        self._lengths = np.load(store / "lengths.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self)._stored, (self.path,)  # what is mapped would be copied

    def label(self, i: int) -> NDArray[np.uint8]:
        """What image `i` shows: 0 = nothing, n = category n - 1 of `categories`, 255 = a crowd.

        Objects are drawn from the largest to the smallest, so that a pixel of several belongs to the smallest of them
        (of two of one size, to the later one in the file). A crowd (`iscrowd`: 1) is 255 where no object is drawn over
        it. The field does not agree on either: some draw in the file's order, some make crowds part of their class,
        some leave them out.

        Returns:
            uint8 (H, W).
        """
        height, width = self.sizes[i].tolist()
        columns = np.zeros((width, height), np.uint8)
        for value, start, end in self._regions[self._first[i] : self._first[i + 1]].tolist():
            paint(columns, self._lengths[start:end].tolist(), value)
        return np.ascontiguousarray(columns.T)

    def strays(self) -> list[DataError]:
        """The objects without an outline, as `ImageSource.strays` tells of them."""
        count = self.boxes_only
        line = f"annotations {self.path} hold objects without an outline ({count}), which are left out: export polygons"
        return [DataError(line, "outline")] if count else []


def _store(path: Path) -> Path:
    """The folder that holds a file's regions: a name for its path, and one for its state."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(
            f"annotations {path} cannot be read ({error.strerror}), expected a JSON file in COCO's format: check it"
        ) from None
    return cache_folder() / "coco" / f"{_digest(path)}-{_digest(_VERSION, state.st_size, state.st_mtime_ns)}"


def _digest(*values: object) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:16]


def _write(path: Path, store: Path) -> None:
    """Read a file into a store that is there whole or not at all; stores of the file's earlier states go."""
    try:
        temporary = store.with_name(f".{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            _write_files(read_coco(path), temporary)
            for old in store.parent.glob(f"{store.name.partition('-')[0]}-*"):
                if old != store:
                    shutil.rmtree(old, ignore_errors=True)
            temporary.rename(store)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not store.is_dir():  # else another process was faster
            raise DataError(
                f"the cache folder {cache_folder()} cannot be written ({error.strerror}), and annotations are kept "
                "there split by image: set SD_AANET_CACHE to a folder with room"
            ) from None


def _write_files(content: CocoContent, folder: Path) -> None:
    # Crowds come under everything, then objects from the largest on.
    drawn = [region for regions in content.regions for region in sorted(regions, key=lambda r: (not r.crowd, -r.area))]
    values = np.array([IGNORE if region.crowd else region.category + 1 for region in drawn], np.int64)
    unpacked = [unpack([region.packed for region in drawn[n : n + _AT_ONCE]]) for n in range(0, len(drawn), _AT_ONCE)]
    counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in unpacked)])
    ends = np.cumsum(counts)
    np.save(folder / "regions.npy", np.stack([values, ends - counts, ends], axis=1))
    np.save(folder / "lengths.npy", np.concatenate([np.empty(0, np.uint32), *(lengths for lengths, _ in unpacked)]))
    np.save(folder / "first.npy", np.cumsum([0, *map(len, content.regions)]))
    np.save(folder / "sizes.npy", np.array(content.sizes, np.int32))
    index = {
        "categories": content.categories,
        "used": sorted({region.category for region in drawn if not region.crowd}),
        "images": content.images,
        "boxes_only": content.boxes_only,
        "wrong": content.wrong,
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
