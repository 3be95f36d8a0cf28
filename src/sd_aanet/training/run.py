"""A training: a module on the base classes of a fold, its checkpoints and curves, and its evaluation at the end."""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.multiprocessing.spawn import ProcessRaisedException

from sd_aanet.arguments import program, setting, word
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.weights import safe_load
from sd_aanet.building import build_network, sizes
from sd_aanet.checkpoint import load_trained
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.episode_lists import write_list
from sd_aanet.errors import CheckpointError, ConfigError, SDAANetError, TrainingError, of_machine
from sd_aanet.evaluation.evaluate import Protocol, evaluate
from sd_aanet.evaluation.leakage import say_leaked, seen_classes
from sd_aanet.evaluation.results import table, write_result
from sd_aanet.files import claimed, real, results_in, short, written_whole
from sd_aanet.machine import resolve_workers
from sd_aanet.models.base import Method
from sd_aanet.rules import check
from sd_aanet.settings import data_settings, named
from sd_aanet.signals import not_as_exits
from sd_aanet.trainer import (
    Progress,
    affordable,
    build_trainer,
    is_first,
    silence_lightning,
    trainer_settings,
    world_size,
)
from sd_aanet.training import TRAINED
from sd_aanet.training.callbacks import Begun, StepSeeds
from sd_aanet.training.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpoints
from sd_aanet.training.loggers import build_loggers, finish
from sd_aanet.training.module import FewShotModule
from sd_aanet.training.optimizers import RULES as OPTIMIZER_RULES
from sd_aanet.training.plots import draw_curves
from sd_aanet.training.resuming import LAST, NOT_FINITE, check_resumable, saved_config, start_afresh, state_of

logger = logging.getLogger(__name__)
Config = dict[str, Any]


def run(config: Config) -> dict[str, float]:
    """`sd-aanet train`: train, evaluate the best checkpoint on the novel classes, say where everything is.

    Args:
        config: conf/train.yaml as plain values.

    Returns:
        The final metrics.

    Raises:
        SDAANetError: whatever of it cannot work. A run that made no step leaves no file behind.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; `resume` goes on from the last checkpoint.
    """
    silence_lightning()
    out, resume = Path(config["out"]), None
    if config["resume"] is not None:
        resume = Path(config["resume"])
        out = resume if resume.is_dir() else resume.parent.parent
        check_resumable(resume, out)
        config = saved_config(out, config)
        logger.info("resuming with the settings of %s; others given now do not count", out / "config.yaml")
    elif config["checkpoint"] is not None:
        config = config | {"checkpoint": real(config["checkpoint"])}  # also where it starts afresh
    if not _is_first(config):
        return _run(config, out, resume)
    with claimed(out):
        if resume is None and (out / "config.yaml").exists():
            raise ConfigError(
                f"out='{out}' holds a training already: choose another folder, or go on with {setting('resume', out)}"
                + ("" if (out / LAST).is_file() else ", which starts it afresh: it made no checkpoint")
            )
        if resume is None and (out / "result.json").exists():
            raise ConfigError(f"out='{out}' holds the scores of an evaluation already: choose another folder")
        try:
            return _run(config, out, resume)
        except KeyboardInterrupt:
            if config.get("sweep") is None and (out / "config.yaml").is_file():
                logger.info("go on with: %s train %s", program(), setting("resume", short(out)))
            raise


def _run(config: Config, out: Path, resume: Path | None) -> dict[str, float]:
    """`run` in a folder that is this run's, with settings that count."""
    last = state_of(resume) if resume is not None and state_of(resume).is_file() else None
    if resume is not None and last is None and _is_first(config):
        start_afresh(out)
    settings = trainer_settings(config["strategy"], config["precision"], config["num_nodes"])
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    method, network = build_network(config)
    data = _data(config, method.backbone)
    ended = last is not None and (out / TRAINED).is_file()  # also before its last step, by early stopping
    metrics = {} if ended else _train(config, method, network, data, settings, last, out)
    if not _is_first(config):
        return {}
    checkpoint = out / "checkpoints" / "best.ckpt"
    if config["test_episodes"]:
        alone = settings | {"strategy": "auto"}  # the other processes have ended
        metrics |= _evaluate(config, checkpoint, data, alone, out)
    _say(config, data.source("val").folds, out, checkpoint)
    return metrics


