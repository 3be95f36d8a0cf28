"""The LightningModule: a method, its losses, optimizer and metrics around batches of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode, Prediction
from sd_aanet.errors import TrainingError
from sd_aanet.feature_cache import GIGABYTE, FeatureCache
from sd_aanet.metrics import FewShotIoU
from sd_aanet.models import build_method
from sd_aanet.training.optimizers import build_optimizer

REMEDY = "set a smaller lr, gradient_clip=1, or precision=32-true"


class FewShotModule(pl.LightningModule):
    """A few-shot method in training and validation; from primitives only: its checkpoints are safe to load.

    An evaluation is the business of `evaluation.tester`.

    Args:
        network: arguments of `models.build_method`.
        preprocess: arguments of `data.transforms.Preprocess`: what prediction must do to a picture.
        classes: the largest class id of the data set, for the metrics.
        optimizer: see `build_optimizer`; None for a module that is not trained.
        training: what the checkpoint was trained on (data set, fold, seed, ...), for those who evaluate it; None where
            that is unknown.
    """

    def __init__(
        self,
        network: dict[str, Any],
        preprocess: dict[str, Any],
        classes: int,
        optimizer: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.method = build_method(**network)
        # What CPUs and GPUs convolve fastest in; torch's stubs do not know that a module takes it.
        self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optimizer
        self.comparer = Comparer(self.method)
        self.val_metric = FewShotIoU(classes)
        self._before: list[tuple[int, int]] = []  # the last step's episodes
        self._val_finite: list[Tensor] = []  # one a batch, looked at once, at the end

    def cache_features(self, gigabytes: float, folder: str | None) -> None:
        """From now on keep backbone features, up to so many gigabytes in memory, or all in a folder."""
        place = None if folder is None else Path(folder)
        self.comparer.cache = FeatureCache(self.method, gigabytes * GIGABYTE, place)

    def forward(self, episode: Episode) -> Prediction:
        """Segment the queries of a batch, see `Comparer`; no query mask is read."""
        return self.comparer(episode)

    def training_step(self, episode: Episode, batch_index: int) -> Tensor:
        """The weighted sum of the method's losses over a batch; every term is logged.

        Raises:
            TrainingError: it is not finite, with the step and the episodes.
        """
        self.method.check_batch(len(episode))
        terms = self.method.losses(self(episode), episode if self.method.joint else episode.one_way())
        weights = self.method.loss_weights
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        if not torch.isfinite(total.detach()):
            shown = ", ".join(f"{name} {float(term.detach()):g}" for name, term in terms.items())
            step, places = self.trainer.global_step, self._places(episode)
            what = f"the loss is not finite at step {step} ({shown})"
            if self._before and not all(torch.isfinite(value).all() for value in self.method.parameters()):
                step, places = step - 1, self._before
                what = f"the weights are not finite after step {step} (the next loss: {shown})"
            raise TrainingError(
                f"{what}, episodes {', '.join(str(index) for _, index in places)} of epoch {places[0][0]}: {REMEDY}",
                places,
                step,
            )
        self._before = self._places(episode)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        logged = {f"train/{name}": term.detach() for name, term in ({"total": total} | terms).items()}
        self.log_dict(logged | {"train/lr": rate}, batch_size=len(episode.query), sync_dist=True)  # of all devices
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        return total

    def _places(self, episode: Episode) -> list[tuple[int, int]]:
        return [(self.current_epoch, index) for index in episode.index.tolist()]

    def on_train_batch_end(self, outputs: Any, batch: Episode, batch_index: int) -> None:
        """At the end of an epoch, when checkpoints are due, refuse weights that are not finite.

        Raises:
            TrainingError: they are not, with the step.
        """
        if self.trainer.is_last_batch:
            for name, value in self.method.state_dict().items():
                if not torch.isfinite(value).all():
                    raise TrainingError(f"{name} is not finite after step {self.trainer.global_step}: {REMEDY}")

    def validation_step(self, episode: Episode, batch_index: int) -> None:
        """Count the hits of a batch."""
        scores = self.comparer.scores(self(episode), episode.ways)
        self._val_finite.append(torch.isfinite(scores).all())
        self.val_metric.update(scores.argmax(1), episode.query_mask, episode.class_id)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and FB-IoU over all validation episodes.

        Raises:
            TrainingError: a prediction was not finite, whose mIoU would be that of background everywhere.
        """
        finite = all(self._val_finite)
        self._val_finite.clear()
        if not finite:
            step = self.trainer.global_step
            raise TrainingError(f"predictions of the validation after step {step} are not finite: {REMEDY}")
        values = self.val_metric.compute()
        for name, value in values.items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "miou")
        self.val_metric.reset()

    def predict(self, episode: Episode) -> Tensor:
        """The masks of a batch: (B, S, S) int64, 0 = background, n = the n-th class."""
        return self.comparer.scores(self(episode), episode.ways).argmax(1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """What the configuration chose, over what trains, the schedule per step."""
        assert self.optimizer is not None
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer, schedule = build_optimizer(parameters, self.trainer.estimated_stepping_batches, **self.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
