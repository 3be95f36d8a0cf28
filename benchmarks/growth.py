"""`python -m benchmarks.growth`: how the time of an evaluation grows with what it is given.

One class of one fold at a time is what an evaluation works on, so one class is measured. Data: see `benchmarks`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.rows import evaluate, jobs_of
from benchmarks.timing import seconds
from benchmarks.workload import Workload


def measure(size: int, shot: int, episodes: int, data: Path | None) -> None:
    """Print a row."""
    work = Workload(size, size, data)
    module, source = work.module(), work.episodes(shot, 5 * episodes)
    jobs = [job for job in jobs_of(source) if job.index % 5 == 0]  # the first class of each turn
    spent = seconds(lambda: evaluate(module, source, jobs))
    pictures = len({i for job in jobs for i in (job.spec.query, *job.spec.supports)})
    print(
        f"| {size} px | {shot} | {episodes} | {pictures} | {spent:.1f} s | {1000 * spent / episodes:.0f} ms |",
        flush=True,
    )


def main() -> None:
    """Print a table: one thing changed at a time."""
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


main()
