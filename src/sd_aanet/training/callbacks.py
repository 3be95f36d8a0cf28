"""Random draws of a training that depend on the step alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


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
