"""An evaluation: a module over a list of test episodes, its figures per class, and pictures of what it did."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from numpy.typing import NDArray
from omegaconf import OmegaConf

import sd_aanet
from sd_aanet.checkpoint import load_module
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.files import results_in, written_whole
from sd_aanet.pictures import EpisodeRow, episode_picture
from sd_aanet.training.build import build_module, build_trainer, open_data, quiet, trainer_settings
from sd_aanet.training.callbacks import Progress
from sd_aanet.training.module import SDAANetModule

logger = logging.getLogger(__name__)
Result = dict[str, Any]


def run(config: dict[str, Any]) -> Result:
    """`sd-aanet evaluate`: compose, evaluate, write result.json and episodes.png into `out`.

    Args:
        config: conf/evaluate.yaml as plain values.

    Raises:
        SDAANetError: whatever of it cannot work.
    """
    quiet()
    settings = trainer_settings(config["strategy"], config["precision"])
    module = None if config["checkpoint"] is None else load_module(config["checkpoint"])
    _warn_of_known_classes(config)
    # A size or a resize of one's own, else what the checkpoint was trained with, else the data set's.
    trained = {} if module is None else dict(module.hparams["preprocess"])
    size = config["size"] or trained.get("size") or config["dataset"]["recipe"]["size"]
    resize = config["resize"] or trained.get("resize") or "squash"
    data = open_data(
        config["dataset"]["source"],
        fold=config["fold"],
        shot=config["shot"],
        size=size,
        resize=resize,
        test_batch_size=config["batch_size"],
        test_episodes=config["episodes"],
        test_seed=config["seed"],
        workers=config["workers"],
        min_object_pixels=config["min_object_pixels"],
        select_on="none",
    )
    data.setup("test")
    classes = len(data.source("val").classes)
    if module is None:
        pl.seed_everything(config["seed"], verbose=False)
        module = build_module(config, classes, {"size": size, "resize": resize}).eval()
    if config["features"] == "remember":
        module.remember(config["remember_gb"], config["remember_dir"], data.preprocess)
    out = Path(config["out"])
    with results_in(out):
        result = evaluate(module, data, settings) | {"checkpoint": config["checkpoint"]}
        write(result, module, data, out)
    print(table(result))
    print(f"\nwritten: {out / 'result.json'}, {out / 'episodes.png'}")
    return result


def _warn_of_known_classes(config: dict[str, Any]) -> None:
    """Say it where the checkpoint's run, if it lies in one's folder, trained on what is to be novel."""
    run_config = Path(config["checkpoint"] or "").parent.parent / "config.yaml"
    if config["checkpoint"] is None or not run_config.is_file():
        return
    trained = OmegaConf.load(run_config)
    name, fold = OmegaConf.select(trained, "dataset.name"), OmegaConf.select(trained, "fold")
    if name == config["dataset"]["name"] and fold != config["fold"]:
        logger.warning(
            "CAUTION: this checkpoint was trained for fold=%s of %s: it has seen classes of fold=%s, and the figures "
            "below are none of few-shot segmentation",
            fold,
            name,
            config["fold"],
        )


def evaluate(module: SDAANetModule, data: EpisodeDataModule, settings: dict[str, Any]) -> Result:
    """Figures of a module over the test episodes of a data module.

    Args:
        module: on any device; put into eval mode.
        data: set up for "test".
        settings: of the Trainer, see `trainer_settings`; of several devices, one is used.

    Returns:
        Metrics in [0, 1], per-class figures, `rows` (one an episode: index, class id, foreground intersection and
        union, background intersection and union, in pixels), every protocol switch, seconds and versions.
    """
    module.eval()
    metric = module.test_metric
    metric.reset()
    module.test_rows.clear()
    devices = settings["devices"]
    single = {"devices": devices[:1] if isinstance(devices, list) else 1, "num_nodes": 1, "strategy": "auto"}
    trainer = build_trainer(settings | single, logger=False, enable_checkpointing=False, callbacks=[Progress()])
    start = time.perf_counter()
    trainer.test(module, data, verbose=False)
    seconds = time.perf_counter() - start
    rows = torch.cat(module.test_rows).numpy()
    rows = rows[np.argsort(rows[:, 0])]
    names = data.source("val").classes
    iou, episodes = metric.class_iou(), metric.episodes
    return {
        **{name: float(value) for name, value in metric.compute().items()},
        "classes": {names[c - 1]: {"iou": float(iou[c]), "episodes": int(episodes[c])} for c in data.classes().test},
        "episodes": len(rows),
        "protocol": data.describe() | {"resolution": f"{data.resize} to {data.size}", "ignore_boundary": True},
        "precision": settings["precision"],
        "seconds": round(seconds, 2),
        "episodes_per_second": round(len(rows) / seconds, 3),
        "network": dict(module.hparams["network"]),
        "versions": versions(),
        "rows": rows.tolist(),
    }


def versions() -> dict[str, str]:
    """What made a result: this package, its main dependencies, Python and the machine's kind."""
    return {
        "sd_aanet": sd_aanet.__version__,
        "torch": torch.__version__,
        "pytorch_lightning": version("pytorch-lightning"),
        "torchmetrics": torchmetrics.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def write(result: Result, module: SDAANetModule, data: EpisodeDataModule, out: Path) -> None:
    """Write result.json and a picture of the best, median and worst episodes, each whole or not at all."""
    picture = episode_picture(_rows(result, module, data))
    with written_whole(out / "episodes.png") as path:
        picture.save(path)
    with written_whole(out / "result.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


def _rows(result: Result, module: SDAANetModule, data: EpisodeDataModule) -> list[EpisodeRow]:
    """The best, the median and the worst episode by foreground IoU, segmented again for the picture."""
    rows = np.asarray(result["rows"])
    iou = rows[:, 2] / np.maximum(rows[:, 3], 1)
    order = np.argsort(iou, kind="stable")
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    names = data.source("val").classes
    return [
        draw(module, data, int(rows[i, 0]), f"{name}: {names[rows[i, 1] - 1]}, IoU {iou[i]:.2f}")
        for name, i in chosen.items()
    ]


def draw(module: SDAANetModule, data: EpisodeDataModule, index: int, title: str) -> EpisodeRow:
    """One test episode as a row of a picture, at the size of its own photographs."""
    assert data.test_data is not None
    spec, source = data.test_data.spec(index), data.source("val")
    episode = data.test_data[index].to(module.device)
    with torch.inference_mode():
        foreground = (episode.support_mask == 1).to(episode.query.dtype)
        features = module.network.extract(episode.query, episode.support, foreground)
        prediction = module.network.head(*features, foreground)
    image = source.image(spec.query)
    size = (image.shape[0], image.shape[1])
    probability = data.preprocess.restore(prediction.logits.float().softmax(1)[0, 1].cpu(), size)
    attention: NDArray[np.float32] | None = None
    if prediction.attention is not None:
        side = (data.size, data.size)
        whole = torch.nn.functional.interpolate(prediction.attention.float(), side, mode="bilinear")
        restored = data.preprocess.restore(whole[0, 0].cpu(), size).numpy()
        attention = (restored - restored.min()) / max(float(np.ptp(restored)), 1e-7)
    return EpisodeRow(
        title=title,
        supports=[(source.image(i), source.mask(i, spec.class_id)) for i in spec.supports],
        query=image,
        query_mask=source.mask(spec.query, spec.class_id),
        prediction=(probability > 0.5).numpy().astype(np.uint8),
        attention=attention,
    )


def table(result: Result) -> str:
    """The figures as a table for the terminal, with the protocol under it."""
    lines = [f"{'class':<16}{'episodes':>9}{'IoU':>8}"]
    for name, values in result["classes"].items():
        lines.append(f"{name:<16}{values['episodes']:>9}{values['iou']:>8.3f}")
    lines.append(f"{'mIoU':<16}{result['episodes']:>9}{result['miou']:>8.3f}")
    lines.append(f"{'FB-IoU':<16}{result['episodes']:>9}{result['fb_iou']:>8.3f}")
    protocol = result["protocol"]
    shown = ("dataset", "fold", "test_shot", "test_seed", "resolution", "min_object_pixels", "ignore_boundary")
    lines.append("protocol: " + ", ".join(f"{key} {protocol[key]}" for key in shown if key in protocol))
    lines.append(f"{result['seconds']:.0f} s, {result['episodes_per_second']:.2f} episodes/s, {result['precision']}")
    return "\n".join(lines)
