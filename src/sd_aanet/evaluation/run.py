"""`sd-aanet evaluate`: mIoU and FB-IoU of a checkpoint on classes it never saw."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sd_aanet.checkpoint import load_module
from sd_aanet.evaluation.evaluate import Protocol, evaluate
from sd_aanet.evaluation.leakage import leaked_classes
from sd_aanet.evaluation.results import Result, table, write_result
from sd_aanet.evaluation.tester import Views
from sd_aanet.files import results_in
from sd_aanet.machine import resolve_workers
from sd_aanet.training.build import build_module, open_data, quiet, trainer_settings

logger = logging.getLogger(__name__)


def run(config: dict[str, Any]) -> Result:
    """Compose, evaluate, write what `evaluate` writes into `out`.

    Args:
        config: conf/evaluate.yaml as plain values.

    Raises:
        SDAANetError: whatever of it cannot work.
    """
    quiet()
    settings = trainer_settings(config["strategy"], config["precision"])
    views = Views(tuple(map(float, config["scales"])), config["flip"])
    seeds = config["seeds"] if config["episodes_file"] is None else 1  # a file is one list
    protocol = Protocol(config["protocol"]["name"], config["resolution"], seeds, config["seed"], views)
    module = None if config["checkpoint"] is None else load_module(config["checkpoint"])
    # A size or a resize of one's own, else what the checkpoint was trained with, else the data set's.
    trained = {} if module is None else dict(module.hparams["preprocess"])
    size = config["size"] or trained.get("size") or config["dataset"]["recipe"]["test_size"]
    resize = config["resize"] or trained.get("resize") or "squash"
    data = open_data(
        config["dataset"]["source"],
        **{name: config[name] for name in ("fold", "shot", "min_object_pixels", "short_classes", "order")},
        workers=resolve_workers(config["workers"]),
        ignore_boundary=config["ignore_boundary"],
        episodes_file=config["episodes_file"],
        size=size,
        resize=resize,
        test_batch_size=config["batch_size"],
        test_episodes=config["episodes"],
        test_seed=config["seed"],
        select_on="none",
    )
    data.setup("test")
    if module is None:
        pl.seed_everything(config["seed"], verbose=False)
        classes = len(data.source("val").classes)
        module = build_module(config, classes, {"size": size, "resize": resize}).eval()
    if leaked := leaked_classes(module.hparams.get("training") or {}, data.describe()):
        logger.warning("CAUTION: this checkpoint has seen %s in training: these are not few-shot results", leaked)
    out = Path(config["out"])
    with results_in(out):
        memory = (config["remember_gb"], config["remember_dir"])
        result = evaluate(module, data, settings, protocol, out, *memory) | {"checkpoint": config["checkpoint"]}
        write_result(result, out)
    print(table(result))
    print("\nwritten: " + ", ".join(str(out / name) for name in ("result.json", "episodes.csv", "episodes.png")))
    return result
