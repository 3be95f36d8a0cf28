"""An evaluation: a module over lists of test episodes, its figures, and pictures of what it did."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation import results
from sd_aanet.evaluation.metrics import FewShotIoU
from sd_aanet.evaluation.results import Result, SeedFigures
from sd_aanet.evaluation.tester import EpisodeTester, Views
from sd_aanet.files import written_whole
from sd_aanet.models.functional import resize
from sd_aanet.pictures import EpisodeRow, episode_picture
from sd_aanet.training.build import build_trainer
from sd_aanet.training.callbacks import Progress
from sd_aanet.training.module import SDAANetModule

RESOLUTIONS = {"original": ("original",), "squashed": ("squashed",), "both": ("original", "squashed")}
"""What `resolution` may be -> where predictions are scored, the headline first."""
TRAINING_SWITCHES = ("shot", "augment", "select_on", "novel_in_train", "held_out", "val_episodes")
"""Switches of the protocol that a training has followed or not, whatever the evaluation would like."""


@dataclass(frozen=True)
class Protocol:
    """How an evaluation scores, beside what its data module knows (see `EpisodeDataModule.describe`).

    Attributes:
        name: of the preset that the switches come from.
        resolution: a key of `RESOLUTIONS`.
        seeds: how many lists of episodes, of seeds `seed`, `seed` + 1, ...; 1 where a file gives the list.
        seed: of the first one.
        views: see `Views`.
    """

    name: str
    resolution: str
    seeds: int = 1
    seed: int = 0
    views: Views = field(default_factory=Views)

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution={self.resolution!r}, expected one of {', '.join(RESOLUTIONS)}: choose one")


def evaluate(
    module: SDAANetModule, data: EpisodeDataModule, settings: dict[str, Any], protocol: Protocol, out: Path
) -> Result:
    """Evaluate a module over lists of test episodes; write result.json, episodes.csv, prototypes.npz and episodes.png.

    Args:
        module: on any device; put into eval mode.
        data: whose "val" images and novel classes are tested on.
        settings: of the Trainer, see `trainer_settings`; of several devices, one is used.
        protocol: see there.
        out: the folder of the files, each of which is there whole or not at all.

    Returns:
        What result.json holds: metrics in [0, 1] as means over seeds, their spread, the figures of classes and seeds,
        every protocol switch, seconds and versions.
    """
    resolutions = RESOLUTIONS[protocol.resolution]
    classes = data.source("val").classes
    tester = EpisodeTester(module.eval(), data.preprocess, len(classes), resolutions, protocol.views)
    devices = settings["devices"]
    single = {"devices": devices[:1] if isinstance(devices, list) else 1, "num_nodes": 1, "strategy": "auto"}
    trainer = build_trainer(settings | single, logger=False, enable_checkpointing=False, callbacks=[Progress()])
    seeds: dict[str, list[SeedFigures]] = {name: [] for name in resolutions}
    prototypes: list[NDArray[np.float32]] = []
    start = time.perf_counter()
    for seed in range(protocol.seed, protocol.seed + protocol.seeds):
        tester.start()
        data.use_test_seed(seed)
        trainer.test(tester, data, verbose=False)
        prototypes.append(torch.cat(tester.prototypes).numpy())
        for name in resolutions:
            metric = tester.metrics[name]
            assert isinstance(metric, FewShotIoU)
            seeds[name].append(results.of_seed(seed, metric, torch.cat(tester.rows[name]).numpy(), data))
    seconds = time.perf_counter() - start
    headline, *others = resolutions
    count = sum(len(one.rows) for one in seeds[headline])
    result = {
        **results.summary(seeds[headline]),
        "also": {name: results.summary(seeds[name]) for name in others},
        "episodes": count,
        "protocol": _switches(data, module, protocol),
        "precision": settings["precision"],
        "seconds": round(seconds, 2),
        "episodes_per_second": round(count / seconds, 3),
        "network": dict(module.hparams["network"]),
        "training": module.hparams.get("training"),
        "versions": results.versions(),
    }
    data.use_test_seed(protocol.seed)
    _draw_episodes(tester, data, seeds[headline][0].rows, out / "episodes.png")
    results.write_episodes(seeds, classes, out)
    results.write_prototypes(prototypes[0], out)
    return result


def _switches(data: EpisodeDataModule, module: SDAANetModule, protocol: Protocol) -> Result:
    """Every switch of the protocol; those of the training as it was, None where that is unknown."""
    training = module.hparams.get("training") or {}
    seen = training.get("classes") or {}
    described = data.describe()
    return {
        "protocol": protocol.name,
        **described,
        **{name: training.get(name) for name in TRAINING_SWITCHES},
        "classes": {**{stage: seen.get(stage) for stage in ("train", "val")}, "test": described["classes"]["test"]},
        "size": data.preprocess.size,
        "episodes": described["test_episodes"],
        "seed": protocol.seed if data.episodes_file is None else described["test_seed"],
        "seeds": protocol.seeds,
        "resolution": protocol.resolution,
        "scales": list(protocol.views.scales),
        "flip": protocol.views.flip,
    }


def _draw_episodes(tester: EpisodeTester, data: EpisodeDataModule, rows: NDArray[np.int64], path: Path) -> None:
    """The best, the median and the worst episode of a list by foreground IoU, segmented again for a picture."""
    iou = rows[:, 2] / np.maximum(rows[:, 3], 1)
    order = np.argsort(iou, kind="stable")
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    names = data.source("val").classes
    pictures = [
        draw(tester, data, int(rows[i, 0]), f"{name}: {names[rows[i, 1] - 1]}, IoU {iou[i]:.2f}")
        for name, i in chosen.items()
    ]
    with written_whole(path) as temporary:
        episode_picture(pictures).save(temporary)


def draw(tester: EpisodeTester, data: EpisodeDataModule, index: int, title: str) -> EpisodeRow:
    """One test episode as a row of a picture, at the size of its own photographs."""
    assert data.test_data is not None
    spec, source = data.test_data.spec(index), data.source("val")
    with torch.inference_mode():
        probability, prediction = tester.segment(data.test_data[index].to(tester.device))
    image = source.image(spec.query)
    size = (image.shape[0], image.shape[1])
    attention: NDArray[np.float32] | None = None
    if prediction.attention is not None:
        whole = resize(prediction.attention.float(), data.preprocess.size)[0, 0]
        restored = data.preprocess.restore(whole.cpu(), size).numpy()
        attention = (restored - restored.min()) / max(float(np.ptp(restored)), 1e-7)
    return EpisodeRow(
        title=title,
        supports=[(source.image(i), source.mask(i, spec.class_id)) for i in spec.supports],
        query=image,
        query_mask=source.mask(spec.query, spec.class_id),
        prediction=(data.preprocess.restore(probability[0].cpu(), size) > 0.5).numpy().astype(np.uint8),
        attention=attention,
    )
