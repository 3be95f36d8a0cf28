"""Measuring in pairs, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was measured.
        reference: seconds, or None where nothing is compared.
        ours: seconds, or whatever `unit` says.
        target: what the ratio should reach, or, with a unit, what `ours` should stay under.
        unit: of `ours` where no ratio is meant.
        note: what else a reader should know.
        holds: whether the results are what they should be, too.
    """

    what: str
    reference: float | None
    ours: float
    target: float
    unit: str = ""
    ratio: float | None = None
    note: str = ""
    holds: bool = True

    @property
    def met(self) -> bool:
        """Whether the target is met, with the right results."""
        return self.holds and (self.ours <= self.target if self.ratio is None else self.ratio >= self.target)

    def line(self) -> str:
        """The row of a Markdown table."""
        reference = "" if self.reference is None else f"{_shown(self.reference)} s"
        ratio, sign = ("", "<=") if self.ratio is None else (f"{self.ratio:.1f}", ">=")
        ours, target = f"{_shown(self.ours)} {self.unit or 's'}", f"{sign} {self.target:g} {self.unit}".rstrip()
        cells = (self.what, reference, ours, ratio, target, "met" if self.met else "NOT met", self.note)
        return "| " + " | ".join(cells) + " |"


def _shown(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


HEAD = "| what | reference | ours | ratio | target | | |\n| --- | --- | --- | --- | --- | --- | --- |"


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(what: str, reference: Callable[[], object], ours: Callable[[], object], pairs: int, target: float) -> Row:
    """The medians of interleaved measurements, after a call of each that is not counted."""
    reference(), ours()
    measured = [(seconds(reference), seconds(ours)) for _ in range(pairs)]
    return of_pairs(what, measured, target)


def of_pairs(what: str, measured: list[tuple[float, float]], target: float) -> Row:
    """A row from (reference, ours) in seconds for the same work."""
    slow, fast = (statistics.median(column) for column in zip(*measured, strict=True))
    ratio = statistics.median(a / b for a, b in measured)
    return Row(what, slow, fast, target, ratio=ratio)
