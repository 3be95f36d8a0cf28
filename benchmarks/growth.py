"""`python -m benchmarks.growth`: how time and memory of an evaluation grow with what it is given.

One class of one fold at a time is what an evaluation works on, so one class is measured; against the budget, a fold.
Data: see `benchmarks`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.rows import evaluate, listed, peak
from benchmarks.timing import seconds
from benchmarks.workload import Workload


def measure(size: int, shot: int, episodes: int, data: Path | None) -> None:
    """Print a row."""
    work = Workload(size, size, data)
    method, source = work.method(), work.episodes(shot, 5 * episodes)
    some = [one for one in listed(source) if one.index % 5 == 0]  # the first class of each turn
    spent = seconds(lambda: evaluate(method, source, some))
    pictures = len({i for one in some for i in (one.spec.query, *(i for i, _ in one.spec.examples))})
    print(
        f"| {size} px | {shot} | {episodes} | {pictures} | {spent:.1f} s | {1000 * spent / episodes:.0f} ms |",
        flush=True,
    )


def measure_budget(budget: float, data: Path | None) -> None:
    """Print a row."""
    gigabytes, spent, score = peak(Workload(225, 225, data), budget, shot=5, episodes=100)
    print(f"| {budget:g} GB | {gigabytes:.2f} GB | {spent:.0f} s | {score:.6f} |", flush=True)


def main() -> None:
    """Print two tables: one thing changed at a time."""
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--data", type=Path, help="a data set in VOC's layout; otherwise pictures of shapes")
    data = parser.parse_args().data
    print("| size | shots | episodes | different pictures | time | an episode |\n| --- | --- | --- | --- | --- | --- |")
    for episodes in (5, 10, 20, 50, 100, 200):
        measure(225, 1, episodes, data)
    for shot in (1, 2, 5, 10):
        measure(225, shot, 50, data)
    for size in (97, 161, 225, 321, 473):
        measure(size, 1, 20, data)
    print(
        "\n| budget, 225 px, 100 5-shot episodes | peak memory | time | mIoU |\n| --- | --- | --- | --- |", flush=True
    )
    for budget in (0.01, 0.1, 0.5, 8):
        measure_budget(budget, data)


if __name__ == "__main__":
    main()
