"""Plots of a training, from the metrics that its CSV logger wrote."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from sd_aanet.files import written_whole

Series = dict[str, tuple[list[int], list[float]]]
PREFIX, TOTAL, RATE = "train/", "train/total", "train/lr"
TINY = 0.05
"""A term whose largest value is under this share of the total's is no more than a line along the axis beside it."""
OTHERS = {"validation": ("val/miou", "val/fb_iou"), "learning rate": (RATE,)}
"""Panels beside those of the losses."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Okabe and Ito's, distinct to colour-blind eyes; without their yellow, which is pale on white."""


def read_metrics(out: Path) -> Series:
    """{metric: (steps, values)} of a training, a resumed one having several parts.

    What an interrupted part logged after the checkpoint that the next one started from is left out, of each metric on
    its own: a part may begin with the validation after the last one's last step.
    """
    series: Series = {}
    for path in sorted(out.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        part: Series = {}
        for row in rows:
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = part.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
        for name, (steps, values) in part.items():
            before = series.get(name, ([], []))
            kept = bisect_left(before[0], steps[0])
            series[name] = (before[0][:kept] + steps, before[1][:kept] + values)
    return series


def loss_panels(curves: Sequence[Series]) -> list[list[str]]:
    """The losses of trainings of one method by the names of their metrics, in panels.

    Returns:
        The total and the terms of its scale, and then, where there are any, those that are tiny beside it.
    """
    names = dict.fromkeys(name for series in curves for name in series if name.startswith(PREFIX) and name != RATE)

    def largest(name: str) -> float:
        return max((value for series in curves if name in series for value in series[name][1]), default=0.0)

    tiny = [name for name in names if largest(name) < TINY * largest(TOTAL)]
    first = [name for name in sorted(names, key=lambda name: name != TOTAL) if name not in tiny]
    return [panel for panel in (first, tiny) if panel]


def draw_curves(out: Path) -> Path | None:
    """Draw losses, validation and learning rate over the steps into out/curves.png.

    Returns:
        The picture's path; None where no CSV logger wrote anything.
    """
    series = read_metrics(out)
    titles = ("loss", "loss, before its weight")
    panels = dict(zip(titles, loss_panels([series]), strict=False))
    panels |= {title: found for title, names in OTHERS.items() if (found := [n for n in names if n in series])}
    if not panels:
        return None
    import matplotlib  # takes a third of a second
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for colour, name in zip(cycle(COLOURS), names, strict=False):
                marker = "o" if name.startswith("val/") else None
                axes.plot(*series[name], color=colour, label=name.split("/")[1], marker=marker, linewidth=1.2)
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if len(names) > 1 or title == titles[1]:
                axes.legend(frameon=False)
        with written_whole(out / "curves.png") as path:
            figure.savefig(path, dpi=110)
    return out / "curves.png"
