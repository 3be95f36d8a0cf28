"""A training: a module on the base classes of a fold, its checkpoints and curves, and its evaluation at the end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from sd_aanet.checkpoint import load_module
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.errors import CheckpointError, ConfigError
from sd_aanet.evaluation.plots import draw_curves
from sd_aanet.evaluation.run import evaluate, table, write
from sd_aanet.files import written_whole
from sd_aanet.training.build import build_module, link_latest, open_data, quiet, trainer_settings
from sd_aanet.training.module import SDAANetModule
from sd_aanet.weights import safe_load

logger = logging.getLogger(__name__)
Config = dict[str, Any]


def run(config: Config) -> dict[str, float]:
    """`sd-aanet train`: train, evaluate the best checkpoint on the novel classes, say where everything is.

    Args:
        config: conf/train.yaml as plain values.

    Returns:
        The final metrics.

    Raises:
        SDAANetError: whatever of it cannot work.
    """
    quiet()
    out, last = Path(config["out"]), None
    if config["resume"] is not None:
        last = _last_checkpoint(Path(config["resume"]))
        out = last.parent.parent
        config = _saved_config(out)
    settings = trainer_settings(config["strategy"], config["precision"])
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data, steps = _data(config)
    module = _module(config, data)
    data.setup("fit")
    if config["test_episodes"]:
        data.setup("test")  # what cannot be evaluated should be said before the training, not after it
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "config.yaml") as path:
        OmegaConf.save(OmegaConf.create(config), path)
    log = _logger(config["logger"], out)
    best = ModelCheckpoint(
        out / "checkpoints",
        filename="best",
        monitor=None if config["select_on"] == "none" else "val/miou",
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        **settings,
        max_epochs=-(-steps // (data.episodes // data.batch_size)),
        max_steps=steps,
        logger=log,
        callbacks=_callbacks(config, best),
        gradient_clip_val=config["gradient_clip"],
        log_every_n_steps=max(1, min(10, steps // 50)),
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=None if last is None else str(last), weights_only=True)
    finally:
        _finish(log)
    seconds = time.perf_counter() - start
    if not trainer.is_global_zero:
        return {}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    draw_curves(out)
    link_latest(out)
    checkpoint = Path(best.best_model_path or best.last_model_path)
    print(f"trained {trainer.global_step} steps in {seconds:.0f} s")
    if config["test_episodes"]:
        metrics |= _evaluate(config, checkpoint, data, settings, out)
    _say(config, out, checkpoint)
    return metrics


def _data(config: Config) -> tuple[EpisodeDataModule, int]:
    """The data module, an epoch of which is a validation interval, and the number of steps."""
    for name in ("steps", "val_every"):
        if config[name] < 1:
            raise ConfigError(f"{name}={config[name]}, expected at least 1: set {name}=1 or more")
    epochs = max(1, config["steps"] // config["val_every"])
    per_epoch = config["steps"] // epochs
    devices = config["strategy"]["devices"]
    world = (devices if isinstance(devices, int) else 1) * config["strategy"]["num_nodes"]
    names = ("fold", "shot", "test_shot", "size", "resize", "augment", "batch_size", "test_batch_size", "seed")
    more = ("workers", "min_object_pixels", "novel_in_train", "select_on", "held_out", "val_episodes")
    data = open_data(
        config["dataset"]["source"],
        **{name: config[name] for name in (*names, *more)},
        episodes=per_epoch * config["batch_size"] * world,
        test_episodes=max(1, config["test_episodes"]),
        test_seed=config["seed"],
    )
    return data, per_epoch * epochs


def _module(config: Config, data: EpisodeDataModule) -> SDAANetModule:
    classes = len(data.source("train").classes)
    preprocess = {"size": config["size"], "resize": config["resize"]}
    if config["features"] not in ("compute", "remember"):
        raise ConfigError(f"features={config['features']!r}, expected compute or remember: choose one")
    remembers = config["features"] == "remember"
    if remembers and config["augment"] not in ("none", "flip"):
        raise ConfigError(
            f"features=remember with augment={config['augment']}: random views never come again; "
            "set augment=none or augment=flip"
        )
    module = build_module(
        config,
        classes,
        preprocess,
        **{name: config[name] for name in ("lr", "momentum", "weight_decay", "power")},
    )
    if remembers:
        module.remember(config["remember_gb"], config["remember_dir"], data.preprocess)
    if config["checkpoint"] is not None:
        start = load_module(config["checkpoint"]).network.state_dict()
        try:
            module.network.load_state_dict(start)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(f"checkpoint '{config['checkpoint']}' does not fit this network: {line}") from None
    return module


def _callbacks(config: Config, best: ModelCheckpoint) -> list[Callback]:
    callbacks: list[Callback] = [best, TQDMProgressBar(refresh_rate=10)]
    if config["early_stopping"] is not None:
        if config["select_on"] == "none":
            raise ConfigError("early_stopping needs a validation: set select_on=base or early_stopping=null")
        callbacks.append(EarlyStopping("val/miou", patience=config["early_stopping"], mode="max"))
    return callbacks


def _logger(config: Mapping[str, Any], out: Path) -> Logger:
    if config["name"] == "csv":
        return CSVLogger(out, name="logs")
    offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
    return WandbLogger(save_dir=out, project=config["project"], entity=config["entity"], name=out.name, offline=offline)


def _finish(log: Logger) -> None:
    """End a wandb run: without it the jobs of a multirun would share one."""
    if isinstance(log, WandbLogger):
        log.experiment.finish()


def _last_checkpoint(resume: Path) -> Path:
    path = resume / "checkpoints" / "last.ckpt" if resume.is_dir() else resume
    if not path.is_file():
        raise CheckpointError(f"resume='{resume}' has no {path}: give the folder of a run that was interrupted")
    if "optimizer_states" not in safe_load(path):
        raise CheckpointError(f"checkpoint '{path}' holds no state of a training: give a last.ckpt, or use checkpoint=")
    return path


def _saved_config(out: Path) -> Config:
    path = out / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"'{path}' does not exist: resume needs the folder that the training made")
    saved = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(saved, dict)
    return {str(key): value for key, value in saved.items()}


def _evaluate(
    config: Config, checkpoint: Path, data: EpisodeDataModule, settings: Config, out: Path
) -> dict[str, float]:
    module = load_module(checkpoint)
    if config["features"] == "remember":
        module.remember(config["remember_gb"], config["remember_dir"], data.preprocess)
    single = settings | {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    result = evaluate(module, data, single) | {"checkpoint": str(checkpoint)}
    write(result, module, data, out)
    print(f"\n{checkpoint.name} on the novel classes of fold {config['fold']}, never trained on:\n{table(result)}")
    return {f"test/{name}": result[name] for name in ("miou", "fb_iou")}


def _say(config: Config, out: Path, checkpoint: Path) -> None:
    """Where everything is, and what to try next."""
    rows = [("checkpoint", checkpoint), ("curves", out / "curves.png")]
    if config["test_episodes"]:
        rows += [("episodes", out / "episodes.png"), ("figures", out / "result.json")]
    print("\n" + "\n".join(f"{name:<12}{path}" for name, path in rows))
    print(
        "\nnext:\n"
        f"  sd-aanet evaluate checkpoint={checkpoint} dataset={config['dataset']['name']} shot=5\n"
        f"  sd-aanet predict checkpoint={checkpoint} support=[picture.jpg:mask.png] query=[other.jpg]\n"
        "  sd-aanet train fold=1 (the other classes); sd-aanet train --help (all settings)"
    )
