"""What a segmenter remembers: supports by thing, pictures without any of them, and their side of the network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import numpy as np
import torch

from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import Array8, Picture, called_by, read_image
from sd_aanet.models.parts.functional import resize
from sd_aanet.precision import autocast
from sd_aanet.rules import check, or_null, whole
from sd_aanet.segmenting.marks import Mark, read_support
from sd_aanet.segmenting.store import Example, Supports
from sd_aanet.segmenting.tiles import Tiles

logger = logging.getLogger(__name__)
SMALL = 16
"""Cells of the finest features; a line says what to do where an object covers fewer and under 2 % of its picture."""
MOST_THINGS = 254
"""So many labels fit in a byte beside nothing and 255."""


class Memory:
    """Supports and rejected pictures, read, checked and encoded.

    Args:
        comparer: of a method that is on the device, which keeps what is encoded.
        preprocess: how pictures become the method's input.
        tiles: how large pictures are looked at.
        device: of the method.
        precision: in which it encodes.

    Attributes:
        keys: of examples that are new.
        things: by name their supports.
        rejected: pictures that show none of them.
    """

    def __init__(
        self, comparer: Comparer, preprocess: Preprocess, tiles: Tiles, device: torch.device, precision: str
    ) -> None:
        self.comparer = comparer
        self.preprocess = preprocess
        self.tiles = tiles
        self.device = device
        self.precision = precision
        self.keys = count()
        self.things: dict[str, Supports] = {}
        self.rejected: tuple[Example, ...] = ()

    def read(
        self,
        name: str,
        pairs: Iterable[tuple[Picture, Mark]],
        class_id: int | None,
        batch: int | None,
        before: int = 0,
    ) -> Supports:
        """Supports of a thing, read, checked and encoded."""
        self.together(batch)
        read, seen = [], []
        for i, (picture, marks) in enumerate(pairs, start=before + 1):  # of each only what the network takes is held
            support = f"support {i}" + (f" of '{name}'" if name else "")
            image, mask = read_support(picture, marks, class_id, name=support)
            called = called_by(picture, "picture", support)
            parts = [self._example(called, *part) for part in self.tiles.pairs(image, mask)]
            showing = [part for part in parts if (part.mask == 1).any()] or parts[:1]
            read.append(tuple(parts if self.comparer.method.adapts else showing))
            told = support if called == support else f"{support} ({called})"
            seen.append((told, showing, int(np.count_nonzero(mask == 1)), mask.size))
        if not read:
            raise DataError("the list of supports is empty: give at least one pair of a picture and its mask")
        finest = self.comparer.method.backbone.outputs[self.comparer.method.finest]
        _check_visible(seen, finest.cells(self.preprocess.size))
        encoded = [part for parts in read for part in parts]
        self.encode(encoded, batch, len(encoded))
        return tuple(read)

    def read_rejected(
        self, images: Iterable[Picture], masks: Iterable[Mark] | None, batch: int | None
    ) -> tuple[Example, ...]:
        """Pictures without any thing, or where there is none; see `FewShotSegmenter.reject`."""
        self.check_rejects()
        pairs: Iterable[tuple[Picture, Mark | None]] = (
            ((picture, None) for picture in images) if masks is None else pairs_of(images, masks)
        )
        found: list[Example] = []
        for i, (picture, marks) in enumerate(pairs, start=1):
            rejected = f"rejected picture {i}"
            if marks is None:
                image = read_image(picture, rejected)
                where = np.zeros(image.shape[:2], np.uint8)
            else:
                image, marked = read_support(picture, marks, name=rejected)
                where = np.where(marked == 1, 0, IGNORE).astype(np.uint8)
            called = called_by(picture, "picture", rejected)
            found += [self._example(called, *part) for part in self.tiles.pairs(image, where)]
        self.encode(found, batch, len(found))
        return tuple(found)

    def _example(self, called: str, image: Array8, mask: Array8) -> Example:
        return Example(next(self.keys), called, *self.preprocess.resize_pair(image, mask))

    def encode(self, examples: Sequence[Example], batch: int | None, shots: int) -> None:
        """Their side of the network; support sets will have at least so many shots."""
        step = self.together(batch)
        for start in range(0, len(examples), step):
            some = examples[start : start + step]
            images = torch.stack([self.preprocess.normalise(one.image) for one in some])  # (B, 3, S, S)
            masks = torch.from_numpy(np.stack([one.mask for one in some])).long()  # (B, S, S)
            with autocast(self.precision, self.device):
                names = [one.key for one in some]
                self.comparer.add_supports(names, images.to(self.device), masks.to(self.device), shots=shots)

    def together(self, batch: int | None) -> int:
        """A CPU takes no less time for several pictures at once than for one after the other, and more memory."""
        check({"batch": batch}, {"batch": or_null(whole(1, 4))})
        return batch or (4 if self.device.type == "cuda" else 1)

    def check_rejects(self) -> None:
        """Raise `ConfigError` where the method learns nothing from pictures without the thing."""
        method = self.comparer.method
        if not method.adapts:
            raise ConfigError(
                f"method {method.name} learns nothing from pictures without the thing: leave them out, or use a "
                "method that fits to its supports, such as probe"
            )

    def keep(self, things: dict[str, Supports], rejected: tuple[Example, ...]) -> None:
        """These from now on, and nothing that was computed of others."""
        if len(things) > MOST_THINGS:
            raise ConfigError(f"{len(things)} things, expected at most {MOST_THINGS}: use a segmenter for each part")
        self.things, self.rejected = things, rejected
        self.comparer.forget({key for name in things for key in self.all_keys(name)})

    def supports(self, name: str) -> Supports:
        """Of a thing; `ConfigError` where there is none of that name."""
        if name not in self.things:
            known = ", ".join(map(repr, self.things)) or "nothing"
            raise ConfigError(f"nothing called '{name}' is remembered: there is {known}")
        return self.things[name]

    def all_keys(self, name: str) -> list[int]:
        """Of all that a thing is fitted to."""
        return [one.key for some in (*self.supports(name), self.rejected) for one in some]


def pairs_of(
    images: Iterable[Picture] | Iterable[tuple[Picture, Mark]] | None, masks: Iterable[Mark] | None
) -> Iterator[tuple[Picture, Mark]]:
    """Each image with its mask, read as they are needed."""
    if images is None:
        raise ConfigError("remember takes a name, images and their masks: give all three")
    if masks is None:
        for i, pair in enumerate(images, start=1):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(f"support {i} is no pair of a picture and its mask: give masks, or pairs")
            yield pair[0], pair[1]
        return
    try:
        yield from zip(images, masks, strict=True)
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise ConfigError("there are not as many masks as images: give each image its mask") from None


def _check_visible(seen: Sequence[tuple[str, Sequence[Example], int, int]], cells: int) -> None:
    """Raise DataError where an object falls between the cells of the feature map: its prototype would be nothing."""
    for support, parts, pixels, of in seen:
        masks = torch.from_numpy(np.stack([part.mask == 1 for part in parts]))  # (P, S, S)
        weight = float(resize(masks[:, None].float(), cells).sum())
        if weight == 0:
            raise DataError(
                f"the object in {support} has {pixels} of {of} pixels, too few for the "
                "network to see: crop the picture around it, or use another"
            )
        if weight < SMALL and pixels < of / 50:
            logger.warning(
                "CAUTION: the object in %s has %d of %d pixels, little for the network to see: crop supports and "
                "queries around such objects, or look in parts (tile=...)",
                support,
                pixels,
                of,
            )
