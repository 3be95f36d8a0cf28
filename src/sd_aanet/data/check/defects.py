"""Reading a data set whole, and what is wrong with it: the work of `sd-aanet check`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError
from sd_aanet.images import Array8

ERRORS = {
    "missing": "files that are missing",
    "unreadable": "files that cannot be read",
    "size": "masks whose size differs from their image's",
    "values": "values that are not classes",
    "few": "classes with too few images",
    "leak": "images in both train and val",
    "entry": "wrong entries of lists or annotations",
}
"""Kinds of defects that have to be put right, and what a report calls them."""
WARNINGS = {
    "repeated": "images that occur twice",
    "ignored": "masks without any object",
    "outline": "objects without an outline",
    "covered": "objects outlined twice, as different classes",
    "stray": "files that are left out",
}
"""Kinds of defects that one can live with."""


class Reading(NamedTuple):
    """What came of reading one image and its label.

    Attributes:
        key: the image's name.
        size: height and width; None where the image cannot be read.
        digest: of the decoded picture; None likewise.
        pixels: {class id: pixels}; empty where the label cannot be read.
        defects: of its files, each of a kind of `ERRORS` or `WARNINGS`.
    """

    key: str
    size: tuple[int, int] | None
    digest: bytes | None
    pixels: dict[int, int]
    defects: tuple[DataError, ...]


@dataclass(frozen=True)
class Checked:
    """A split, and what came of reading it, image by image."""

    source: ImageSource
    readings: tuple[Reading, ...]

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in each image, int64 (N, C)."""
        counts = np.zeros((len(self.readings), len(self.source.classes)), np.int64)
        for row, reading in zip(counts, self.readings, strict=True):
            for c, pixels in reading.pixels.items():
                row[c - 1] = pixels
        return counts

    def images(self, least: int) -> list[int]:
        """Of each class, how many images have so many pixels of it."""
        counted: list[int] = (self.pixels >= least).sum(axis=0).tolist()
        return counted


def read_split(source: ImageSource) -> Checked:
    """Read all images and labels of a split, in several processes."""
    title = f"Reading the {source.split} images of {source.name}"
    return Checked(source, tuple(read_all(partial(_read, source), len(source), title)))


def find_defects(splits: Sequence[Checked], refused: Sequence[DataError], shot: int, least: int) -> list[DataError]:
    """All that is wrong.

    Args:
        splits: one or both of a data set.
        refused: what was wrong already when they were opened.
        shot: K; each class needs one image more.
        least: pixels from which on an image counts for a class.
    """
    return [
        *(defect for split in splits for reading in split.readings for defect in reading.defects),
        # What belongs to no image; both splits may tell of the same file.
        *_distinct([*refused, *(error for split in splits for error in split.source.strays())]),
        *_too_few(splits, shot, least),
        *_repeated(splits),
    ]


def _read(source: ImageSource, i: int) -> Reading:
    """Read image `i` whole. What is wrong is caught here, in the worker, so that reading goes on."""
    key = source.key(i)
    size, digest, pixels = None, None, dict[int, int]()
    defects: list[DataError] = []
    try:
        image = source.image(i)
        size, digest = image.shape[:2], _digest(image)
    except DataError as error:
        defects.append(error)
    try:
        counts = source.count(i)
        pixels = {c + 1: int(counts[c]) for c in np.flatnonzero(counts).tolist()}
        if not pixels and (source.mask(i, 1) == IGNORE).any():
            line = f"mask of '{key}' shows no class, only {IGNORE} (ignore): give objects the index of their class"
            defects.append(DataError(line, "ignored"))
    except DataError as error:
        defects.append(error)
    return Reading(key, size, digest, pixels, _distinct(defects))  # a missing picture is met twice


def _digest(image: Array8) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=str(image.shape[1]).encode()).digest()


def _distinct(errors: Iterable[DataError]) -> tuple[DataError, ...]:
    """Of those with the same line one."""
    return tuple({str(error): error for error in errors}.values())


def _too_few(splits: Sequence[Checked], shot: int, least: int) -> Iterator[DataError]:
    """Classes with fewer images than an episode takes, in the split that their episodes come from."""
    for split in splits:
        images, usable = split.images(1), split.images(least)
        for c, role in _roles(split.source).items():
            if usable[c - 1] <= shot:
                line = (
                    f"class '{split.source.classes[c - 1]}', {role}, has too few images in {split.source.split}: "
                    f"{usable[c - 1]} with {least} pixels of it or more ({images[c - 1]} with any), expected "
                    f"{shot + 1} for shot={shot}: add images, or lower shot or min_object_pixels"
                )
                yield DataError(line, "few")


def _roles(source: ImageSource) -> dict[int, str]:
    """The classes that episodes of this split are made of, and what they are there."""
    roles: dict[int, str] = {}
    for fold in range(source.folds):
        novel, own = source.fold_classes(fold), source.val_classes(fold) or ()
        if source.split == "val":
            roles |= dict.fromkeys(own, "a validation class") | dict.fromkeys(novel, f"novel in fold={fold}")
        else:
            base = {*range(1, len(source.classes) + 1)}.difference(novel, own)
            roles |= dict.fromkeys(base, "a base class")
    return dict(sorted(roles.items()))


def _repeated(splits: Sequence[Checked]) -> Iterator[DataError]:
    """Pictures that are there twice, in both splits or in one; one that both name is told already."""
    contents: dict[bytes, tuple[str, str]] = {}
    for split in splits:
        own = split.source.split
        for reading in split.readings:
            if reading.digest is None:
                continue
            other, key = contents.setdefault(reading.digest, (own, reading.key))
            if key != reading.key:
                line = f"images '{key}' of {other} and '{reading.key}' of {own} are the same picture: leave one out"
                yield DataError(line, "repeated" if other == own else "leak")
