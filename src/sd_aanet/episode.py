"""What everything passes: an `Episode` goes into a method, a `Prediction` comes out; both are batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

IGNORE = 255
"""Mask value of pixels that count nowhere: not in a loss, not in a prototype, not in a metric."""

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as torchvision's weights and most backbones expect it; each says what it wants."""


def joined_masks(masks: Sequence[Tensor]) -> Tensor:
    """The masks of N classes of one picture, each of 0, 1 and 255, as one of 0..N and 255.

    What any of them ignores is ignored; where two classes overlap, as objects of COCO do, the first one counts.
    """
    if len(masks) == 1:
        return masks[0]
    joined = torch.zeros_like(masks[0])
    for way in range(len(masks), 0, -1):
        joined[masks[way - 1] == 1] = way
    joined[torch.stack([mask == IGNORE for mask in masks]).any(0)] = IGNORE
    return joined


@dataclass(frozen=True)
class Batch:
    """A frozen dataclass of tensors, tuples and mappings of them, and plain values, that moves as a whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on `device`, to a GPU while the CPU goes on."""
        return self._map("to", device, non_blocking=torch.device(device).type == "cuda")

    def pin_memory(self) -> Self:
        """The same in page-locked memory (called by torch's DataLoader)."""
        return self._map("pin_memory")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        return _tensors(vars(self))

    def _map(self, function: str, *args: object, **kwargs: object) -> Self:
        def mapped(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(mapped, value))
            if isinstance(value, Mapping):
                return {name: mapped(inner) for name, inner in value.items()}
            if isinstance(value, Batch):
                return value._map(function, *args, **kwargs)
            return getattr(value, function)(*args, **kwargs) if isinstance(value, Tensor) else value

        return type(self)(**{name: mapped(value) for name, value in vars(self).items()})


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Batch):
        yield from value.tensors()
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


@dataclass(frozen=True)
class Rows(Batch):
    """A batch of N rows: each field is a tensor with a leading axis of N, a tuple of N things, or None for all rows."""

    def __len__(self) -> int:
        """N."""
        return next(len(value) for value in vars(self).values() if value is not None)

    def select(self, rows: Sequence[int]) -> Self:
        """Some of the rows, each any number of times, in any order; neighbours, or one row repeated, as a view."""
        rows = list(rows)
        first, count = rows[0], len(rows)
        if rows == list(range(first, first + count)):
            return self if count == len(self) else self._each(lambda value: value[first : first + count])

        def chosen(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(value[i] for i in rows)
            if rows == [first] * count:
                return value[first : first + 1].expand(count, *value.shape[1:])
            return value[rows]

        return self._each(chosen)

    def unbind(self) -> list[Self]:
        """Each row as a batch of one, in memory of its own: a view would keep the whole batch alive."""

        def own(value: Any, i: int) -> Any:
            if isinstance(value, tuple):
                return tuple(inner.clone() if isinstance(inner, Tensor) else inner for inner in value[i : i + 1])
            return value[i : i + 1].clone()

        return [self._each(partial(own, i=i)) for i in range(len(self))]

    @classmethod
    def cat(cls, batches: Sequence[Self]) -> Self:
        """Join batches of one kind, in order."""
        if len(batches) == 1:
            return batches[0]
        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(batch, f.name) for batch in batches]
            if isinstance(values[0], Tensor):
                joined[f.name] = torch.cat(values)
            else:
                joined[f.name] = None if values[0] is None else tuple(row for value in values for row in value)
        return cls(**joined)

    def _each(self, function: Callable[[Any], Any]) -> Self:
        values = {name: None if value is None else function(value) for name, value in vars(self).items()}
        return type(self)(**values)


@dataclass(frozen=True)
class Episode(Rows):
    """A batch of B few-shot episodes: for each of N classes K labelled pictures, and a query to segment.

    Attributes:
        query: (B, 3, S, S) float32, RGB, normalised as the backbone wants it.
        query_mask: (B, S, S) int64: 0 = everything else, n = the n-th class of the episode, 255 = ignore. For losses
            and metrics only; no prediction reads it.
        support: (B, N, K, 3, S, S) float32.
        support_mask: (B, N, K, S, S) int64: 1 = the class that the picture is an example of, 0 = everything else,
            255 = ignore.
        class_id: (B, N) int64, from 1.
        index: (B,) int64, place of each episode in its list.
        query_key: B names, each of exactly these pixels, so that what the backbone makes of them can be kept. Empty
            where the view was augmented at random.
        support_key: for each episode N times K such names, shots innermost; behind "/" one of the mask's pixels.
    """

    query: Tensor
    query_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_id: Tensor
    index: Tensor
    query_key: tuple[str, ...]
    support_key: tuple[tuple[str, ...], ...]

    @property
    def ways(self) -> int:
        """N, the classes of each episode."""
        return self.support.shape[1]

    @property
    def shots(self) -> int:
        """K, the examples of each class."""
        return self.support.shape[2]

    def one_way(self) -> Episode:
        """The same as B * N episodes of one class each, classes innermost: what N one-way comparisons learn from."""
        if self.ways == 1:
            return self
        way = torch.arange(1, self.ways + 1, device=self.query_mask.device)[:, None, None]
        masks = self.query_mask[:, None]  # (B, 1, S, S)
        masks = torch.where(masks == IGNORE, IGNORE, (masks == way).to(masks.dtype))  # (B, N, S, S)
        rows = [b for b in range(len(self)) for _ in range(self.ways)]
        keys = [
            row[n * self.shots : (n + 1) * self.shots]
            for row in self.support_key
            for n in range(self.ways if row else 0)
        ]
        return Episode(
            query=self.query[rows],
            query_mask=masks.flatten(0, 1),
            support=self.support.flatten(0, 1)[:, None],
            support_mask=self.support_mask.flatten(0, 1)[:, None],
            class_id=self.class_id.flatten()[:, None],
            index=self.index[rows],
            query_key=tuple(self.query_key[b] for b in rows),
            support_key=tuple(keys),
        )


@dataclass(frozen=True)
class Prediction(Batch):
    """What a method says of B queries; a method adds in a class of its own what its losses need.

    Attributes:
        logits: (B, 2, H, W), background and foreground; of a method that compares all classes at once (B, N + 1, H, W).
        maps: (B, 1, h, w) each, to look at, by name ("attention", "prior", "similarity").
        embedding: (B, C), what the query was compared with, for pictures of the classes; None where there is none.
    """

    logits: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
