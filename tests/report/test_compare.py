"""`sd-aanet compare`: which results it compares, and what it says of those it cannot."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import make_run
from numpy.typing import NDArray

from commands import nothing_left, ran, refused, run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two(**switches: Any) -> None:
    """The folders a and b of one result, of which b says other switches of the protocol."""
    result = make_run(Path("a"))
    shutil.copytree("a", "b")
    result["protocol"] |= switches
    Path("b/result.json").write_text(json.dumps(result))


def test_boundaries_that_count_are_not_compared_with_ignored_ones() -> None:
    two(ignore_boundary=False)
    refused(run("compare", "a", "b"), "'a' and 'b' were scored with different ignore_boundary")


def test_any_other_switch_that_differs_is_named() -> None:
    two(size=321, scales=[0.8, 1.0], seed=7, test_seed=7)
    done = ran("compare", "a", "b")
    named = [line for line in done.out.splitlines() if line.startswith("not only the network differs: ")]
    assert [line.partition(": ")[2] for line in named] == [
        "size is 225 in A, 321 in B",
        "scales is [1.0] in A, [0.8, 1.0] in B",
    ]
    assert "not only the network" not in ran("compare", "a", "a").out


def test_both_resolutions_are_compared_at_the_first() -> None:
    two(resolution="both")
    assert "not only the network" not in ran("compare", "a", "b").out


Counts = dict[int, list[tuple[int, int, int]]]
"""By seed of a list, of each episode: class id, intersection and union."""


def counts(folder: Path) -> Counts:
    found: Counts = {}
    with (folder / "episodes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["seed"]), []).append(
                (int(row["class_id"]), int(row["intersection"]), int(row["union"]))
            )
    return found


def changed(folder: Path, seed: int) -> None:
    """A result of another network over the same lists: some episodes better, some worse."""
    random = np.random.default_rng(seed)
    with (folder / "episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["intersection"] = str(int(int(row["intersection"]) * random.uniform(0.8, 1.1)))
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def bootstrap(a: Counts, b: Counts) -> NDArray[np.float64]:
    """The mean over lists of resampled differences, a resample, a list and a class at a time."""
    total = np.zeros(10_000)
    for seed, ours in a.items():
        random = np.random.default_rng(seed)
        classes = sorted({c for c, _, _ in ours})
        for c in classes:
            both = np.array([(*x[1:], *y[1:]) for x, y in zip(ours, b[seed], strict=True) if x[0] == c])
            for resample in range(10_000):
                often = random.multinomial(len(both), [1 / len(both)] * len(both))
                i, u, j, v = (often[:, None] * both).sum(0)
                total[resample] += (j / max(v, 1) - i / max(u, 1)) / len(classes) / len(a)
    return total


def middle(values: NDArray[np.float64]) -> str:
    """The interval between the 2.5th and the 97.5th of a hundred parts, in points, as it is printed."""
    ordered, ends = sorted(100 * values), []
    for share in (0.025, 0.975):
        place = share * (len(ordered) - 1)
        low = int(place)
        ends.append(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]))
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" + ("" if ends[0] <= 0 <= ends[1] else " *")


def test_the_interval_over_several_lists_is_that_of_a_plain_bootstrap() -> None:
    """To the digit: of two lists a fold, and of the mean of two folds."""
    for fold in (0, 1):
        make_run(Path(f"a/{fold}"), fold=fold, seeds=(0, 1))
        shutil.copytree(f"a/{fold}", f"b/{fold}")
        changed(Path(f"b/{fold}"), fold)
    lines = [line for line in ran("compare", "a", "b").out.splitlines() if "[" in line]
    each = [bootstrap(counts(Path(f"a/{fold}")), counts(Path(f"b/{fold}"))) for fold in (0, 1)]
    expected = [*each, (each[0] + each[1]) / 2]
    assert [line[line.index("[") :] for line in lines] == [middle(values) for values in expected]
    assert lines[0] != lines[1]


SPOILT = {
    "cut off": lambda text: text[: len(text) * 2 // 3],
    "cut off at a line": lambda text: "".join(text.splitlines(keepends=True)[:-5]),
    "header only": lambda text: text.splitlines(keepends=True)[0],
    "other episodes": lambda text: text.replace(",1,aeroplane,", ",2,aeroplane,"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_episodes_that_are_not_whole(name: str) -> None:
    two()
    path = Path("b/episodes.csv")
    path.write_text(SPOILT[name](path.read_text()))
    with nothing_left():
        refused(run("compare", "a", "b"), "episodes.csv", "evaluate again")


@pytest.mark.parametrize("key", ["fold", "test_shot", "dataset", "resolution"])
def test_results_without_what_they_are_of(key: str) -> None:
    two()
    result = json.loads(Path("b/result.json").read_text())
    del result["protocol"][key]
    Path("b/result.json").write_text(json.dumps(result))
    refused(run("compare", "a", "b"), "'b/result.json' is not a result", key)


def test_results_without_episodes() -> None:
    two()
    Path("b/episodes.csv").unlink()
    refused(run("compare", "a", "b"), "'b/result.json' has no episodes.csv beside it")


def test_other_masks_of_the_same_names_are_not_compared() -> None:
    two(labels="of another data set")
    refused(run("compare", "a", "b"), "'a' and 'b' were scored on different pictures or masks of one name")
