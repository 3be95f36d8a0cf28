"""How a training's checkpoints come to the disk, and what it leaves when it is asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import ModelCheckpoint

from sd_aanet.backbones.weights import safe_save
from sd_aanet.signals import raise_at_once, set_patient


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written beside the one that they replace: Lightning's own copies them over it from $TMPDIR."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write the file whole."""
        safe_save(checkpoint, Path(path))


class _Checkpoint(ModelCheckpoint):
    """One file, whose state also counts in a run's folder that has moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores of a resumed run, whose paths Lightning compares with those of now."""
        path = self.format_checkpoint_name({})
        scores = dict.fromkeys([path] if state_dict["best_k_models"] else [], state_dict["best_model_score"])
        paths = {"best_model_path": path, "kth_best_model_path": path if scores else "", "best_k_models": scores}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath})


class BestCheckpoint(_Checkpoint):
    """best.ckpt: of the best validation, or the last where there is none.

    Args:
        folder: of the file.
        monitor: what is best where it is largest.
    """

    def __init__(self, folder: Path, monitor: str | None) -> None:
        super().__init__(folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False)


class LastCheckpoint(_Checkpoint):
    """last.ckpt: at the end of each epoch, and, when SIGTERM has come, after the step or the validation's batch.

    On several devices, which would not stop at the same place, at the end of epochs alone: SIGTERM ends them at once.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        # `mode` is one that best.ckpt does not have: Lightning tells the states of the two apart by it.
        super().__init__(
            folder,
            filename="last",
            mode="min",
            save_on_train_epoch_end=True,
            save_on_exception=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on within an epoch, if it was left there; from now on Lightning looks for a SIGTERM after a step."""
        super().on_train_start(trainer, pl_module)
        loader: Any = trainer.train_dataloader
        loader.sampler.skip = trainer.global_step % len(loader) * loader.batch_size
        if trainer.world_size > 1:
            raise_at_once()
        else:
            set_patient(True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nobody looks for it any more."""
        super().on_train_end(trainer, pl_module)
        set_patient(False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what SIGTERM interrupts, unless a step is half done."""
        set_patient(False)
        loop = trainer.fit_loop.epoch_loop
        steps, validation = loop.batch_progress.current, loop.val_loop.batch_progress
        if not trainer.received_sigterm or steps.ready != steps.completed:
            return
        if trainer.validating:  # as if in its first batch: it has to begin anew, for its counts are not saved
            for counts in (validation.total, validation.current):
                counts.load_state_dict({"ready": 1, "started": 1, "processed": 0, "completed": 0})
        super().on_exception(trainer, pl_module, exception)
