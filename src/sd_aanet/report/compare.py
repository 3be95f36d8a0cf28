"""`sd-aanet compare A B`: the difference of two results over the same episodes, with its bootstrap interval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.arguments import Parser
from sd_aanet.errors import DataError
from sd_aanet.evaluation.statistics import interval, mean_iou, paired_differences
from sd_aanet.report.collect import AGAIN, Run, fold_name, read_run
from sd_aanet.report.rows import switches


@dataclass(frozen=True)
class Difference:
    """What a pair of results differs by, in mIoU.

    Attributes:
        a: of the first, mean over the lists of episodes.
        b: of the second.
        resamples: (10000,) the bootstrap's distribution of b - a.
        switches: of the protocol that the two do not share, and the value of each in both.
    """

    a: float
    b: float
    resamples: NDArray[np.float64]
    switches: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        low, high = interval(self.resamples)
        clear = "" if low <= 0 <= high else " *"
        scores = f"{100 * self.a:>8.2f}{100 * self.b:>8.2f}{100 * (self.b - self.a):>+9.2f}"
        return f"{scores}   [{100 * low:+.2f}, {100 * high:+.2f}]{clear}"


def main(argv: list[str]) -> int:
    """Print a line for each pair of results, and one for their mean."""
    parser = Parser("sd-aanet compare", description=f"{__doc__} Each is a result.json, or a folder that holds some.")
    parser.add_argument("a", type=Path, help="the one, such as runs/sweeps/baseline")
    parser.add_argument("b", type=Path, help="the other; the difference is its scores minus those of the first")
    given = parser.parse_args(argv)
    differences = compare(given.a, given.b)
    width = max(map(len, differences))
    print(f"mIoU in points, B minus A; 95 % of 10,000 paired resamples of the episodes; * the interval excludes 0\n"
          f"{'':<{width}}{'A':>8}{'B':>8}{'B - A':>9}   interval")  # fmt: skip
    for key, difference in differences.items():
        print(f"{key:<{width}}{difference}")
    if len(differences) > 1:
        print(f"{'mean':<{width}}{_mean(list(differences.values()))}")
    for line in _not_shared(differences.values()):
        print(line)
    return 0


def compare(a: Path, b: Path) -> dict[str, Difference]:
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
            f"'{a}' ({'; '.join(ones)}) and '{b}' ({'; '.join(others)}) have no fold, shot and "
            "seed in common: evaluate both on the same"
        )
    return {key: _difference(ones[key], others[key], a, b) for key in common}


def _difference(one: Run, other: Run, a: Path, b: Path) -> Difference:
    for what, ours, theirs in (
        ("on different lists of episodes", list(one.lists.values()), list(other.lists.values())),
        ("on different pictures or masks of one name", *(run.protocol.get("labels") for run in (one, other))),
        ("at different resolutions", one.resolution, other.resolution),
        ("with different ignore_boundary", *(run.protocol["ignore_boundary"] for run in (one, other))),
    ):
        if ours != theirs:
            raise DataError(
                f"'{a}' and '{b}' were scored {what} ({_key(one)}): evaluate both with the same protocol, seed "
                "and min_object_pixels, or with one episodes_file"
            )
    pairs = list(zip(_rows(one), _rows(other), strict=True))
    if not all(np.array_equal(x[:, 0], y[:, 0]) for x, y in pairs):
        raise DataError(f"episodes.csv of '{a}' and of '{b}' do not hold the list that both results name: {AGAIN}")
    resamples = [
        paired_differences(x[:, 1:], y[:, 1:], x[:, 0], seed) for seed, (x, y) in zip(one.lists, pairs, strict=True)
    ]
    means = [np.mean([mean_iou(pair[side][:, 1:], pair[side][:, 0]) for pair in pairs]) for side in (0, 1)]
    both = {name: (switches(one).get(name), switches(other).get(name)) for name in switches(one) | switches(other)}
    not_shared = {name: values for name, values in both.items() if values[0] != values[1]}
    return Difference(float(means[0]), float(means[1]), np.mean(resamples, axis=0), not_shared)


def _rows(run: Run) -> list[NDArray[np.int64]]:
    """For each list of episodes (N, 3): class id, foreground intersection and union."""
    episodes = run.episodes
    assert episodes is not None
    rows = np.stack([episodes[name] for name in ("class_id", "intersection", "union")], 1)
    return [rows[episodes["seed"] == seed] for seed in run.lists]


def _not_shared(differences: Iterable[Difference]) -> list[str]:
    """A line for each switch of the protocol that results do not share: what of a difference may be its work."""
    lines = [
        f"not only the network differs: {name} is {json.dumps(ours)} in A, {json.dumps(theirs)} in B"
        for difference in differences
        for name, (ours, theirs) in difference.switches.items()
    ]
    return list(dict.fromkeys(lines))


def _mean(differences: list[Difference]) -> Difference:
    return Difference(
        float(np.mean([d.a for d in differences])),
        float(np.mean([d.b for d in differences])),
        np.mean([d.resamples for d in differences], axis=0),
    )


def _results(place: Path) -> dict[str, Run]:
    paths = [place] if place.is_file() else sorted(place.rglob("result.json"))
    if not paths:
        raise DataError(f"'{place}' holds no result.json: give what sd-aanet evaluate or train wrote")
    found: dict[str, Run] = {}
    for path in paths:
        run = read_run(path, path.parent)
        if run.episodes is None:
            raise DataError(f"'{path}' has no episodes.csv beside it: {AGAIN}")
        if _key(run) in found:
            raise DataError(f"'{place}' holds two results of {_key(run)}: give the folder of one of them")
        found[_key(run)] = run
    return found


def _key(run: Run) -> str:
    """What two results have to share to be compared: data set, fold, shot, and the seed of the training."""
    return f"{run.dataset} {fold_name(run.fold)} {run.shot}-shot seed {run.training.get('seed', '-')}"
