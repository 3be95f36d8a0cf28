"""The one place that encodes pictures and compares them: training, evaluation and `FewShotSegmenter` call it.

A `Comparer` walks the steps of a method (`FewShotMethod`), and keeps what recurs: examples by name, support sets by
the names of their examples, and what a query made with an example as long as the query is there.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sd_aanet.episode import Episode, Prediction, Rows
from sd_aanet.errors import ConfigError
from sd_aanet.feature_cache import FeatureCache
from sd_aanet.models.base import Method


@dataclass(frozen=True)
class Encoded:
    """Encoded query pictures, and what they have made with examples so far.

    Attributes:
        queries: the method's own.
        pairs: by row of the query and name of the example.
    """

    queries: Rows
    pairs: dict[tuple[int, Hashable], Rows] = field(default_factory=dict)


class Comparer:
    """A method at work.

    Args:
        method: on any device, in train or eval mode.
        cache: of backbone features; None computes them whenever asked for.
    """

    def __init__(self, method: Method, cache: FeatureCache | None = None) -> None:
        self.method = method
        self.cache = cache
        self._supports: dict[Hashable, Rows] = {}
        self._sets: dict[tuple[Hashable, ...], Rows] = {}

    def __call__(self, episode: Episode) -> Prediction:
        """Segment the queries of a batch of episodes: B predictions of a joint method, else B * N one-way ones."""
        ways, shots, method = episode.ways, episode.shots, self.method
        size = (episode.query.shape[-2], episode.query.shape[-1])
        method.backbone.grid.check(size[1])
        masks = episode.support_mask.flatten(0, 2)  # (BNK, S, S)
        with self._gradients():
            of_query, of_support = self._features(episode, masks)
            queries = method.encode_query(*of_query)
            supports = method.encode_support(*of_support, masks)
            sets = method.support_set(supports, shots)  # BN
            rows = [b for b in range(len(episode)) for _ in range(ways)]
            pairs = method.pair(queries, [row for row in rows for _ in range(shots)], supports)  # BNK
            return method.compare(queries if method.joint else queries.select(rows), sets, pairs, size)

    def encode_queries(self, images: Tensor, keys: Sequence[str] = ()) -> Encoded:
        """Everything that depends on N query pictures (N, 3, S, S) alone.

        Args:
            images: normalised, on the backbone's grid.
            keys: their names in the cache.
        """
        with self._gradients():
            features = self._image(images, keys)
            return Encoded(self.method.encode_query(features, self._masked(features, keys)))

    def add_supports(
        self,
        names: Sequence[Hashable],
        images: Tensor,
        masks: Tensor,
        keys: Sequence[str] = (),
        mask_keys: Sequence[str] = (),
        pictures: Sequence[int] | None = None,
        shots: int = 1,
    ) -> None:
        """Encode examples and keep each under its name, in place of what had it; queries have to be encoded after that.

        Args:
            names: M.
            images: (N, 3, S, S).
            masks: (M, S, S) int64 of 0, 1 and 255.
            keys: of the images in the cache.
            mask_keys: of the masks in the cache.
            pictures: for each mask, its image; None where each image has one.
            shots: examples that support sets will have at least.
        """
        with self._gradients():
            features, rows = self._image(images, keys), list(range(len(masks)) if pictures is None else pictures)
            features = features.select(rows)
            masked = self._masked(features, mask_keys, masks)
            encoded = self.method.thinned(self.method.encode_support(features, masked, masks), shots)
            replaced = self._supports.keys() & names
            self._sets = {kept: made for kept, made in self._sets.items() if replaced.isdisjoint(kept)}
            self._supports.update(zip(names, encoded.unbind(), strict=True))

    def forget(self, but: Collection[Hashable] = ()) -> None:
        """Drop all examples, or all but these."""
        self._supports = {name: encoded for name, encoded in self._supports.items() if name in but}
        self._sets = {names: made for names, made in self._sets.items() if all(name in but for name in names)}

    def compare(
        self, encoded: Encoded, comparisons: Sequence[tuple[int, Sequence[Sequence[Hashable]]]], size: tuple[int, int]
    ) -> Prediction:
        """Segment queries by examples that were added.

        Args:
            encoded: the queries.
            comparisons: E of them, each the row of a query and, for each of N classes, the names of K examples.
            size: (H, W) of the logits.

        Returns:
            E predictions of a joint method, else E * N one-way ones, classes innermost.
        """
        flat = [(row, tuple(names)) for row, ways in comparisons for names in ways]
        with self._gradients():
            sets = [self._support_set(names) for _, names in flat]
            pairs = [pair for row, names in flat for pair in self._pairs(encoded, row, names)]
            rows = [row for row, _ in (comparisons if self.method.joint else flat)]
            return self.method.compare(
                encoded.queries.select(rows),
                type(sets[0]).cat(sets),
                type(pairs[0]).cat(pairs) if pairs else None,
                size,
            )

    def scores(self, prediction: Prediction, ways: int) -> Tensor:
        """Of each episode's background and classes: (B, N + 1, H, W) float32 in [0, 1]; the largest is the answer."""
        if self.method.joint:
            return prediction.logits.float().softmax(1)
        return self.method.merge_ways(prediction.logits.unflatten(0, (-1, ways)))

    def support_bytes(self, size: int) -> int:
        """What an example of this side takes at most: one that is the object from border to border."""
        weight = next(self.method.parameters())
        image = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
        mask = torch.ones(1, size, size, device=weight.device, dtype=torch.int64)
        with torch.inference_mode():
            features = self.method.image_features(image)
            return int(self.method.encode_support(features, self.method.masked_features(features, mask), mask).nbytes)

    def _support_set(self, names: tuple[Hashable, ...]) -> Rows:
        if names not in self._sets:
            if not self.method.adapts:  # the next one is rarely the same, and quickly made
                self._sets.clear()
            shots = [self._supports[name] for name in names]
            self._sets[names] = self.method.support_set(type(shots[0]).cat(shots), len(shots))
        return self._sets[names]

    def _pairs(self, encoded: Encoded, row: int, names: Sequence[Hashable]) -> list[Rows]:
        new = [name for name in names if (row, name) not in encoded.pairs]
        if new:
            shots = [self._supports[name] for name in new]
            made = self.method.pair(encoded.queries, [row] * len(new), type(shots[0]).cat(shots))
            if made is None:
                return []
            encoded.pairs.update(((row, name), pair) for name, pair in zip(new, made.unbind(), strict=True))
        return [encoded.pairs[row, name] for name in names]

    def _features(self, episode: Episode, masks: Tensor) -> tuple[tuple[Rows, Rows | None], tuple[Rows, Rows | None]]:
        """Of the queries, and of all their examples, shots innermost."""
        supports = episode.support.flatten(0, 2)  # (BNK, 3, S, S)
        batch, ways, shots = len(episode), episode.ways, episode.shots
        if self.cache is not None:
            keys = [key for row in episode.support_key for key in row]
            if not all(keys) or not all(episode.query_key):
                raise ConfigError("features=cache needs pictures that recur: set augment=none or augment=flip")
            pictures = [*episode.query_key, *(key.partition("/")[0] for key in keys)]
            image = self._image(torch.cat([episode.query, supports]), pictures)
            of_query, of_support = image.select(range(batch)), image.select(range(batch, len(image)))
            return (
                (of_query, self._masked(of_query, episode.query_key)),
                (of_support, self._masked(of_support, keys, masks)),
            )
        if self.method.backbone.training:
            # Batch norms in train mode see their batch: the query alone, then each shot alone, as in the published
            # training. Anything else would be another network.
            each = ways * shots
            groups = [(episode.query, None), *((s, m) for s, m in zip(*_by_shot(episode), strict=True))]
            made = []
            for images, mask in groups:
                features = self._image(images)
                made.append((features, self._masked(features, mask=mask)))
            order = [shot * batch + b for b in range(batch) for shot in range(each)]
            features = type(made[1][0]).cat([some for some, _ in made[1:]]).select(order)
            masked = [some for _, some in made[1:] if some is not None]
            return made[0], (features, type(masked[0]).cat(masked).select(order) if masked else None)
        image = self._image(torch.cat([episode.query, supports]))
        of_query, of_support = image.select(range(batch)), image.select(range(batch, len(image)))
        return (of_query, self._masked(of_query)), (of_support, self._masked(of_support, mask=masks))

    def _image(self, images: Tensor, keys: Sequence[str] = ()) -> Rows:
        features: Rows = self.method.image_features(images) if self.cache is None else self.cache.image(keys, images)
        return features

    def _masked(self, features: Rows, keys: Sequence[str] = (), mask: Tensor | None = None) -> Rows | None:
        if self.cache is None or not self.method.masks_features:
            return self.method.masked_features(features, mask)
        return self.cache.masked(keys, features, mask)

    @contextmanager
    def _gradients(self) -> Iterator[None]:
        """For a method that adapts, tensors that it can take gradients from, which inference mode does not make."""
        if not self.method.adapts or self.method.training:
            yield
            return
        with torch.inference_mode(False), torch.no_grad():
            yield


def _by_shot(episode: Episode) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """For each of N * K examples of an episode, those of all episodes: images (B, 3, S, S) and masks (B, S, S)."""
    return episode.support.flatten(1, 2).unbind(1), episode.support_mask.flatten(1, 2).unbind(1)
