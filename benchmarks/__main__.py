"""`make bench`, `make bench-full`: our speed against what the published code does, as one table of ratios."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks import rows
from benchmarks.timing import HEAD, Row
from benchmarks.workload import Workload

SECTIONS = ("starting", "waiting", "query", "training", "memory", "evaluation")


def measured(work: Workload, full: bool, sections: list[str], sample: int) -> Iterator[Row]:
    """The rows, cheapest first."""
    pairs = 5
    if "starting" in sections:
        yield from rows.starting()
    if "waiting" in sections:
        yield from rows.waiting(work)
    if "query" in sections:
        yield from rows.queries(work, pairs, (4.5, 8))
    if "training" in sections:
        yield from rows.training(work, pairs, (1.3, 2.5), (2.7, 5))
    if "memory" in sections:
        yield from rows.memory(work, (0.5, 2, 8) if full else (0.1, 0.5, 8), episodes=100)
    if "evaluation" in sections:
        yield from rows.evaluation(work, 1, 1000, sample, (4, 7))
        yield from rows.evaluation(work, 5, 1000, sample, (8, 15))


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="473 px, in training 321; otherwise 225 px")
    parser.add_argument("--data", type=Path, help="a data set in VOC's layout; otherwise pictures of shapes")
    parser.add_argument("--weights", type=Path, help="of the ResNet-50; otherwise random, which takes as long")
    parser.add_argument("--checkpoint", type=Path, help="a trained one of fold 0, instead of new weights")
    parser.add_argument("--sample", type=int, default=2, help="episodes of each class that the reference does, too")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, help="some of the rows")
    given = parser.parse_args()
    work = Workload(473 if given.full else 225, 321 if given.full else 225, given.data, given.weights, given.checkpoint)
    print(f"{rows.machine()}\npictures of {work.size} px, in training {work.train_size} px\n\n{HEAD}", flush=True)
    for row in measured(work, given.full, given.only, given.sample):
        print(row.line(), flush=True)


if __name__ == "__main__":
    main()
