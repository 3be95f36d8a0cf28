"""The two types that everything passes: an `Episode` goes into the network, a `Prediction` comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from sd_aanet.errors import ConfigError

IGNORE = 255
"""Mask value of pixels that count nowhere: not in a loss, not in a prototype, not in a metric."""


def check_size(size: int) -> None:
    """Raise `ConfigError` unless `size`, the side of the input, is 8n + 1; name the nearest size that is."""
    if size % 8 != 1 or size < 17:
        nearest = max(17, 8 * round((size - 1) / 8) + 1)
        raise ConfigError(f"size={size}, expected 8n + 1: the nearest good size is {nearest}")


@dataclass(frozen=True)
class Batch:
    """A frozen dataclass of tensors, tuples of them, and plain values, that moves as a whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on `device`, to a GPU while the CPU goes on."""
        return self._map("to", device, non_blocking=torch.device(device).type == "cuda")

    def pin_memory(self) -> Self:
        """The same in page-locked memory (called by torch's DataLoader)."""
        return self._map("pin_memory")

    def _map(self, function: str, *args: object, **kwargs: object) -> Self:
        def mapped(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(mapped, value))
            return getattr(value, function)(*args, **kwargs) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: mapped(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Episode(Batch):
    """A batch of B few-shot episodes: K labelled pictures of one class each, and a query to segment.

    Masks hold 1 for the episode's class, 0 for everything else and 255 (`IGNORE`) for what counts nowhere.

    Attributes:
        query: (B, 3, S, S) float32, ImageNet-normalised RGB.
        query_mask: (B, S, S) int64. For losses and metrics only; no prediction reads it.
        support: (B, K, 3, S, S) float32.
        support_mask: (B, K, S, S) int64.
        class_id: (B,) int64, from 1.
        index: (B,) int64, place of each episode in its list.
        query_key: B names, each of the exact pixels of one view of an image, so that what the backbone makes of
            them can be remembered. Empty where the view was augmented at random.
        support_key: B times K such names.
    """

    query: Tensor
    query_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_id: Tensor
    index: Tensor
    query_key: tuple[str, ...]
    support_key: tuple[tuple[str, ...], ...]

    @classmethod
    def collate(cls, episodes: Sequence[Self]) -> Self:
        """Join batches of episodes of one shot and size into one batch, in order."""
        first = episodes[0]
        joined: dict[str, object] = {}
        for field in fields(cls):
            values = [getattr(episode, field.name) for episode in episodes]
            if isinstance(getattr(first, field.name), Tensor):
                joined[field.name] = torch.cat(values)
            else:
                joined[field.name] = tuple(key for value in values for key in value)
        return cls(**joined)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Prediction:
    """What the network says of B queries, and what its losses need. h, w: the side of the feature maps.

    Attributes:
        logits: (B, 2, S, S), background and foreground.
        auxiliary_logits: one (B, 2, S, S) a scale of the decoder; empty outside training.
        support_logits: (B, K, 2, S, S), SAAM's segmentation of the supports; None outside training or without SAAM.
        attention: (B, 1, h, w), SAAM's affinity attention of the query; None without SAAM.
        prior: (B, 1, h, w) in [0, 1]; None without the prior mask.
        prototype: (B, C), the prototype that the decoder compares the query with.
        support_prototypes: (B, K, C), one a shot, reweighted where SDPM is on.
        reweighting: (B, K, C) in [0.5, 1], SDPM's channel weights u_k = (v_k + 1) / 2; None without SDPM.
        query_features: (B, C, h, w), the projected query before any reweighting.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...]
    support_logits: Tensor | None
    attention: Tensor | None
    prior: Tensor | None
    prototype: Tensor
    support_prototypes: Tensor
    reweighting: Tensor | None
    query_features: Tensor
