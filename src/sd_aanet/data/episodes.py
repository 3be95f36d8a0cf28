"""Episodes as pure functions of (seed, epoch, index): which images, and the tensors made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.transforms import Augment, Preprocess, digest
from sd_aanet.episode import IGNORE, Episode, joined_masks
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import Array8

logger = logging.getLogger(__name__)
Place = tuple[int, int]
"""(epoch, index): where an episode stands. Whoever holds it needs no state to make the episode."""


@dataclass(frozen=True)
class EpisodeSpec:
    """Which images make an episode; numbers are places in the image source.

    Attributes:
        classes: N class ids, from 1; the query shows one of them, and others or not.
        query: the picture to segment.
        supports: for each class its K examples.
    """

    classes: tuple[int, ...]
    query: int
    supports: tuple[tuple[int, ...], ...]

    @property
    def examples(self) -> list[tuple[int, int]]:
        """(image, class) of each example, shots innermost."""
        return [(image, c) for c, images in zip(self.classes, self.supports, strict=True) for image in images]


class Episodes(Protocol):
    """Whatever says which images make the episode at a place."""

    seed: int

    def draw(self, epoch: int, index: int) -> EpisodeSpec:
        """The episode at a place."""


class EpisodeSampler:
    """Draws episodes: N classes, a query that shows one, and for each class K other images that show it.

    An episode depends on (seed, epoch, index) alone, never on what was drawn before, by whom or in which
    order.

    Args:
        pixels: (N, C) pixels of each class in each image.
        classes: the class ids to draw from.
        shot: K, the number of supports of each class.
        seed: not negative.
        way: N, the number of classes.
        min_object_pixels: an image counts for a class from this many pixels on; 0 counts every pixel.
        order: of the queries. "random": first class and query are drawn (training). "classes": each class in turn as
            the first one, its query drawn (evaluation). "pairs": each pair of a class and an image that shows it in
            turn, the classes in turn too (HSNet's evaluation); only the supports are drawn.
        allowed: (N,) bool, the images that may be drawn; all where None.
        names: the names of classes 1..C for messages.
        skip_short: leave out classes with too few images, and say so, instead of refusing them.

    Raises:
        ConfigError: `shot` is under 1, or `way` under 1 or over the number of classes.
        DataError: classes with fewer than K + 1 images, or no class at all.
    """

    def __init__(
        self,
        pixels: NDArray[np.int64],
        classes: Sequence[int],
        shot: int,
        seed: int,
        *,
        way: int = 1,
        min_object_pixels: int = 2 * 32 * 32,
        order: Literal["random", "classes", "pairs"] = "random",
        allowed: NDArray[np.bool_] | None = None,
        names: Sequence[str] | None = None,
        skip_short: bool = False,
    ) -> None:
        if shot < 1:
            raise ConfigError(f"shot={shot}, expected at least 1 support image: set shot=1 or more")
        if not classes:
            raise DataError("no class is left to draw episodes from, expected at least one: check fold and held_out")
        shows = pixels >= max(min_object_pixels, 1)
        if allowed is not None:
            shows &= allowed[:, None]
        self.shot = shot
        self.seed = seed
        self.way = way
        self.order = order
        images = {c: np.flatnonzero(shows[:, c - 1]) for c in classes}
        short = {c: len(some) for c, some in images.items() if len(some) <= shot}
        if short:
            listed = ", ".join(f"{names[c - 1] if names else c} ({count})" for c, count in short.items())
            line = (
                f"shot={shot} needs {shot + 1} images of every class, each with at least "
                f"{max(min_object_pixels, 1)} pixels of it, and these have fewer: {listed}"
            )
            if not skip_short or len(short) == len(images):
                raise DataError(f"{line}: lower shot or min_object_pixels, add images, or set short_classes=skip")
            logger.warning("CAUTION: %s: they are left out", line)
        self._images: Mapping[int, NDArray[np.intp]] = {c: some for c, some in images.items() if c not in short}
        self.classes = tuple(self._images)
        if not 1 <= way <= len(self.classes):
            raise ConfigError(
                f"way={way}, expected 1 to {len(self.classes)}, the number of classes to draw from: set a smaller way"
            )
        pairs = [(rank, c, int(image)) for c, images in self._images.items() for rank, image in enumerate(images)]
        self._pairs = [(c, image) for _, c, image in sorted(pairs)]

    def draw(self, epoch: int, index: int) -> EpisodeSpec:
        """The episode at a place: K distinct supports of each class, none of them the query."""
        # NumPy keeps the raw stream of a bit generator the same for ever, but not what Generator makes of it.
        raw = np.random.PCG64([self.seed, epoch, index]).random_raw

        def distinct(among: Sequence[int] | NDArray[np.intp], count: int, chosen: list[int]) -> list[int]:
            while len(chosen) < count:
                one = int(among[int(raw()) % len(among)])
                if one not in chosen:
                    chosen.append(one)
            return chosen

        if self.order == "pairs":
            first, query = self._pairs[index % len(self._pairs)]
        else:
            first = self.classes[(index if self.order == "classes" else int(raw())) % len(self.classes)]
            query = -1
        classes = distinct(self.classes, self.way, [first])
        images = [self._images[c] for c in classes]
        query, *supports = distinct(images[0], 1 + self.shot, [] if query < 0 else [query])
        others = [distinct(some, 1 + self.shot, [query])[1:] for some in images[1:]]
        # In an order of its own, so that nobody learns that the query shows the first one.
        order = distinct(range(self.way), self.way, []) if self.way > 1 else [0]
        examples = [tuple(supports), *map(tuple, others)]
        return EpisodeSpec(tuple(classes[n] for n in order), query, tuple(examples[n] for n in order))


@dataclass(eq=False)
class EpisodeDataset(Dataset[Episode]):
    """Makes the episodes that a sampler draws; holds no state, so that workers cannot fall behind.

    Args:
        source: the images.
        sampler: says which images make them.
        preprocess: image and mask to S x S, and to tensors.
        augment: the random views; one draw an image, from (seed, epoch, index, slot).
        length: episodes an epoch.
        ignore_boundary: what is 255 in the query's mask counts nowhere; otherwise it is background.
    """

    source: ImageSource
    sampler: Episodes
    preprocess: Preprocess
    augment: Augment
    length: int
    ignore_boundary: bool = True

    def __len__(self) -> int:
        return self.length

    def spec(self, index: int, epoch: int = 0) -> EpisodeSpec:
        """Which images make the episode at `index`; pictures and masks are had from `source`."""
        return self.sampler.draw(epoch, index)

    def __getitem__(self, place: int | Place) -> Episode:
        """One episode as a batch of one.

        Args:
            place: (epoch, index) as `PlaceSampler` yields them, or an index of epoch 0.

        Raises:
            IndexError: the index is outside the epoch.
            DataError: an image or mask cannot be read.
        """
        epoch, index = place if isinstance(place, tuple) else (0, place)
        if not 0 <= index < self.length:
            raise IndexError(f"episode {index} of an epoch of {self.length}")
        spec = self.sampler.draw(epoch, index)
        truths = [torch.from_numpy(self.source.mask(spec.query, c)) for c in spec.classes]
        if not self.ignore_boundary:
            truths = [truth.masked_fill(truth == IGNORE, 0) for truth in truths]
        truth = joined_masks(truths).numpy()
        originals = [(spec.query, truth), *((i, self.source.mask(i, c)) for i, c in spec.examples)]
        # Slot 0 would seed the same stream as the episode's own draw, (seed, epoch, index).
        views = [
            self._view(i, mask, (self.sampler.seed, epoch, index, slot))
            for slot, (i, mask) in enumerate(originals, start=1)
        ]
        images, masks, keys = zip(*views, strict=True)
        ways = (len(spec.classes), -1)
        return Episode(
            query=images[0][None],
            query_mask=masks[0][None],
            support=torch.stack(images[1:]).unflatten(0, ways)[None],
            support_mask=torch.stack(masks[1:]).unflatten(0, ways)[None],
            class_id=torch.tensor([spec.classes]),
            index=torch.tensor([index]),
            query_key=(keys[0].partition("/")[0],),
            support_key=(keys[1:],),
        )

    def _view(self, i: int, mask: Array8, seed: Sequence[int]) -> tuple[Tensor, Tensor, str]:
        image, mask = self.augment(*self.preprocess.resize_pair(self.source.image(i), mask), seed)
        key = f"{self.preprocess.key(image)}/{digest(mask)}" if self.augment.recurs else ""
        return self.preprocess.normalise(image), torch.from_numpy(mask).long(), key


class PlaceSampler(Sampler[Place]):
    """Yields (epoch, index) in order: the epoch travels with the index, so no worker can hold a stale one.

    Args:
        length: episodes an epoch, over all devices.
        training: new episodes each epoch, and all processes take equally many (the last `length % world` are
            left out). Otherwise the episodes of epoch 0 each time, none left out, none padded.
        rank: this process takes the indices rank, rank + world, ...
        world: the number of processes.

    Attributes:
        skip: how many places the next pass leaves out, for they were trained on before an interruption.
    """

    def __init__(self, length: int, *, training: bool, rank: int = 0, world: int = 1) -> None:
        self.training = training
        self.epoch = self.skip = 0
        self._indices = range(rank, length - length % world if training else length, world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. Lightning calls this before each, also for evaluation, which stays at 0."""
        if self.training:
            self.epoch = epoch

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Place]:
        left, self.skip = self._indices[self.skip :], 0
        return ((self.epoch, index) for index in left)
