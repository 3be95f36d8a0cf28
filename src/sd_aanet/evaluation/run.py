"""`sd-aanet evaluate`: mIoU and FB-IoU of a checkpoint on classes it never saw."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sd_aanet.building import untrained
from sd_aanet.checkpoint import Trained, load_trained
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.transforms import Preprocess
from sd_aanet.evaluation.evaluate import Protocol, evaluate
from sd_aanet.evaluation.leakage import say_leaked
from sd_aanet.evaluation.results import Result, table, write_result
from sd_aanet.evaluation.tester import Views
from sd_aanet.files import results_in
from sd_aanet.machine import resolve_workers
from sd_aanet.settings import data_settings
from sd_aanet.trainer import for_test, is_first, silence_lightning, trainer_settings, world_size


def run(config: dict[str, Any]) -> Result:
    """Compose, evaluate, write what `evaluate` writes into `out`.

    Args:
        config: conf/evaluate.yaml as plain values.

    Raises:
        SDAANetError: whatever of it cannot work.
    """
    silence_lightning()
    settings = trainer_settings(config["strategy"], config["precision"])
    views = Views(tuple(map(float, config["scales"])), config["flip"])
    seeds = config["seeds"] if config["episodes_file"] is None else 1  # a file is one list
    protocol = Protocol(config["protocol"]["name"], config["resolution"], seeds, config["seed"], views)
    if config["checkpoint"] is None:
        pl.seed_everything(config["seed"], verbose=False)
        method, network, preprocess = untrained(config)
    else:
        trained = load_trained(config["checkpoint"], config["not_finite"])
        # A size or a resize of one's own, else what the checkpoint was trained with.
        method, network = trained.method, dict(trained.network)
        size, resize = config["size"] or trained.preprocess.size, config["resize"] or trained.preprocess.resize
        method.backbone.grid.check(size)
        preprocess = Preprocess(size, resize, method.backbone.mean, method.backbone.std)
    data = EpisodeDataModule(
        dict(config["dataset"]["source"]),
        **data_settings(config) | vars(preprocess),
        workers=resolve_workers(config["workers"], world_size(for_test(settings))),
        test_batch_size=config["batch_size"],
        test_episodes=config["episodes"],
        test_seed=config["seed"],
        select_on="none",
    )
    data.setup("test")
    if config["checkpoint"] is None:
        training = {"shipped": dict(method.shipped)} if method.shipped else None
        trained = Trained(method.eval(), network, preprocess, len(data.source("val").classes), training)
    first = is_first(for_test(settings))
    if first:
        say_leaked(trained.training, data.describe())
    out = Path(config["out"])
    with results_in(out) if first else nullcontext():
        cache = (config["cache_gb"], config["cache_dir"])
        result = evaluate(trained, data, settings, protocol, out, *cache)
        if not first:
            return {}
        if config["checkpoint"] is None:
            result["network"] |= {"backbone": network["backbone"] | {"weights": config["backbone"]["weights"]}}
            result["label"] += ", untrained" if method.trains else ""
        write_result(result, out, config["checkpoint"])
    print(table(result))
    print("\nwritten: " + ", ".join(str(out / name) for name in ("result.json", "episodes.csv", "episodes.png")))
    return result
