"""An evaluation: a module over lists of test episodes, its figures, and pictures of what it did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from sd_aanet.checkpoint import Trained
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.episodes import EpisodeSpec
from sd_aanet.data.loader import Loader
from sd_aanet.episode import IGNORE, joined_masks
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation import results
from sd_aanet.evaluation.loading import StepDataset
from sd_aanet.evaluation.plan import ListedEpisode, dealt, plan
from sd_aanet.evaluation.results import Result
from sd_aanet.evaluation.tester import EpisodeTester, Views, answers
from sd_aanet.feature_cache import GIGABYTE
from sd_aanet.files import written_whole
from sd_aanet.pictures import EpisodeRow, episode_picture
from sd_aanet.settings import named
from sd_aanet.signals import not_as_exits
from sd_aanet.trainer import Progress, affordable, build_trainer, for_test

RESOLUTIONS = {"original": ("original",), "squashed": ("squashed",), "both": ("original", "squashed")}
"""What `resolution` may be -> where predictions are scored, the headline first."""


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


def evaluate(
    trained: Trained,
    data: EpisodeDataModule,
    settings: dict[str, Any],
    protocol: Protocol,
    out: Path,
    gigabytes: float = 8.0,
    folder: str | None = None,
) -> Result:
    """Evaluate a method over lists of test episodes; write result.json, episodes.csv, prototypes.npz and episodes.png.

    Args:
        trained: the method, on any device; put into eval mode.
        data: whose "val" images and novel classes are tested on.
        settings: of the Trainer, see `trainer_settings` and `for_test`.
        protocol: see there.
        out: the folder of the files, each of which is there whole or not at all.
        gigabytes: of memory for pictures that come again, see `EpisodeTester`.
        folder: where backbone features are kept for other runs, too, see `FeatureCache`.

    Returns:
        What result.json holds: metrics in [0, 1] as means over seeds, their spread, the scores of classes and seeds,
        every protocol switch, seconds and versions. Nothing but in the first of several processes, which writes.

    Raises:
        ConfigError: fewer episodes than processes.
    """
    resolutions = RESOLUTIONS[protocol.resolution]
    source = data.source("val")
    start = time.perf_counter()
    lists = {seed: data.test_specs(seed) for seed in range(protocol.seed, protocol.seed + protocol.seeds)}
    tester = EpisodeTester(
        trained.method.eval(),
        data.preprocess,
        len(source.classes),
        resolutions,
        protocol.views,
        data.test_batch_size,
        affordable(gigabytes, settings) * GIGABYTE,
        None if folder is None else Path(folder),
    )
    episodes = [ListedEpisode(seed, i, spec) for seed, specs in lists.items() for i, spec in enumerate(specs)]
    trainer = _test(tester, episodes, data, settings)
    if not trainer.is_global_zero:
        return {}
    seconds = time.perf_counter() - start
    rows = {name: torch.cat(some).cpu().numpy() for name, some in tester.rows.items()}  # (E * N, 8) each
    headline, *others = resolutions
    order = np.lexsort((rows[headline][:, 1], rows[headline][:, 0]))  # by list, then by place in it, then as they were
    rows = {name: some[order] for name, some in rows.items()}
    first = rows[headline][: len(lists[protocol.seed]) * data.way]
    scores = {
        name: results.summary(
            [results.of_seed(seed, specs, some[some[:, 0] == seed], source) for seed, specs in lists.items()],
            some,
            source.classes,
        )
        for name, some in rows.items()
    }
    result = {
        **scores[headline],
        "also": {name: scores[name] for name in others},
        "episodes": len(episodes),
        "confusion": results.confusion_table(tester.confusion, source.classes),
        "protocol": _switches(data, trained, protocol),
        "precision": settings["precision"],
        "seconds": round(seconds, 2),
        "episodes_per_second": round(len(episodes) / seconds, 3),
        "label": trained.method.label,
        "trains": trained.method.trains,
        "backbone": trained.method.backbone.label,
        "network": dict(trained.network),
        "training": trained.training,
        "versions": results.versions(),
    }
    (out / "result.json").unlink(missing_ok=True)  # written last: where it is, all files are of one evaluation
    tester.to(trainer.strategy.root_device)  # from which the end of a test has taken it
    with trainer.precision_plugin.forward_context():
        _draw_episodes(tester, data, lists[protocol.seed], first, out / "episodes.png")
    results.write_episodes(rows, lists, source, out)
    embeddings = torch.cat(tester.embeddings).cpu().numpy() if tester.embeddings else np.zeros((0, 0), np.float32)
    if len(embeddings) == len(order):
        results.write_prototypes(first[:, 2], embeddings[order][: len(first)], out)
    else:  # nor those of another evaluation
        (out / "prototypes.npz").unlink(missing_ok=True)
    return result


def _test(
    tester: EpisodeTester, episodes: Sequence[ListedEpisode], data: EpisodeDataModule, settings: dict[str, Any]
) -> pl.Trainer:
    """Run the tester over all episodes, in each of several processes over its share; what ran it."""
    trainer = build_trainer(for_test(settings), logger=False, enable_checkpointing=False, callbacks=[Progress()])
    if len(episodes) < trainer.world_size:
        raise ConfigError(
            f"{len(episodes)} episodes on {trainer.world_size} devices: set strategy.devices={len(episodes)} or less"
        )
    share = dealt(episodes, trainer.global_rank, trainer.world_size)
    tester.steps = plan(share, tester.most_supports(), data.test_batch_size)
    pictures = StepDataset(data.source("val"), tester.steps, data.preprocess, data.ignore_boundary)
    with not_as_exits():
        trainer.test(tester, Loader(pictures, data.workers, batch_size=None), verbose=False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the first process goes on alone
    return trainer


def _switches(data: EpisodeDataModule, trained: Trained, protocol: Protocol) -> Result:
    """Every switch of the protocol; those of the training as it was, None where that is unknown."""
    training = trained.training or {}
    seen = training.get("classes") or {}
    described = data.describe()
    return {
        "protocol": protocol.name,
        **described,
        "labels": data.labels(),
        **{name: training.get(name) for name in named("trained")},
        "classes": {**{stage: seen.get(stage) for stage in ("train", "val")}, "test": described["classes"]["test"]},
        "size": data.preprocess.size,
        "episodes": described["test_episodes"],
        "seed": protocol.seed if data.episodes_file is None else described["test_seed"],
        "seeds": protocol.seeds,
        "resolution": protocol.resolution,
        "scales": list(protocol.views.scales),
        "flip": protocol.views.flip,
    }


def _draw_episodes(
    tester: EpisodeTester, data: EpisodeDataModule, specs: Sequence[EpisodeSpec], rows: NDArray[np.int64], path: Path
) -> None:
    """The best, the median and the worst episode of a list by foreground IoU, segmented again for a picture."""
    ways = len(specs[0].classes)
    sums = rows[:, 3:5].reshape(len(specs), ways, 2).sum(1)  # of all classes of an episode
    iou = sums[:, 0] / np.maximum(sums[:, 1], 1)
    order = np.argsort(iou, kind="stable")
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    names = data.source("val").classes
    pictures = [
        draw(tester, data, specs[i], f"{name}: {', '.join(names[c - 1] for c in specs[i].classes)}, IoU {iou[i]:.2f}")
        for name, i in chosen.items()
    ]
    with written_whole(path) as temporary:
        episode_picture(pictures).save(temporary)


def draw(tester: EpisodeTester, data: EpisodeDataModule, spec: EpisodeSpec, title: str) -> EpisodeRow:
    """One test episode as a row of a picture, at the size of its own photographs; of several classes any as object."""
    source = data.source("val")
    tester.steps = plan([ListedEpisode(0, 0, spec)], supports=1, pictures=len(spec.examples))
    with torch.no_grad() if tester.method.adapts else torch.inference_mode():
        steps = StepDataset(source, tester.steps, data.preprocess)
        loaded = (steps[i].to(tester.device) for i in range(len(steps)))
        ((_, scores, prediction),) = [found for pictures in loaded for found in tester.segment(pictures)]
    image = source.image(spec.query)
    size = (image.shape[0], image.shape[1])
    truth = joined_masks([torch.from_numpy(source.mask(spec.query, c)) for c in spec.classes]).numpy()
    found = answers(data.preprocess.restore(scores[0].cpu(), size)).numpy()
    attention = data.preprocess.attention(prediction, 0, size)
    return EpisodeRow(
        title=title,
        supports=[(source.image(i), source.mask(i, c)) for i, c in spec.examples],
        query=image,
        query_mask=np.where(truth == IGNORE, IGNORE, truth > 0).astype(np.uint8),
        prediction=(found > 0).astype(np.uint8),
        attention=None if attention is None else attention.whole(),
    )
