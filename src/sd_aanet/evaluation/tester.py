"""What an evaluation does with the steps of its plan: encode supports, segment queries, and score them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from sd_aanet.backbones.base import Grid
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Prediction, joined_masks
from sd_aanet.errors import ConfigError, PredictionError
from sd_aanet.evaluation.loading import LabelledPictures
from sd_aanet.evaluation.plan import ListedEpisode, Step
from sd_aanet.feature_cache import GIGABYTE, KINDS, FeatureCache
from sd_aanet.metrics import confusion, episode_counts
from sd_aanet.models.base import Method
from sd_aanet.models.parts.functional import resize


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: the foreground's probability is the mean over views of the same episode.

    Attributes:
        scales: of the input's side, each brought to the nearest that the backbone takes; from 0.25, under which nothing
            is left to see, to 4, above which memory ends.
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

    def of(self, pictures: LabelledPictures, grid: Grid) -> Iterator[tuple[LabelledPictures, bool]]:
        """The views of pictures and their masks, and whether each is flipped."""
        for side in self.sides(pictures.images.shape[-1], grid):
            scaled = _scaled(pictures, side)
            yield scaled, False
            if self.flip:
                yield _flipped(scaled), True

    def sides(self, side: int, grid: Grid) -> list[int]:
        """The input's side at each scale, given that at scale 1 and what the backbone takes."""
        return [grid.nearest(side * scale) for scale in self.scales]


