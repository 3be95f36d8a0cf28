"""`sd-aanet episodes`: write the list of episodes that an evaluation draws, for others to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.episode_lists import write_list
from sd_aanet.settings import data_settings, named


def run(config: dict[str, Any]) -> Path:
    """Draw the list and write it.

    Args:
        config: conf/episodes.yaml as plain values.

    Raises:
        SDAANetError: whatever of it cannot work.
    """
    data = EpisodeDataModule(
        dict(config["dataset"]["source"]),
        **data_settings(config),
        test_seed=config["seed"],
        test_episodes=config["episodes"],
        select_on="none",
    )
    specs = data.test_specs(config["seed"])
    source, out = data.source("val"), Path(config["out"])
    about = {"dataset": source.name, "split": source.split, **{name: config[name] for name in named("listed")}}
    digest = write_list(out, source, specs, about)
    classes = {c for spec in specs for c in spec.classes}
    print(f"written: {out}, {len(specs)} episodes of {len(classes)} classes, digest {digest[:16]}")
    return out
