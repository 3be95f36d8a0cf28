"""Results in the layout that trainings and evaluations leave, made up from a seed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
COLUMNS = (
    *("resolution", "seed", "index", "class_id", "class", "query", "intersection", "union"),
    *("background_intersection", "background_union", "object"),
)
AREA = 500 * 375
LOSSES = {"main": 0.7, "auxiliary": 0.75, "distillation": 0.002, "support": 0.6}
"""Terms of a training's loss, and where they begin."""


def novel(dataset: str, fold: int) -> dict[int, str]:
    """Class ids and names of a fold: four folds, those of COCO interleaved."""
    names = COCO if dataset == "coco20i" else VOC
    ids = [c for c in range(1, len(names) + 1) if ((c - 1) % 4 if dataset == "coco20i" else (c - 1) // 5) == fold]
    return {c: names[c - 1] for c in ids}


def make_run(
    folder: Path,
    fold: int = 0,
    shot: int = 1,
    train_seed: int | None = 0,
    train_shot: int | None = None,
    dataset: str = "pascal5i",
    episodes: int = 40,
    seeds: Sequence[int] = (0, 1),
    also: bool = False,
    steps: int = 450,
    companions: bool = True,
    config: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    label: str = "SD-AANet (published)",
    losses: Mapping[str, float] = LOSSES,
) -> dict[str, Any]:
    """Write a job's folder: result.json, and with `companions` episodes, prototypes and the curves of a training.

    Args:
        train_seed: None for a network without a training.
        config: of config.yaml; None for none.
        network, protocol: entries that differ from the usual ones.
        label: what the method calls itself.
        losses: of a training, see `LOSSES`.

    Returns:
        The content of result.json.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng([fold, shot, train_seed or 0, len(dataset), len(network or ()), len(protocol or ())])
    classes = novel(dataset, fold)
    skill = {c: float(random.uniform(0.25, 0.8)) + 0.04 * (shot > 1) for c in classes}
    resolutions = {"original": 1, "squashed": 2} if also else {"original": 1}
    rows = {name: _rows(random, name, side, seeds, episodes, classes, skill) for name, side in resolutions.items()}
    training = {"dataset": dataset, "fold": fold, "shot": train_shot or shot, "seed": train_seed, "steps": steps}
    training |= {"select_on": "base", "classes": {"train": [], "val": []}}
    if train_seed is None:
        training = None
    result: dict[str, Any] = {
        **_scores(rows["original"], seeds),
        "also": {"squashed": _scores(rows["squashed"], seeds)} if also else {},
        "episodes": episodes * len(seeds),
        "checkpoint": None if train_seed is None else str(folder / "checkpoints/best.ckpt"),
        "protocol": {
            **{"protocol": "strict", "dataset": dataset, "fold": fold, "folds": 4, "way": 1, "test_shot": shot},
            **{"episodes": episodes, "episodes_file": None},
            **{
                "seeds": len(seeds),
                "seed": seeds[0],
                "resolution": "both" if also else "original",
                "ignore_boundary": True,
            },
            **{"min_object_pixels": 2048, "novel_in_train": "background", "select_on": "base", "order": "classes"},
            **{"size": 225, "resize": "squash", "scales": [1.0], "flip": False},
            "classes": {"train": [], "val": [], "test": list(classes.values())},
            **(protocol or {}),
        },
        "confusion": None,
        "label": label,
        "trains": (network or {}).get("method") != "prototype",
        "backbone": "ResNet-50",
        "network": {
            **{"method": "sd_aanet", "variant": "published", "sdpm": True, "saam": True, "prior": True},
            "backbone": {"name": "resnet50", "trainable": False, "norm": "frozen", "high": None},
            **{"dropout": 1.0, "bins": [1.0, 0.5, 0.25, 0.125], "loss": {"alpha": 50.0}},
            **(network or {}),
        },
        "training": training,
        "precision": "32-true",
        "seconds": 12.3,
        "episodes_per_second": 81.0,
        "versions": {"sd_aanet": "0.1.0", "torch": "2.13.0"},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    if config is not None:
        (folder / "config.yaml").write_text(json.dumps(config))
    if companions:
        _write_episodes(folder / "episodes.csv", [row for part in rows.values() for row in part])
        _write_prototypes(folder / "prototypes.npz", random, rows["original"], seeds[0])
        if train_seed is not None:
            write_metrics(folder, random, steps, losses)
    return result


def make_sweep(
    folder: Path,
    folds: Sequence[int] = (0, 1, 2, 3),
    shots: Sequence[int] = (1, 5),
    train_seeds: Sequence[int] = (0,),
    **more: Any,
) -> dict[tuple[int, int, int], dict[str, Any]]:
    """A job for each fold, shot and seed of a training, in folders as a sweep names them."""
    jobs = [(fold, shot, seed) for fold in folds for shot in shots for seed in train_seeds]
    return {
        (fold, shot, seed): make_run(
            folder / f"{number}_fold{fold}_shot{shot}_seed{seed}", fold=fold, shot=shot, train_seed=seed, **more
        )
        for number, (fold, shot, seed) in enumerate(jobs)
    }


def write_metrics(
    folder: Path, random: np.random.Generator, steps: int, losses: Mapping[str, float] = LOSSES, every: int = 9
) -> None:
    """logs/version_0/metrics.csv of a training: losses every so many steps, ten validations."""
    names = ("total", *losses, "lr")
    header = ["epoch", "step", *(f"train/{name}" for name in names), "val/miou", "val/fb_iou"]
    lines = []
    for step in range(every - 1, steps, every):
        fall = 0.3 + 0.7 * float(np.exp(-4 * step / steps))
        terms = [fall * start * float(random.uniform(0.8, 1.2)) for start in losses.values()]
        weights = {"distillation": 50, "support": 0.5}
        total = sum(weights.get(name, 1) * term for name, term in zip(losses, terms, strict=True))
        lines.append([0, step, total, *terms, 0.1 * (1 - step / steps) ** 0.9, "", ""])
    level = float(random.uniform(0.4, 0.55))
    for part in range(1, 11):
        miou = level * (1 - float(np.exp(-part / 2))) + float(random.normal(0, 0.01))
        lines.append([part - 1, part * steps // 10 - 1, *[""] * len(names), miou, 0.3 + miou * 0.8])
    path = folder / "logs/version_0/metrics.csv"
    path.parent.mkdir(parents=True)
    _write_csv(path, header, sorted(lines, key=lambda line: int(line[1])))


Row = tuple[Any, ...]


def _rows(
    random: np.random.Generator,
    resolution: str,
    side: int,
    seeds: Sequence[int],
    episodes: int,
    classes: dict[int, str],
    skill: dict[int, float],
) -> list[Row]:
    """Episodes, each class in turn; small objects are found less well."""
    ids, rows, area = list(classes), [], AREA // side
    for seed in seeds:
        for index in range(episodes):
            c = ids[index % len(ids)]
            share = float(np.clip(random.lognormal(-2.3, 1.1), 0.003, 0.85))
            true = max(1, int(share * area))
            found = float(np.clip(skill[c] + 0.12 * np.log10(share / 0.1) + random.normal(0, 0.15), 0, 1))
            intersection, extra = int(found * true), int(random.uniform(0, 0.3) * true)
            union = min(area, true + extra)
            background = area - union
            counts = (intersection, union, background, area - intersection, true)
            rows.append((resolution, seed, index, c, classes[c], f"2007_{index:06}", *counts))
    return rows


def _scores(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    each = [_of_seed([row for row in rows if row[1] == seed], seed) for seed in seeds]
    names = ("miou", "fb_iou", "foreground_iou", "background_iou")
    spread: dict[str, Any] | None = None
    if len(seeds) > 1:  # nothing reads it: the interval is not Student's
        sd = {name: float(np.std([seed[name] for seed in each], ddof=1)) for name in names}
        spread = {name: {"sd": value, "interval": [0.0, 1.0]} for name, value in sd.items()}
    return {
        **{name: float(np.mean([seed[name] for seed in each])) for name in names},
        "spread": spread,
        "classes": {
            name: {
                "iou": float(np.mean([seed["classes"][name] for seed in each])),
                "episodes": sum(row[4] == name for row in rows),
            }
            for name in each[0]["classes"]
        },
        "seeds": each,
    }


def _of_seed(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    def ratio(chosen: Sequence[Row], place: int) -> float:
        return sum(row[place] for row in chosen) / max(1, sum(row[place + 1] for row in chosen))

    names = dict.fromkeys(row[4] for row in rows)
    classes = {name: ratio([row for row in rows if row[4] == name], 6) for name in names}
    foreground, background = ratio(rows, 6), ratio(rows, 8)
    return {
        **{"seed": seed, "episodes": hashlib.sha256(repr(rows).encode()).hexdigest()},
        **{"miou": float(np.mean(list(classes.values()))), "fb_iou": (foreground + background) / 2},
        **{"foreground_iou": foreground, "background_iou": background, "classes": classes},
    }


def _write_episodes(path: Path, rows: Sequence[Row]) -> None:
    _write_csv(path, COLUMNS, rows)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _write_prototypes(path: Path, random: np.random.Generator, rows: Sequence[Row], seed: int) -> None:
    class_id = np.array([row[3] for row in rows if row[1] == seed], np.int64)
    centres = random.normal(0, 0.5, (class_id.max() + 1, 32))
    prototype = centres[class_id] + random.normal(0, 0.35, (len(class_id), 32))
    np.savez(path, prototype=prototype.astype(np.float16), class_id=class_id)