class EpisodeTester(pl.LightningModule):
    """A method under test: its Trainer gives precision and device.

    Args:
        method: in eval mode.
        preprocess: of the pictures.
        classes: the largest class id of the data set.
        resolutions: where predictions are scored: "original" (the query's own size), "squashed" (the input's).
        views: see `Views`.
        batch: episodes that are compared together.
        budget: bytes in memory for pictures that come again, half of it for supports, half for backbone features.
        folder: where backbone features are kept instead, for other runs, too; see `FeatureCache`.

    Attributes:
        steps: what is to be done; set before a test.
        rows: {resolution: one (E * N, 8) int64 a batch of episodes of N classes: seed, index, class id, and
            `episode_counts`}. These and the embeddings stay on the device, so that a GPU is not waited for after every
            batch.
        confusion: of the first resolution, see `metrics.confusion`; of several classes at once only.
        embeddings: one (E * N, C) float32 a batch: what the queries were compared with; none where the method has none.
    """

    def __init__(
        self,
        method: Method,
        preprocess: Preprocess,
        classes: int,
        resolutions: Sequence[str],
        views: Views | None = None,
        batch: int = 4,
        budget: float = 8 * GIGABYTE,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.preprocess = preprocess
        self.classes = classes
        self.resolutions = tuple(resolutions)
        self.views = views or Views()
        self.batch = batch
        self.budget = budget
        kinds = ("image",) if folder is None else KINDS
        cache = FeatureCache(method, budget / 2, folder, kinds)
        self.comparers = [Comparer(method, cache) for _ in range(len(self.views.scales) * (1 + self.views.flip))]
        self.steps: Sequence[Step] = ()
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.resolutions}
        self.confusion: Tensor | None = None
        self.embeddings: list[Tensor] = []
        self._finite: list[Tensor] = []  # one a batch, looked at once, at the end

    def most_supports(self) -> int:
        """How many supports the budget holds, were each of them object from border to border."""
        sides = self.views.sides(self.preprocess.size, self.method.backbone.grid)
        each = (1 + self.views.flip) * sum(self.comparers[0].support_bytes(side) for side in sides)
        return int(self.budget / 2 / max(each, 1))

    def test_step(self, pictures: LabelledPictures, batch_index: int) -> None:
        """Do a step, and score its episodes at each resolution."""
        for episodes, scores, prediction in self.segment(pictures):
            self._finite.append(torch.isfinite(scores).all())
            if prediction.embedding is not None:
                self.embeddings.append(prediction.embedding.float())
            named = pictures.masks.new_tensor([(one.seed, one.index, c) for one in episodes for c in one.spec.classes])
            for name in self.resolutions:
                counts = [self._count(pictures, *both, name) for both in zip(episodes, scores, strict=True)]
                self.rows[name].append(torch.cat([named, torch.cat(counts)], 1))

    def on_test_epoch_end(self) -> None:
        """Of several processes, give each what all of them found.

        Raises:
            PredictionError: some predictions are no numbers, in whichever process.
        """
        finite = torch.stack([torch.ones((), device=self.device, dtype=torch.bool), *self._finite]).all()
        self._finite.clear()
        if self.trainer.world_size > 1:
            finite = torch.stack(gather_all_tensors(finite)).all()
        if not finite:
            raise PredictionError(
                "predictions of the evaluation are not finite: set precision=32-true, or choose another checkpoint"
            )
        if self.trainer.world_size == 1:
            return
        self.rows = {name: gather_all_tensors(torch.cat(some)) for name, some in self.rows.items()}
        if self.embeddings:
            self.embeddings = gather_all_tensors(torch.cat(self.embeddings))
        if self.confusion is not None:
            self.confusion = torch.stack(gather_all_tensors(self.confusion)).sum(0)

    def _count(self, pictures: LabelledPictures, one: ListedEpisode, scores: Tensor, resolution: str) -> Tensor:
        """`episode_counts` of an episode, whose confusion is added to the others'."""
        step, classes = self.steps[pictures.step], one.spec.classes
        places = [step.pairs.index((one.spec.query, c)) for c in classes]
        original = resolution == "original"
        truth = joined_masks([(pictures.truths if original else pictures.masks)[place] for place in places])[None]
        shown = self.preprocess.restore(scores, (truth.shape[1], truth.shape[2])) if original else scores
        answer = answers(shown)[None]
        if len(classes) > 1 and resolution == self.resolutions[0]:
            mixed = confusion(answer, truth, torch.tensor([classes], device=truth.device), self.classes)
            self.confusion = mixed if self.confusion is None else self.confusion + mixed
        return episode_counts(answer, truth, len(classes))

    def segment(self, pictures: LabelledPictures) -> Iterator[tuple[Sequence[ListedEpisode], Tensor, Prediction]]:
        """Do a step.

        Args:
            pictures: loaded for it.

        Yields:
            Some of its episodes, their scores (see `Comparer.scores`; of one class without the background's, which is
            the rest), and the prediction of the first view. Nothing where the pictures are supports.
        """
        step = self.steps[pictures.step]
        views = zip(self.comparers, self.views.of(pictures, self.method.backbone.grid), strict=True)
        if step.fresh:
            for comparer in self.comparers:
                comparer.forget()
        if not step.episodes:
            rows = [row for row, classes in enumerate(step.classes) for _ in classes]  # of the picture of each mask
            for comparer, (view, _) in views:
                comparer.add_supports(step.pairs, view.images, view.masks, view.keys, view.mask_keys, rows)
            return
        side = pictures.images.shape[-1]
        rows_of = {image: row for row, image in enumerate(step.images)}
        encoded = [
            (comparer, comparer.encode_queries(view.images, view.keys), view.images.shape[-1], flipped)
            for comparer, (view, flipped) in views
        ]
        for start in range(0, len(step.episodes), self.batch):
            episodes = step.episodes[start : start + self.batch]
            ways = len(episodes[0].spec.classes)
            comparisons = [
                (
                    rows_of[one.spec.query],
                    [[(i, c) for i in images] for c, images in zip(one.spec.classes, one.spec.supports, strict=True)],
                )
                for one in episodes
            ]
            predictions, total = [], torch.zeros((), device=pictures.images.device)
            for comparer, queries, size, flipped in encoded:
                prediction = comparer.compare(queries, comparisons, (size, size))
                predictions.append(prediction)
                scores = comparer.scores(prediction, ways)  # (E, N + 1, s, s)
                scores = scores[:, 1:] if ways == 1 else scores
                total = total + resize(scores.flip(-1) if flipped else scores, side)
            yield episodes, total / len(encoded), predictions[0]


def answers(scores: Tensor) -> Tensor:
    """Scores of a picture, (N + 1, H, W), or of one class alone, (1, H, W), as its answer (H, W) in 0..N."""
    return (scores[0] > 0.5).long() if len(scores) == 1 else scores.argmax(0)


def _scaled(pictures: LabelledPictures, side: int) -> LabelledPictures:
    """Pictures and masks at another side; their keys tell so."""
    if side == pictures.images.shape[-1]:
        return pictures
    masks = F.interpolate(pictures.masks[:, None].float(), (side, side), mode="nearest-exact")[:, 0].long()
    return replace(_renamed(pictures, f"@{side}"), images=resize(pictures.images, side), masks=masks)


def _flipped(pictures: LabelledPictures) -> LabelledPictures:
    """Pictures and masks flipped left to right; their keys tell so."""
    return replace(_renamed(pictures, "/flip"), images=pictures.images.flip(-1), masks=pictures.masks.flip(-1))


def _renamed(pictures: LabelledPictures, view: str) -> LabelledPictures:
    """Pictures whose keys tell of a view of them."""
    keys, mask_keys = (tuple(f"{key}{view}" for key in names) for names in (pictures.keys, pictures.mask_keys))
    return replace(pictures, keys=keys, mask_keys=mask_keys)
