"""What an evaluation does with a batch of episodes: segment it, in one view or several, and score it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode, Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation.metrics import FewShotIoU, episode_counts
from sd_aanet.models.functional import resize
from sd_aanet.training.module import SDAANetModule


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: the foreground's probability is the mean over views of the same episode.

    Attributes:
        scales: of the input's side, each rounded to the next 8n + 1; from 0.25, under which nothing is left to see, to
            4, above which memory ends.
        flip: with and without flipping queries and supports left to right.

    Raises:
        ConfigError: another scale, or none.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0.25 <= scale <= 4 for scale in self.scales):
            shown = ",".join(f"{scale:g}" for scale in self.scales)
            raise ConfigError(f"scales=[{shown}], expected numbers from 0.25 to 4: set scales=[0.8,1.0,1.2]")

    def of(self, episode: Episode) -> Iterator[tuple[Episode, bool]]:
        """The views of a batch, and whether each is flipped."""
        side = episode.query.shape[-1]
        for scale in self.scales:
            scaled = _scaled(episode, 8 * round((side * scale - 1) / 8) + 1)
            yield scaled, False
            if self.flip:
                yield _flipped(scaled), True


class EpisodeTester(pl.LightningModule):
    """A trained module under test: its Trainer gives precision and device.

    Args:
        module: in eval mode.
        preprocess: of the episodes.
        classes: the largest class id of the data set.
        resolutions: where predictions are scored: "original" (the query's own size), "squashed" (the input's).
        views: see `Views`.

    Attributes:
        metrics: {resolution: metric}.
        rows: {resolution: one (B, 7) int64 a batch: index, class id, and `episode_counts`}.
        prototypes: one (B, 1 + C) float32 a batch: class id and the prototype that the decoder was given.
    """

    def __init__(
        self,
        module: SDAANetModule,
        preprocess: Preprocess,
        classes: int,
        resolutions: Sequence[str],
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.preprocess = preprocess
        self.views = views or Views()
        self.metrics = torch.nn.ModuleDict({name: FewShotIoU(classes) for name in resolutions})
        self.start()

    def start(self) -> None:
        """Forget what was tested before."""
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        self.prototypes: list[Tensor] = []
        for metric in self.metrics.values():
            assert isinstance(metric, FewShotIoU)
            metric.reset()

    def test_step(self, episode: Episode, batch_index: int) -> None:
        """Score a batch at each resolution."""
        probability, prediction = self.segment(episode)
        ids = episode.class_id
        self.prototypes.append(torch.cat([ids[:, None].float(), prediction.prototype.float()], 1).cpu())
        for name in self.metrics:
            if name == "squashed":
                self._score(name, probability > 0.5, episode.query_mask, episode)
                continue
            for i, truth in enumerate(episode.query_truth):
                size = (truth.shape[0], truth.shape[1])
                mask = self.preprocess.restore(probability[i], size) > 0.5
                self._score(name, mask[None], truth[None], _one(episode, i))

    def _score(self, name: str, mask: Tensor, truth: Tensor, episode: Episode) -> None:
        counts = episode_counts(mask, truth)
        metric = self.metrics[name]
        assert isinstance(metric, FewShotIoU)
        metric.update(mask, truth, episode.class_id)
        self.rows[name].append(torch.cat([episode.index[:, None], episode.class_id[:, None], counts], 1).cpu())

    def segment(self, episode: Episode) -> tuple[Tensor, Prediction]:
        """The foreground's probability, (B, S, S) float32, and the prediction of the first view."""
        side = episode.query.shape[-1]
        total, first, count = None, None, 0
        for view, flipped in self.views.of(episode):
            prediction: Prediction = self.module(view)
            probability = prediction.logits.float().softmax(1)[:, 1:]
            probability = resize(probability.flip(-1) if flipped else probability, side)[:, 0]
            total = probability if total is None else total + probability
            first, count = first or prediction, count + 1
        assert total is not None
        assert first is not None
        return total / count, first


def _one(episode: Episode, i: int) -> Episode:
    """Episode `i` of a batch, as far as scoring reads it."""
    return replace(episode, class_id=episode.class_id[i : i + 1], index=episode.index[i : i + 1])


def _scaled(episode: Episode, side: int) -> Episode:
    """Queries and supports at another side; their keys tell so."""
    if side == episode.query.shape[-1]:
        return episode
    masks = F.interpolate(episode.support_mask.float(), (side, side), mode="nearest-exact").long()
    return replace(
        episode,
        query=resize(episode.query, side),
        support=resize(episode.support.flatten(0, 1), side).unflatten(0, episode.support.shape[:2]),
        support_mask=masks,
        query_key=_renamed(episode.query_key, f"@{side}"),
        support_key=tuple(_renamed(keys, f"@{side}") for keys in episode.support_key),
    )


def _flipped(episode: Episode) -> Episode:
    """Queries and supports flipped left to right; their keys tell so."""
    return replace(
        episode,
        query=episode.query.flip(-1),
        support=episode.support.flip(-1),
        support_mask=episode.support_mask.flip(-1),
        query_key=_renamed(episode.query_key, "/flip"),
        support_key=tuple(_renamed(keys, "/flip") for keys in episode.support_key),
    )


def _renamed(keys: tuple[str, ...], ending: str) -> tuple[str, ...]:
    return tuple(key + ending if key else "" for key in keys)
