"""The LightningModule: network, losses, schedule and metrics around one episode batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode, Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.memory import GIGABYTE, FeatureMemory
from sd_aanet.metrics import FewShotIoU
from sd_aanet.models import build_network
from sd_aanet.training.losses import LossTerms, SDAANetLoss


class SDAANetModule(pl.LightningModule):
    """A few-shot network in training and validation; from primitives only: its checkpoints are safe to load.

    An evaluation is the business of `evaluation.tester`.

    Args:
        network: arguments of `models.build_network`.
        loss: arguments of `SDAANetLoss` but `variant`, which is the network's.
        preprocess: arguments of `data.transforms.Preprocess`: what prediction must do to a picture.
        classes: the largest class id of the data set, for the metrics.
        lr: initial learning rate of SGD, decayed after every step to lr * (1 - step / steps)^power.
        momentum, weight_decay, power: of SGD and the schedule.
        training: what the checkpoint was trained on (data set, fold, seed, ...), for those who evaluate it; None where
            that is unknown.
    """

    def __init__(
        self,
        network: dict[str, Any],
        loss: dict[str, Any],
        preprocess: dict[str, Any],
        classes: int,
        lr: float = 0.025,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        power: float = 0.9,
        training: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build_network(**network)
        # What CPUs and GPUs convolve fastest in; torch's stubs do not know that a module takes it.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = SDAANetLoss(variant=network.get("variant", "published"), **loss)
        self.lr, self.momentum, self.weight_decay, self.power = lr, momentum, weight_decay, power
        self.memory: FeatureMemory | None = None
        self.val_metric = FewShotIoU(classes)

    def remember(self, gigabytes: float, folder: str | None, preprocess: Preprocess) -> None:
        """From now on remember backbone features: up to so many gigabytes in memory, or all in a folder.

        See `FeatureMemory`; `preprocess` is what the pictures will have gone through.
        """
        place = None if folder is None else Path(folder)
        self.memory = FeatureMemory(self.network, gigabytes * GIGABYTE, place, str(preprocess))

    def forward(self, episode: Episode) -> Prediction:
        """Segment the queries of a batch; no query mask is read."""
        foreground = (episode.support_mask == 1).to(episode.query.dtype)  # (B, K, S, S)
        if self.memory is None:
            features = self.network.extract(episode.query, episode.support, foreground)
        else:
            features = self.memory.features(episode, foreground)
        return self.network.head(*features, foreground)

    def training_step(self, episode: Episode, batch_index: int) -> Tensor:
        """The total loss of a batch; every term is logged."""
        self._check_batch(episode)
        terms: LossTerms = self.loss(self(episode), episode.query_mask, episode.support_mask)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        logged = {f"train/{name}": value.detach() for name, value in vars(terms).items()} | {"train/lr": rate}
        self.log_dict(logged, batch_size=len(episode.query))
        self.log("loss", terms.total.detach(), prog_bar=True, logger=False)
        return terms.total

    def _check_batch(self, episode: Episode) -> None:
        if getattr(self.network, "saam", None) is not None and len(episode.query) == 1:
            raise ConfigError(
                "batch_size=1 on a device: SAAM's first pool is a single cell, whose batch norm needs two episodes; "
                "set batch_size=2 or more (or model.saam=false)"
            )

    def validation_step(self, episode: Episode, batch_index: int) -> None:
        """Count the hits of a batch."""
        self.val_metric.update(self.predict(episode), episode.query_mask, episode.class_id)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and FB-IoU over all validation episodes."""
        values = self.val_metric.compute()
        for name, value in values.items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "miou")
        self.val_metric.reset()

    def predict(self, episode: Episode) -> Tensor:
        """The masks of a batch: (B, S, S) int64, 1 = foreground."""
        prediction: Prediction = self(episode)
        return prediction.logits.argmax(1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD over what trains, with the poly schedule per step (method: Published training recipe)."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        poly = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** self.power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": poly, "interval": "step"}}
