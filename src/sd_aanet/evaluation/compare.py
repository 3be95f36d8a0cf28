"""`sd-aanet compare A B`: the difference of two results over the same episodes, with its bootstrap interval."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.arguments import Parser
from sd_aanet.errors import DataError
from sd_aanet.evaluation.statistics import interval, mean_iou, paired_differences
from sd_aanet.files import written_whole

Key = tuple[str, ...]
"""What two results have to share to be compared: data set, fold, shot, and the seed of the training."""


@dataclass(frozen=True)
class Episodes:
    """The episodes of one result at its headline resolution.

    Attributes:
        key: see `Key`.
        lists: {seed: digest of its list}.
        rows: {seed: (N, 4) int64: index, class id, foreground intersection and union}.
        resolution: where they were scored.
    """

    key: Key
    lists: dict[int, str]
    rows: dict[int, NDArray[np.int64]]
    resolution: str


@dataclass(frozen=True)
class Difference:
    """What a pair of results differs by, in mIoU.

    Attributes:
        a: of the first, mean over the lists of episodes.
        b: of the second.
        resamples: (10000,) the bootstrap's distribution of b - a.
    """

    a: float
    b: float
    resamples: NDArray[np.float64]

    def __str__(self) -> str:
        low, high = interval(self.resamples)
        clear = "" if low <= 0 <= high else " *"
        figures = f"{100 * self.a:>8.2f}{100 * self.b:>8.2f}{100 * (self.b - self.a):>+9.2f}"
        return f"{figures}   [{100 * low:+.2f}, {100 * high:+.2f}]{clear}"


def main(argv: list[str]) -> int:
    """Print a line for each pair of results, and one for their mean."""
    parser = Parser("sd-aanet compare", description=f"{__doc__} Each is a result.json, or a folder that holds some.")
    parser.add_argument("a", type=Path, help="the one, such as runs/sweeps/baseline")
    parser.add_argument("b", type=Path, help="the other; its figures less those of the first are the difference")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, too")
    given = parser.parse_args(argv)
    differences = compare(given.a, given.b)
    width = max(len(_name(key)) for key in differences)
    print(f"mIoU in points, B less A; 95 % of 10,000 paired resamples of the episodes; * the interval excludes 0\n"
          f"{'':<{width}}{'A':>8}{'B':>8}{'B - A':>9}   interval")  # fmt: skip
    for key, difference in differences.items():
        print(f"{_name(key):<{width}}{difference}")
    if len(differences) > 1:
        print(f"{'mean':<{width}}{_mean(list(differences.values()))}")
    if given.out is not None:
        _write(differences, given.out)
    return 0


def compare(a: Path, b: Path) -> dict[Key, Difference]:
    """The differences of all results that two folders, or files, have in common.

    Raises:
        DataError: a result is missing or unreadable, none is in common, or the episodes differ.
    """
    ones, others = _results(a), _results(b)
    if len(ones) == len(others) == 1:  # whatever they are of: the episodes decide
        others = {next(iter(ones)): next(iter(others.values()))}
    common = [key for key in ones if key in others]
    if not common:
        raise DataError(
            f"'{a}' ({'; '.join(map(_name, ones))}) and '{b}' ({'; '.join(map(_name, others))}) have no fold, shot and "
            "seed in common: evaluate both on the same"
        )
    return {key: _difference(ones[key], others[key], a, b) for key in common}


def _difference(one: Episodes, other: Episodes, a: Path, b: Path) -> Difference:
    if one.lists != other.lists or one.resolution != other.resolution:
        what = "resolutions" if one.lists == other.lists else "lists of episodes"
        raise DataError(
            f"'{a}' and '{b}' were scored on different {what} ({_name(one.key)}): evaluate both with the same "
            "protocol, seed and min_object_pixels, or with one episodes_file"
        )
    pairs = [(one.rows[seed], other.rows[seed]) for seed in one.rows]
    resamples = [
        paired_differences(x[:, 2:], y[:, 2:], x[:, 1], seed) for seed, (x, y) in zip(one.rows, pairs, strict=True)
    ]
    means = [np.mean([mean_iou(pair[side][:, 2:], pair[side][:, 1]) for pair in pairs]) for side in (0, 1)]
    return Difference(float(means[0]), float(means[1]), np.mean(resamples, axis=0))


def _mean(differences: list[Difference]) -> Difference:
    return Difference(
        float(np.mean([d.a for d in differences])),
        float(np.mean([d.b for d in differences])),
        np.mean([d.resamples for d in differences], axis=0),
    )


def _results(place: Path) -> dict[Key, Episodes]:
    paths = [place] if place.is_file() else sorted(place.rglob("result.json"))
    if not paths:
        raise DataError(f"'{place}' holds no result.json: give what sd-aanet evaluate or train wrote")
    found: dict[Key, Episodes] = {}
    for path in paths:
        episodes = _read(path)
        if episodes.key in found:
            raise DataError(f"'{place}' holds two results of {_name(episodes.key)}: give the folder of one of them")
        found[episodes.key] = episodes
    return found


def _read(path: Path) -> Episodes:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        protocol, training = result["protocol"], result["training"] or {}
        resolution = "original" if protocol["resolution"] == "both" else protocol["resolution"]
        lists = {int(seed["seed"]): str(seed["episodes"]) for seed in result["seeds"]}
        rows: dict[int, list[list[int]]] = {seed: [] for seed in lists}
        with (path.parent / "episodes.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["resolution"] == resolution:
                    names = ("index", "class_id", "intersection", "union")
                    rows[int(row["seed"])].append([int(row[name]) for name in names])
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = " ".join(str(error).split())
        raise DataError(
            f"'{path}' with the episodes.csv beside it is no result of this version ({line}): evaluate again"
        ) from None
    key = (
        str(protocol["dataset"]),
        f"fold {protocol['fold']}",
        f"{protocol['test_shot']}-shot",
        f"seed {training.get('seed', '-')}",
    )
    return Episodes(key, lists, {seed: np.array(some, np.int64) for seed, some in rows.items()}, resolution)


def _name(key: Key) -> str:
    return " ".join(key)


def _write(differences: dict[Key, Difference], out: Path) -> None:
    entries = [
        {"of": list(key), "a": d.a, "b": d.b, "difference": d.b - d.a, "interval": list(interval(d.resamples))}
        for key, d in differences.items()
    ]
    with written_whole(out) as path:
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {out}")
