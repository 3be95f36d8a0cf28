"""Annotations in COCO's JSON format, split by image once, so that an image's labels are had on demand."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.sources.cache import Arrays, kept, state_of
from sd_aanet.data.sources.coco_json import read_coco
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.data.sources.run_lengths import paint, unpack
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError

_VERSION = 5
"""Of what is kept and of the way that labels are made: to be raised when that changes."""


class CocoAnnotations:
    """Labels of the images of one JSON file in COCO's format for instances.

    The JSON of COCO itself has 450 MB. The first opening reads and checks it whole and keeps the outlines, split by
    image, in the cache folder. A changed file is read anew.

    Args:
        path: of the JSON file.

    Attributes:
        path: links resolved.
        state: another one where the file's size or time, or the way that labels are made, changes.
        categories: id and name of each, by id; ids need be neither dense nor positive.
        used: places in `categories` of those with an outlined object; exporters list others, such as a parent of all.
        images: file names as the JSON has them, sorted.
        sizes: int32 (N, 2), height and width as the JSON has them.
        annotated: bool (N,), the images that have an outlined object or crowd.
        boxes_only: annotations that outline nothing (no segmentation, or polygons of under three corners), left out.

    Raises:
        DataError: the file is missing or malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        try:
            state = self.path.stat()
        except OSError as error:
            raise DataError(
                f"annotations {self.path} cannot be read ({error.strerror}), expected a JSON file in COCO's format: "
                "check it"
            ) from None
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        self.state = f"{_VERSION} {state_of(state)}"
        arrays = kept(f"coco/{name}", self.state, partial(_split, self.path))
        index = json.loads(arrays["index"].tobytes())
        refuse(*(f"annotations {self.path}: {line}" for line in index["wrong"]))
        self.categories: tuple[tuple[int, str], ...] = tuple((number, name) for number, name in index["categories"])
        self.used = frozenset(index["used"])
        self.images = tuple(index["images"])
        self.boxes_only, self._covered = int(index["boxes_only"]), int(index["covered"])
        self.sizes: NDArray[np.int32] = arrays["sizes"]
        self._first = arrays["first"]  # (N + 1,), of each image's regions
        self.annotated = np.diff(self._first) > 0
        self._values, self._ends = arrays["values"], arrays["ends"]  # (R,), and (R + 1,) places in what is packed
        self._packed = arrays["packed"].tobytes()

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
        for n in range(*self._first[i : i + 2].tolist()):
            paint(columns, unpack(self._packed[self._ends[n] : self._ends[n + 1]]), int(self._values[n]))
        return np.ascontiguousarray(columns.T)

    def strays(self) -> list[DataError]:
        """The objects without an outline, and those that others hide, as `ImageSource.strays` tells of them."""
        count = self.boxes_only
        line = f"annotations {self.path} hold objects without an outline ({count}), which are left out: export polygons"
        strays = [DataError(line, "outline")] if count else []
        if self._covered:
            strays.append(
                DataError(
                    f"annotations {self.path} hold objects that others of another category cover to the pixel "
                    f"({self._covered}), of which the later ones count: take one of each off",
                    "covered",
                )
            )
        return strays


def _split(path: Path) -> Arrays:
    """What a file holds, by image."""
    content = read_coco(path)
    # Crowds come under everything, then objects from the largest on.
    drawn = [region for regions in content.regions for region in sorted(regions, key=lambda r: (not r.crowd, -r.area))]
    index = {
        "categories": content.categories,
        "used": sorted({region.category for region in drawn if not region.crowd}),
        "images": content.images,
        "boxes_only": content.boxes_only,
        "covered": sum(
            len({(region.category, region.packed) for region in regions}) - len({region.packed for region in regions})
            for regions in content.regions
        ),
        "wrong": content.wrong,
    }
    return {
        "index": np.frombuffer(json.dumps(index).encode(), np.uint8),
        "sizes": np.array(content.sizes, np.int32),
        "first": np.cumsum([0, *map(len, content.regions)]),
        "values": np.array([IGNORE if region.crowd else region.category + 1 for region in drawn], np.uint8),
        "ends": np.cumsum([0, *(len(region.packed) for region in drawn)]),
        "packed": np.frombuffer(b"".join(region.packed for region in drawn), np.uint8),
    }
