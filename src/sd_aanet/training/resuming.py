"""Where a training that was interrupted goes on, and with which settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sd_aanet.backbones.weights import check_finite, safe_load, tensors
from sd_aanet.errors import CheckpointError, ConfigError
from sd_aanet.rules import check
from sd_aanet.settings import RULES, flat, read_settings
from sd_aanet.training import TRAINED

Config = dict[str, Any]
LAST = Path("checkpoints", "last.ckpt")
"""In a run's folder: from where it goes on."""
NOT_FINITE = "not_finite.json"
"""In a run's folder: the episodes of the batch whose loss was no number."""
_NEEDED = ("backbone.weights", "backbone.trainable", "backbone.norm", "optimizer.name")
"""What a training needs of settings that are checked by their owners."""


def check_resumable(resume: Path, out: Path) -> None:
    """Refuse what no training can go on from: no run's folder, or a checkpoint that is not its state."""
    path = state_of(resume)
    if path.is_file():
        checkpoint = safe_load(path)
        if "optimizer_states" not in checkpoint:
            raise CheckpointError(
                f"checkpoint '{path}' holds no state of a training: give a last.ckpt, or use checkpoint="
            )
        check_finite(tensors(checkpoint), f"checkpoint '{path}'", "start again with a smaller lr")
    elif not (out / "config.yaml").is_file():
        raise CheckpointError(f"resume='{resume}' has no {path}: give the folder of a run that was interrupted")


def state_of(resume: Path) -> Path:
    """The file that holds a training's state, of a run's folder or the file itself."""
    return resume / LAST if resume.is_dir() else resume


def start_afresh(out: Path) -> None:
    """Remove what a run left that was cut off before its first checkpoint."""
    print(f"{out.name} was cut off before its first checkpoint: it starts afresh")
    for name in ("checkpoints", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (TRAINED, NOT_FINITE):
        (out / name).unlink(missing_ok=True)


def saved_config(out: Path, given: Config) -> Config:
    """The settings of a run, all that a training needs, as `given` has them."""
    path = out / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"resume='{given['resume']}' has no {path}: give the folder of a run that was interrupted")
    saved = read_settings(path)
    needed = (*given, *_NEEDED, *(key for key, _ in flat(given) if key in RULES))
    there = {*saved, *(key for key, _ in flat(saved))}
    if missing := [key for key in needed if key not in there]:
        raise ConfigError(f"'{path}' lacks the setting {missing[0]}: give the folder that a training made")
    check(saved, RULES)
    return saved
