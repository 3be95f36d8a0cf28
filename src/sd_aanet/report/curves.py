"""Figures of trainings: their validation and their losses over the steps."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.report.collect import Run, fold_name
from sd_aanet.report.rows import Row
from sd_aanet.report.style import LINES, MARKERS, Line, Plot, finish, panels
from sd_aanet.training.plots import COLOURS, PREFIX, TOTAL, loss_panels

VALIDATION = "val/miou"
GRID = 300
"""Steps at which the losses of several trainings are compared."""
Floats = NDArray[np.float64]


def learning_curves(rows: Sequence[Row]) -> Iterator[Plot]:
    """Validation mIoU over the steps, a line for each training."""
    groups = _trainings(rows, VALIDATION)
    if not groups:
        return
    from matplotlib.lines import Line2D

    figure, axes = panels(len(groups), 3.6)
    shots = sorted({_shot(run) for runs in groups.values() for run in runs})
    folds = sorted({run.fold for runs in groups.values() for run in runs})
    for panel, (title, runs) in zip(axes, groups.items(), strict=True):
        for run in runs:
            steps, values = run.curves[VALIDATION]
            looks = _fold_looks(run.fold) | {"linestyle": _line(shots, _shot(run)), "markevery": 1 + len(steps) // 20}
            panel.plot(steps, 100 * np.array(values), **looks)
        panel.set(title=title, xlabel="step", ylabel="validation mIoU, %")
        panel.set_ylim(bottom=0)
    handles = [Line2D([], [], label=fold_name(fold), **_fold_looks(fold)) for fold in folds]
    handles += [Line2D([], [], color="black", label=f"{k}-shot", linestyle=_line(shots, k)) for k in shots]
    figure.legend(handles=handles, loc="outside right upper")
    yield finish(
        "learning",
        "Validation over the training",
        "Each line is a training: mIoU of its validation, on the classes that its checkpoint was selected on "
        "(select_on in the protocol). A line that still rises at its end was trained too briefly.",
        f"Lines of {sum(map(len, groups.values()))} trainings over the steps.",
        figure,
    )


def loss_curves(rows: Sequence[Row]) -> Iterator[Plot]:
    """Losses over the steps, the mean over the trainings of a network with their range."""
    groups = _trainings(rows, TOTAL)
    if not groups:
        return
    parts = [
        (title, runs, place, names)
        for title, runs in groups.items()
        for place, names in enumerate(loss_panels([run.curves for run in runs]))
    ]
    known = list(dict.fromkeys(name for *_, names in parts for name in names))  # one look a term, in all panels
    figure, axes = panels(len(parts), 3.4)
    for panel, (title, runs, place, names) in zip(axes, parts, strict=True):
        for name in names:
            steps, mean, low, high = mean_and_range([run.curves[name] for run in runs if name in run.curves])
            colour = COLOURS[known.index(name) % len(COLOURS)]
            label = name.removeprefix(PREFIX)
            panel.plot(steps, mean, color=colour, linestyle=_line(known, name), label=label)
            panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        tiny = ", ".join(name.removeprefix(PREFIX) for name in names)
        panel.set(
            title=f"{title}\n{tiny}" if place else title,
            xlabel="step",
            ylabel="loss before its weight" if place else "loss",
        )
        panel.set_ylim(bottom=0)
    handles = {
        label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(len(handles), 6))
    yield finish(
        "losses",
        "Losses over the training",
        "Lines are the mean over all trainings of a network, each smoothed over a twentieth of its steps; bands are "
        "the range over these trainings. The total is the weighted sum of the others; a term that is small before "
        "its weight has an axis of its own.",
        f"Lines of the losses of {sum(map(len, groups.values()))} trainings over the steps.",
        figure,
    )


def mean_and_range(curves: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Steps, and the mean, least and largest of smoothed curves there, each of at least one step.

    A curve counts within its own steps only.
    """
    steps = np.linspace(min(c[0][0] for c in curves), max(c[0][-1] for c in curves), GRID)
    values = np.array([np.interp(steps, c[0], smoothed(np.array(c[1])), np.nan, np.nan) for c in curves])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps between one training's end and another's start
        return steps, np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0)


def smoothed(values: Floats) -> Floats:
    """The running mean over a twentieth of the values, of those that are there at the ends."""
    window = np.ones(2 * round(len(values) / 40) + 1)
    mean: Floats = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return mean


def _trainings(rows: Sequence[Row], metric: str) -> dict[str, list[Run]]:
    """Runs with a curve of a metric, by what their panel is called."""
    several = len({row.dataset for row in rows}) > 1
    groups: dict[str, dict[str, Run]] = {}
    for row in rows:
        network = textwrap.wrap(f"{row.model}, {row.backbone}", 48)  # as much as a panel is wide
        title = "\n".join([*([row.dataset] if several else []), *network])
        runs = {run.name: run for run in row.all_runs() if metric in run.curves}
        if runs:
            groups.setdefault(title, {}).update(runs)
    return {title: list(runs.values()) for title, runs in groups.items()}


def _shot(run: Run) -> int:
    return int(run.training.get("shot", run.shot))


def _fold_looks(fold: int) -> dict[str, Any]:
    return {
        "color": COLOURS[fold % len(COLOURS)],
        "marker": MARKERS[fold % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def _line(of: Sequence[object], value: object) -> Line:
    return LINES[of.index(value) % len(LINES)]
