"""Remembered backbone features: a frozen backbone runs once per picture instead of once per episode.

What depends on the picture alone (stages 2 and 3, the query's high features) is kept by the picture's key; what
depends on the support's mask too (the masked high features) by key and class.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.models.base import Features, FewShotNetwork


class FeatureMemory:
    """Features by key, the least recently used forgotten first.

    Args:
        network: whose backbone makes the features; frozen, batch norms too.
        budget: bytes to keep at most; one batch is always served, whatever the budget.

    Raises:
        ConfigError: the backbone trains, so its features change.
    """

    def __init__(self, network: FewShotNetwork, budget: float) -> None:
        if network.backbone_trainable or network.backbone_norm != "frozen":
            raise ConfigError(
                "features=remember needs a backbone that stands still: set backbone.trainable=false and "
                "backbone.norm=frozen, or features=compute"
            )
        self.network = network
        self.budget = budget
        self.bytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def features(self, episode: Episode, foreground: Tensor) -> tuple[Features, Features]:
        """The features of a batch, as `FewShotNetwork.extract` gives them.

        Args:
            episode: a batch whose views all have keys.
            foreground: (B, K, S, S) in {0, 1}.

        Raises:
            ConfigError: a view was augmented at random and so has no key.
        """
        shots = [key for keys in episode.support_key for key in keys]
        if not all(shots) or not all(episode.query_key):
            raise ConfigError("features=remember needs pictures that recur: set augment=none or augment=flip")
        images = torch.cat([episode.query, episode.support.flatten(0, 1)])
        names = [*episode.query_key, *shots]
        network = self.network
        mid = self._all([("mid", name) for name in names], lambda rows: network.mid(images[rows]))
        of_query, of_support = mid.split([len(episode.query_key), len(shots)])
        if network.prior_stage is None:
            return Features(of_query, None), Features(of_support, None)
        high = self._all([("high", name) for name in episode.query_key], lambda rows: self._high(of_query[rows]))
        classes = episode.class_id.repeat_interleave(foreground.shape[1]).tolist()
        masks = foreground.flatten(0, 1)
        masked = self._all(
            [("masked", name, c) for name, c in zip(shots, classes, strict=True)],
            lambda rows: self._high(of_support[rows], masks[rows]),
        )
        return Features(of_query, high), Features(of_support, masked)

    def _high(self, mid: Tensor, foreground: Tensor | None = None) -> Tensor:
        high = self.network.high(mid, foreground)
        assert high is not None  # asked for only where the prior is on
        return high

    def _all(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """One row a key: what is kept, and the rest computed in one batch, each key once."""
        rows = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: index for index, key in enumerate(keys) if key not in rows}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            rows.update(zip(missing, compute(list(missing.values())).unbind(), strict=True))
        for key in dict.fromkeys(keys):
            self._keep(key, rows[key])
        return torch.stack([rows[key] for key in keys])

    def _keep(self, key: Hashable, value: Tensor) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        value = value.clone()  # not a view that would keep its whole batch alive
        self._kept[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.budget and self._kept:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