def _train(
    config: Config,
    method: Method,
    network: Config,
    data: EpisodeDataModule,
    settings: Config,
    last: Path | None,
    out: Path,
) -> dict[str, float]:
    """Train to the end, from the checkpoint `last` on if one is given; the metrics, on the first device alone."""
    epochs, per_epoch = _epochs(config)
    module = _module(config, method, network, data, settings)
    data.setup("fit")
    if config["test_episodes"]:
        data.setup("test")  # what cannot be evaluated should be said before the training, not after it
    loggers = build_loggers(config["logger"], out, config)
    trainer = build_trainer(
        settings,
        max_epochs=epochs,  # and no max_steps, with which Lightning takes a finished epoch for one to resume
        logger=loggers,
        callbacks=[*_checkpoints(config, out / "checkpoints"), *_callbacks(config), begun := Begun()],
        plugins=[WholeCheckpoints()],
        gradient_clip_val=config["gradient_clip"],
        log_every_n_steps=max(1, min(10, epochs * per_epoch // 50)),
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()

    def worth_keeping(error: BaseException) -> bool:
        # Of ddp_spawn's processes a folder tells what they did; what was only stopped can go on.
        kept = trainer.global_step > 0 or (out / "checkpoints").exists() or isinstance(error, KeyboardInterrupt)
        return not isinstance(error, CheckpointError) and (kept or (out / NOT_FINITE).exists())

    first, own = _is_first(config), f"logs/version_{loggers[0].version}"
    with results_in(out, worth_keeping, also=("logs", "wandb", own)) if first else nullcontext():
        if first:
            with written_whole(out / "config.yaml") as path:
                OmegaConf.save(OmegaConf.create(config), path)
        try:
            with not_as_exits():
                trainer.fit(module, data, ckpt_path=None if last is None else str(last), weights_only=True)
        except TrainingError as error:
            assert data.train_data is not None
            specs = [data.train_data.spec(index, epoch) for epoch, index in error.places]
            line = f"{error}; " + (
                f"{short(out / LAST)} is of before" if (out / LAST).is_file() else "no checkpoint yet"
            )
            if specs:
                about = {"dataset": data.source("train").name, "split": "train", "step": error.step}
                write_list(out / NOT_FINITE, data.source("train"), specs, about)
                line += f"; the episodes are in {short(out / NOT_FINITE)}"
            raise TrainingError(line) from error
        except ProcessRaisedException as error:  # ddp_spawn: a process of its own, and its traceback as text
            kind, _, line = str(error).strip().splitlines()[-1].partition(": ")
            if kind.startswith("sd_aanet.errors."):
                raise SDAANetError(line) from error
            raise
        except Exception as error:
            if last is None or begun.value or isinstance(error, SDAANetError) or of_machine(error):
                raise
            line = " ".join(str(error).split())[:200]  # Lightning and torch raise nearly anything for an odd state
            raise CheckpointError(
                f"checkpoint '{last}' is not the state of this training ({type(error).__name__}: {line}): start again "
                "in another folder"
            ) from error
        finally:
            finish(loggers)
    seconds = time.perf_counter() - start
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # one device evaluates, and must not wait for the others
    if not trainer.is_global_zero:
        return {}
    draw_curves(out)
    link_latest(out)
    done = safe_load(out / LAST)["global_step"]  # with ddp_spawn the trainer here took none
    print(f"trained {done} steps in {seconds:.0f} s")
    with written_whole(out / TRAINED) as path:
        path.write_text(json.dumps({"steps": done}) + "\n")
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def link_latest(out: Path) -> None:
    """Make runs/latest point to this run, if it is in runs/, so that the next command finds it."""
    root = Path("runs").resolve()
    if root in out.resolve().parents:
        temporary = root / f".latest.{out.name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(out.resolve().relative_to(root), target_is_directory=True)
        temporary.replace(root / "latest")


def _is_first(config: Config) -> bool:
    """Whether this process is the first of those that train together."""
    return is_first(config["strategy"], config["num_nodes"])


def _epochs(config: Config) -> tuple[int, int]:
    """The number of epochs, each a validation interval, and of the steps in one."""
    epochs = max(1, config["steps"] // config["val_every"])
    return epochs, config["steps"] // epochs


def _data(config: Config, backbone: Backbone) -> EpisodeDataModule:
    world = world_size(config["strategy"], config["num_nodes"])
    size, test_size = sizes(config, backbone.grid)
    return EpisodeDataModule(
        dict(config["dataset"]["source"]),
        **data_settings(config),
        size=size,
        test_size=test_size,
        mean=backbone.mean,
        std=backbone.std,
        workers=resolve_workers(config["workers"], world_size(config["strategy"])),
        episodes=_epochs(config)[1] * config["batch_size"] * world,
        test_episodes=max(1, config["test_episodes"]),
        test_seed=config["seed"],
    )


def _module(
    config: Config, method: Method, network: Config, data: EpisodeDataModule, settings: Config
) -> FewShotModule:
    if not method.trains:
        raise ConfigError(
            f"model={network['method']} has nothing to train: run sd-aanet evaluate checkpoint=null "
            f"model={network['method']}, or choose another model"
        )
    method.check_batch(config["batch_size"])
    check(config["optimizer"], OPTIMIZER_RULES, "optimizer.", {*OPTIMIZER_RULES, "lr"})
    caches = config["features"] == "cache"
    if caches and config["augment"] not in ("none", "flip"):
        raise ConfigError(
            f"features=cache with augment={config['augment']}: random views never come again; "
            "set augment=none or augment=flip"
        )
    described = data.describe()
    start = None if config["checkpoint"] is None else load_trained(config["checkpoint"])
    seen = () if start is None else seen_classes(start.training or {}, described["dataset"])
    trained_on = dict.fromkeys([*described["classes"]["train"], *seen])  # what the weights know, they keep
    module = FewShotModule(
        network,
        {name: list(v) if isinstance(v, tuple) else v for name, v in vars(data.preprocess).items()},
        len(data.source("train").classes),
        optimizer=dict(config["optimizer"]) | {"lr": config["lr"]},
        training={
            "dataset": described["dataset"],
            **{name: config[name] for name in named("recorded")},
            "size": data.size,
            "classes": {"train": list(trained_on), "val": described["classes"]["val"]},
        },
    )
    module.method.load_state_dict(method.state_dict())
    if caches:
        module.cache_features(affordable(config["cache_gb"], settings), config["cache_dir"])
    if start is not None:
        try:
            module.method.load_state_dict(start.method.state_dict())
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(f"checkpoint '{config['checkpoint']}' does not fit this network: {line}") from None
    return module


def _checkpoints(config: Config, folder: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """best.ckpt and last.ckpt. Lightning's own `save_last` would write last.ckpt only when best.ckpt changes."""
    monitor = None if config["select_on"] == "none" else "val/miou"
    return BestCheckpoint(folder, monitor), LastCheckpoint(folder)


def _callbacks(config: Config) -> list[Callback]:
    callbacks: list[Callback] = [Progress(), StepSeeds(config["seed"])]
    if config["early_stopping"] is not None:
        if config["select_on"] == "none":
            raise ConfigError("early_stopping needs a validation: set select_on=base or early_stopping=null")
        callbacks.append(EarlyStopping("val/miou", patience=config["early_stopping"], mode="max"))
    return callbacks


def _evaluate(
    config: Config, checkpoint: Path, data: EpisodeDataModule, settings: Config, out: Path
) -> dict[str, float]:
    protocol = Protocol(config["protocol"]["name"], config["resolution"], config["seeds"], config["seed"])
    cache = (config["cache_gb"], config["cache_dir"])
    trained = load_trained(checkpoint)
    say_leaked(trained.training, data.describe())
    result = evaluate(trained, data, settings, protocol, out, *cache)
    write_result(result, out, str(checkpoint))
    print(f"\n{checkpoint.name} on the novel classes of fold {config['fold']}, never trained on:\n{table(result)}")
    return {f"test/{name}": result[name] for name in ("miou", "fb_iou")}


def _say(config: Config, folds: int, out: Path, checkpoint: Path) -> None:
    """Where everything is, and, outside a sweep, what to try next, such as the next of the data set's folds."""
    rows = {
        "checkpoint": checkpoint,
        "curves": out / "curves.png",
        "episodes": out / "episodes.png",
        "scores": out / "result.json",
    }
    print("\n" + "\n".join(f"{name:<12}{short(path)}" for name, path in rows.items() if path.is_file()))
    if config.get("sweep") is not None:
        return  # the sweep says it once, at its end
    root = config["dataset"].get("root")
    data = setting("dataset", config["dataset"]["name"]) + (f" {setting('dataset.root', root)}" if root else "")
    command, fold, trained = program(), config["fold"], setting("checkpoint", short(checkpoint))
    ways = f" way={config['way']}" if config["way"] > 1 else ""
    another = f"{command} train {data} fold={(fold + 1) % folds}{ways} (other novel classes); " if folds > 1 else ""
    print(
        "\nnext:\n"
        f"  {command} evaluate {trained} {data} fold={fold}{ways} shot=5\n"
        f"  {command} predict {trained} {word('support=[picture.jpg:mask.png]')} query=other.jpg\n"
        f"  {another}{command} train --help (all settings)"
    )
