"""Results of an evaluation: scores over seeds, the protocol beside them, and the files that hold them."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor

import sd_aanet
from sd_aanet.data.episode_lists import digest
from sd_aanet.data.episodes import EpisodeSpec
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.evaluation.statistics import spread
from sd_aanet.files import real, written_whole
from sd_aanet.metrics import class_iou, class_sums, scores
from sd_aanet.settings import named

Result = dict[str, Any]
COUNTS = ("intersection", "union", "background_intersection", "background_union", "object")
COLUMNS = ("resolution", "seed", "index", "class_id", "class", "query", *COUNTS)
"""Of episodes.csv: an episode a row and resolution, its counts in pixels; `object` is the true foreground."""
SCORES = ("miou", "fb_iou", "foreground_iou", "background_iou")


def of_seed(seed: int, specs: Sequence[EpisodeSpec], rows: NDArray[np.int64], source: ImageSource) -> Result:
    """The scores of a list of episodes at one resolution, in [0, 1], of each class by name, too; and its digest.

    Args:
        seed: of the list.
        specs: its episodes.
        rows: (E * N, 8) int64: seed, index, class id, and `episode_counts`.
        source: the images.
    """
    sums, episodes = class_sums(torch.from_numpy(rows[:, 3:]), torch.from_numpy(rows[:, 2]), len(source.classes))
    iou, there = class_iou(sums, episodes), torch.nonzero(episodes)[:, 0].tolist()
    return {
        "seed": seed,
        "episodes": digest(source, specs),
        **{name: float(value) for name, value in scores(sums, episodes).items()},
        "classes": {source.classes[c - 1]: float(iou[c]) for c in there},
    }


def summary(seeds: Sequence[Result], rows: NDArray[np.int64], classes: Sequence[str]) -> Result:
    """Means over seeds, their spread, and each seed's own scores.

    Args:
        seeds: of each list of episodes, see `of_seed`.
        rows: of all of them.
        classes: the names of classes 1..C.
    """
    means = {name: float(np.mean([s[name] for s in seeds])) for name in SCORES}
    episodes = np.bincount(rows[:, 2], minlength=len(classes) + 1)[1:].tolist()
    of_class = {name: [s["classes"][name] for s in seeds if name in s["classes"]] for name in classes}
    return {
        **means,
        "spread": {n: spread([s[n] for s in seeds]) for n in ("miou", "fb_iou")} if len(seeds) > 1 else None,
        "classes": {
            name: {"iou": float(np.mean(of_class[name])), "episodes": count}
            for name, count in zip(classes, episodes, strict=True)
            if count
        },
        "seeds": seeds,
    }


def confusion_table(pixels: Tensor | None, classes: Sequence[str]) -> Result | None:
    """Shares of the pixels of each class that were taken for which, see `metrics.confusion`; None without pixels."""
    if pixels is None:
        return None
    there = [c for c in range(len(pixels)) if c == 0 or pixels[c].any()]
    kept = pixels[there][:, there].double().cpu()
    shares = kept / kept.sum(1, keepdim=True).clamp(min=1)
    names = ["background", *(classes[c - 1] for c in there[1:])]
    return {"classes": names, "shares": [[round(share, 6) for share in row] for row in shares.tolist()]}


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


def write_result(result: Result, out: Path, checkpoint: str | None) -> None:
    """Write result.json, with the path of the checkpoint."""
    path = None if checkpoint is None else real(checkpoint)
    with written_whole(out / "result.json") as file:
        file.write_text(json.dumps(result | {"checkpoint": path}, indent=1) + "\n", encoding="utf-8")


def write_episodes(
    rows: Mapping[str, NDArray[np.int64]], lists: Mapping[int, Sequence[EpisodeSpec]], source: ImageSource, out: Path
) -> None:
    """Write episodes.csv: the counts of every episode, see `of_seed`, at each resolution; `lists` by their seeds."""
    with written_whole(out / "episodes.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for resolution, some in rows.items():
            for seed, index, class_id, *counts in some.tolist():
                name, query = source.classes[class_id - 1], source.key(lists[seed][index].query)
                writer.writerow([resolution, seed, index, class_id, name, query, *counts])


def write_prototypes(class_id: NDArray[np.int64], prototypes: NDArray[np.float32], out: Path) -> None:
    """Write prototypes.npz from (N,) class ids and (N, C) prototypes."""
    with written_whole(out / "prototypes.npz") as path:
        np.savez_compressed(path, class_id=class_id, prototype=prototypes)


def table(result: Result) -> str:
    """The scores as a table for the terminal, with the protocol under it."""
    lines = [f"{'class':<16}{'episodes':>9}{'IoU':>8}"]
    for name, values in result["classes"].items():
        lines.append(f"{name:<16}{values['episodes']:>9}{values['iou']:>8.3f}")
    for name, title in (("miou", "mIoU"), ("fb_iou", "FB-IoU")):
        lines.append(f"{title:<16}{result['episodes']:>9}{result[name]:>8.3f}{_spread(result, name)}")
    for resolution, other in result["also"].items():
        lines.append(f"{resolution}: mIoU {other['miou']:.3f}, FB-IoU {other['fb_iou']:.3f}")
    protocol = result["protocol"]
    switches = ", ".join(f"{name} {protocol[name]}" for name in ("dataset", *named("shown")))
    lines.append(f"protocol {protocol['protocol']}: {switches}")
    lines.append(f"{result['seconds']:.0f} s, {result['episodes_per_second']:.2f} episodes/s, {result['precision']}")
    return "\n".join(lines)


def _spread(result: Result, name: str) -> str:
    if result["spread"] is None:
        return ""
    low, high = result["spread"][name]["interval"]
    return f"   sd {result['spread'][name]['sd']:.3f}, 95 % [{low:.3f}, {high:.3f}] over {len(result['seeds'])} seeds"
