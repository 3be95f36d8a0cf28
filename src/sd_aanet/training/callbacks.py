"""What a training does beside its steps: random draws that depend on the step alone, and a note that it has begun."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class Begun(Callback):
    """Whether the training has begun: what a checkpoint holds of it is restored by then.

    Attributes:
        value: that.
    """

    value = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It has."""
        self.value = True


class StepSeeds(Callback):
    """Dropout as a function of (seed, step, rank), so that a resumed training draws what an uninterrupted one does.

    Args:
        seed: not negative.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch for the step."""
        entropy = np.random.SeedSequence([self.seed, trainer.global_step, trainer.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))
