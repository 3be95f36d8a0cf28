"""The LightningModule: network, losses, schedule and metrics around one episode batch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from sd_aanet.episode import Episode, Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation.metrics import FewShotIoU, episode_counts
from sd_aanet.memory import FeatureMemory
from sd_aanet.models import build_network
from sd_aanet.training.losses import LossTerms, SDAANetLoss

GIGABYTE = 1024**3


class SDAANetModule(pl.LightningModule):
    """A few-shot network in training, validation and test; all arguments are primitives, so that a checkpoint is safe to load.

    Args:
        network: arguments of `models.build_network`.
        loss: arguments of `SDAANetLoss` but `variant`, which is the network's.
        preprocess: arguments of `data.transforms.Preprocess`: what prediction must do to a picture.
        classes: the largest class id of the data set, for the metrics.
        lr: initial learning rate of SGD, decayed after every step to lr * (1 - step / steps)^power.
        momentum, weight_decay, power: of SGD and the schedule.
        remember: gigabytes of backbone features to remember (see `FeatureMemory`); 0 computes them every time.
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
        remember: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build_network(**network)
        self.loss = SDAANetLoss(variant=network.get("variant", "published"), **loss)
        self.lr, self.momentum, self.weight_decay, self.power = lr, momentum, weight_decay, power
        self.memory: FeatureMemory | None = None
        if remember:
            self.remember(remember)
        self.metrics = torch.nn.ModuleDict({"val": FewShotIoU(classes), "test": FewShotIoU(classes)})
        self.test_rows: list[Tensor] = []

    def remember(self, gigabytes: float) -> None:
        """From now on remember up to so many gigabytes of backbone features (see `FeatureMemory`)."""
        self.memory = FeatureMemory(self.network, gigabytes * GIGABYTE)

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
        self._count(episode, "val")

    def test_step(self, episode: Episode, batch_index: int) -> None:
        """Count the hits of a batch, and remember those of each episode."""
        prediction = self._count(episode, "test")
        counts = episode_counts(prediction, episode.query_mask)
        self.test_rows.append(torch.cat([episode.index[:, None], episode.class_id[:, None], counts], 1).cpu())

    def _count(self, episode: Episode, stage: str) -> Tensor:
        prediction = self(episode).logits.argmax(1)  # (B, S, S)
        self.metrics[stage].update(prediction, episode.query_mask, episode.class_id)
        return prediction

    def _log_metrics(self, stage: str) -> None:
        metric = self.metrics[stage]
        values = metric.compute()  # type: ignore[operator]
        named = {f"{stage}/{name}": value.float() for name, value in values.items()}
        self.log_dict(named, prog_bar=stage == "val")
        metric.reset()  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and FB-IoU over all validation episodes."""
        self._log_metrics("val")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD over what trains, with the poly schedule per step (method: Published training recipe)."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        poly = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** self.power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": poly, "interval": "step"}}
