"""What an evaluation does with the steps of its plan: encode supports, segment queries, and score them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation.loading import LabelledPictures
from sd_aanet.evaluation.plan import Job, Step
from sd_aanet.memory import GIGABYTE, KINDS, FeatureMemory
from sd_aanet.metrics import episode_counts
from sd_aanet.models.base import Features, Queries, Supports
from sd_aanet.models.functional import resize
from sd_aanet.models.prior import prior_masks
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

    def of(self, pictures: LabelledPictures) -> Iterator[tuple[LabelledPictures, bool]]:
        """The views of pictures and their masks, and whether each is flipped."""
        for side in self.sides(pictures.images.shape[-1]):
            scaled = _scaled(pictures, side)
            yield scaled, False
            if self.flip:
                yield _flipped(scaled), True

    def sides(self, side: int) -> list[int]:
        """The input's side at each scale, given that at scale 1."""
        return [8 * round((side * scale - 1) / 8) + 1 for scale in self.scales]


class EpisodeTester(pl.LightningModule):
    """A trained module under test: its Trainer gives precision and device.

    Args:
        module: in eval mode.
        preprocess: of the pictures.
        resolutions: where predictions are scored: "original" (the query's own size), "squashed" (the input's).
        views: see `Views`.
        batch: episodes that are compared together.
        budget: bytes in memory for pictures that come again, half of it for supports, half for backbone features.
        folder: where backbone features are kept instead, for other runs, too; see `FeatureMemory`.

    Attributes:
        steps: what is to be done; set before a test.
        rows: {resolution: one (E, 8) int64 a batch of episodes: seed, index, class id, and `episode_counts`}. These and
            the prototypes stay on the device, so that a GPU is not waited for after every batch.
        prototypes: one (E, C) float32 a batch: the prototypes that the decoder was given.
    """

    def __init__(
        self,
        module: SDAANetModule,
        preprocess: Preprocess,
        resolutions: Sequence[str],
        views: Views | None = None,
        batch: int = 4,
        budget: float = 8 * GIGABYTE,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.preprocess = preprocess
        self.resolutions = tuple(resolutions)
        self.views = views or Views()
        self.batch = batch
        self.budget = budget
        kinds = ("mid",) if folder is None else KINDS
        self.memory = FeatureMemory(module.network, budget / 2, folder, str(preprocess), kinds)
        self.steps: Sequence[Step] = ()
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.resolutions}
        self.prototypes: list[Tensor] = []
        self._supports: dict[tuple[int, int], list[Supports]] = {}

    def most_supports(self) -> int:
        """How many supports the budget holds, were each of them foreground from border to border."""
        network = self.module.network
        positions = sum(((side - 1) // 8 + 1) ** 2 for side in self.views.sides(self.preprocess.size))
        width = 0 if network.prior_stage is None else network.backbone.channels[network.prior_stage - 2]
        each = 4 * (positions * width + 1024) * (1 + self.views.flip)
        return int(self.budget / 2 / each)

    def test_step(self, pictures: LabelledPictures, batch_index: int) -> None:
        """Do a step, and score its episodes at each resolution."""
        step = self.steps[pictures.step]
        places = {pair: place for place, pair in enumerate(step.pairs)}
        for jobs, probability, prediction in self.segment(pictures):
            self.prototypes.append(prediction.prototype.float())
            named = pictures.masks.new_tensor([(job.seed, job.index, job.spec.class_id) for job in jobs])
            for name in self.resolutions:
                counts = []
                for job, found in zip(jobs, probability, strict=True):
                    place = places[job.spec.query, job.spec.class_id]
                    truth, shown = pictures.masks[place], found
                    if name == "original":
                        truth = pictures.truths[place]
                        shown = self.preprocess.restore(found, (truth.shape[0], truth.shape[1]))
                    counts.append(episode_counts((shown > 0.5)[None], truth[None]))
                self.rows[name].append(torch.cat([named, torch.cat(counts)], 1))

    def segment(self, pictures: LabelledPictures) -> Iterator[tuple[Sequence[Job], Tensor, Prediction]]:
        """Do a step.

        Args:
            pictures: loaded for it.

        Yields:
            Some of its episodes, the foreground's probability, (E, S, S) float32, and the prediction of the first
            view. Nothing where the pictures are supports.
        """
        step = self.steps[pictures.step]
        if step.fresh:
            self._supports.clear()
        if not step.jobs:
            self._encode_supports(step, pictures)
            return
        side = pictures.images.shape[-1]
        rows = {image: row for row, image in enumerate(step.images)}
        views = [(self._encode_queries(view), flipped) for view, flipped in self.views.of(pictures)]
        priors: dict[tuple[int, int, int, int], Tensor] = {}
        for start in range(0, len(step.jobs), self.batch):
            jobs = step.jobs[start : start + self.batch]
            predictions = []
            total = torch.zeros(len(jobs), side, side, device=pictures.images.device)
            for v, (queries, flipped) in enumerate(views):
                prediction = self._compare(v, queries, [rows[job.spec.query] for job in jobs], jobs, priors)
                predictions.append(prediction)
                probability = prediction.logits.float().softmax(1)[:, 1:]
                total += resize(probability.flip(-1) if flipped else probability, side)[:, 0]
            yield jobs, total / len(views), predictions[0]

    def _encode_supports(self, step: Step, pictures: LabelledPictures) -> None:
        rows = [row for row, classes in enumerate(step.classes) for _ in classes]  # of the picture of each mask
        for view, _ in self.views.of(pictures):
            foreground = (view.masks == 1).to(view.images.dtype)  # (M, S, S)
            mid = self.memory.mid(view.keys, view.images)[rows]
            keys, classes = [view.keys[row] for row in rows], [c for _, c in step.pairs]
            features = Features(mid, self.memory.masked(keys, classes, mid, foreground))
            for pair, supports in zip(
                step.pairs, self.module.network.encode_supports(features, foreground), strict=True
            ):
                self._supports.setdefault(pair, []).append(supports)

    def _encode_queries(self, view: LabelledPictures) -> Queries:
        mid = self.memory.mid(view.keys, view.images)
        return self.module.network.encode_queries(Features(mid, self.memory.high(view.keys, mid)))

    def _compare(
        self,
        view: int,
        queries: Queries,
        rows: Sequence[int],
        jobs: Sequence[Job],
        priors: dict[tuple[int, int, int, int], Tensor],
    ) -> Prediction:
        """Episodes in one view; `priors` holds, by view, query, support and class, what a step has seen before."""
        supports = [[self._supports[i, job.spec.class_id][view] for i in job.spec.supports] for job in jobs]
        prototypes = torch.stack([torch.cat([one.prototypes for one in shots]) for shots in supports])  # (E, K, ...)
        mean: Tensor | None = None
        if queries.high is not None:
            means = []
            for row, job, shots in zip(rows, jobs, supports, strict=True):
                keys = [(view, job.spec.query, i, job.spec.class_id) for i in job.spec.supports]
                new = {key: one.columns[0] for key, one in zip(keys, shots, strict=True) if key not in priors}
                if new:
                    priors.update(zip(new, prior_masks(queries.high[row], list(new.values())), strict=True))
                means.append(torch.stack([priors[key] for key in keys]).mean(0, keepdim=True))
            mean = torch.stack(means)  # (E, 1, h, w)
        side = self.views.sides(self.preprocess.size)[view // (1 + self.views.flip)]
        return self.module.network.compare(queries.select(rows), prototypes, mean, (side, side))


def _scaled(pictures: LabelledPictures, side: int) -> LabelledPictures:
    """Pictures and masks at another side; their keys tell so."""
    if side == pictures.images.shape[-1]:
        return pictures
    masks = F.interpolate(pictures.masks[:, None].float(), (side, side), mode="nearest-exact")[:, 0].long()
    keys = tuple(f"{key}@{side}" for key in pictures.keys)
    return replace(pictures, images=resize(pictures.images, side), masks=masks, keys=keys)


def _flipped(pictures: LabelledPictures) -> LabelledPictures:
    """Pictures and masks flipped left to right; their keys tell so."""
    keys = tuple(f"{key}/flip" for key in pictures.keys)
    return replace(pictures, images=pictures.images.flip(-1), masks=pictures.masks.flip(-1), keys=keys)
