"""Where a training's metrics go."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

logger = logging.getLogger(__name__)


def build_loggers(chosen: dict[str, Any], out: Path, config: dict[str, Any]) -> list[Logger]:
    """metrics.csv always, for the curves; Weights & Biases if chosen, offline where there is no key.

    Args:
        chosen: conf/logger/*.yaml.
        out: the run's folder.
        config: the whole configuration, which wandb shows.
    """
    loggers: list[Logger] = [CSVLogger(out, name="logs")]
    if chosen["name"] == "wandb":
        offline = not _has_wandb_key()
        if offline:
            logger.info("wandb is offline, there being no key: upload with wandb sync %s/wandb/offline-run-*", out)
        out.mkdir(parents=True, exist_ok=True)  # else wandb writes elsewhere
        loggers.append(
            WandbLogger(
                save_dir=out,
                name=out.name,
                project=chosen.get("project"),
                entity=chosen.get("entity"),
                group=config.get("sweep"),
                config=config,
                # Not offline=True, which sets a variable of the environment for all later runs.
                mode="offline" if offline else None,
            )
        )
    return loggers


def finish(loggers: list[Logger]) -> None:
    """End a wandb run: without it the jobs of a multirun would share one."""
    for log in loggers:
        if isinstance(log, WandbLogger):
            log.experiment.finish()


def _has_wandb_key() -> bool:
    """Whether wandb would find a key, or is told its mode; asking wandb itself would ask its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
