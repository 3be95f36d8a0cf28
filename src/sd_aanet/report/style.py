"""What the figures of a report share: their type, their looks, and how they are written."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sd_aanet.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
"""As many as do not divide the number of colours: colour and marker together tell more classes apart."""
Line = Literal["-", "--", ":", "-."]
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
WIDTH = 10.0
"""Inches of every figure: 720 points, a page's width, at which its letters keep their size."""
SERIES = 6
"""As many rows as one figure compares."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.parse_math": False,  # classes may be called "$a"
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "figure.constrained_layout.wspace": 0.05,
    "svg.hashsalt": "sd-aanet",  # the same ids, and so the same file, each time
}


@dataclass(frozen=True)
class Plot:
    """A figure, drawn.

    Attributes:
        name: of its files.
        title: its heading.
        caption: how to read it, and what it leaves out.
        alt: what it shows, for those who do not see it.
        svg, png: the picture.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """The looks of these figures, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def finish(name: str, title: str, caption: str, alt: str, figure: Figure, of: Sequence[str] = ()) -> Plot:
    """Render a figure, within `style`, without the date that would make each file another.

    `of` is what else, beside its kind, its name and its title tell. See `Plot`.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    # A data set may be called anything in a stranger's result: its files stay in their folder.
    name, title = re.sub(r"[^\w-]", "_", "_".join([name, *of]))[:60], ": ".join([title, *filter(None, [", ".join(of)])])
    return Plot(name, title, caption, alt, svg.getvalue(), png.getvalue())


def panels(count: int, heights: float | Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of the usual width with so many panels, two a row, of that height (or each row of its own) in inches."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = math.ceil(count / columns)
    ratios = [heights] * rows if isinstance(heights, int | float) else list(heights)
    figure = Figure(figsize=(WIDTH, sum(ratios) + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": ratios}).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def legend_above(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """The legend of a panel above all panels, in as many columns as its names leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    wrapped = ["\n".join(textwrap.wrap(label, 100)) for label in labels]
    columns = max(1, min(len(labels), 110 // (max(map(len, names)) + 6)))
    figure.legend(handles, wrapped, loc="outside upper center", ncols=columns)


def by_dataset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows at their first resolution, by data set: what figures show."""
    shown = [row for row in rows if row.headline]
    return {row.dataset: [other for other in shown if other.dataset == row.dataset] for row in shown}


@dataclass(frozen=True)
class Comparison:
    """Rows that one figure compares.

    Attributes:
        of: the data set, and what tells the figure from others of that.
        rows: at most `SERIES`.
        names: of the rows, in the legend.
    """

    of: Sequence[str]
    rows: Sequence[Row]
    names: Sequence[str]


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """Rows as figures: of a data set all shots of a single network together, else the networks at each shot."""
    for dataset, ours in by_dataset(rows).items():
        if len({_network(row) for row in ours}) == 1:
            parts = {"": (ours, [", ".join([f"{row.shot}-shot", *_only(row)]) for row in ours])}
        else:
            shots = {shot: [row for row in ours if row.shot == shot] for shot in sorted({row.shot for row in ours})}
            parts = {f"{shot}-shot": (alike, _names(alike)) for shot, alike in shots.items()}
        for shot_name, (alike, names) in parts.items():
            for start in range(0, len(alike), SERIES):
                number = f"part {start // SERIES + 1}" if len(alike) > SERIES else ""
                of, end = (dataset, " ".join(filter(None, [shot_name, number]))), start + SERIES
                yield Comparison(tuple(filter(None, of)), alike[start:end], names[start:end])


def _network(row: Row) -> tuple[object, ...]:
    trained = None if row.train_shot == row.shot else row.train_shot
    return row.model, row.backbone, trained, repr(_switches(row))


def _switches(row: Row) -> dict[str, object]:
    return {name: value for name, value in row.protocol.items() if name != "seed"}


def _names(rows: Sequence[Row]) -> list[str]:
    """Names for a legend: the network, and whatever else the rows differ in."""
    protocols = [_switches(row) for row in rows]
    switches = dict.fromkeys(name for protocol in protocols for name in protocol)
    differing = [name for name in switches if len({repr(p.get(name)) for p in protocols}) > 1]
    backbones = len({row.backbone for row in rows}) > 1
    names = []
    for row, protocol in zip(rows, protocols, strict=True):
        parts = [row.model, *([row.backbone] if backbones else [])]
        parts += [f"trained with {row.train_shot} shots"] if row.train_shot not in (None, row.shot) else []
        parts += [f"{name} {protocol[name]}" for name in differing if name in protocol]
        names.append(", ".join([*parts, *_only(row)]))
    return names


def _only(row: Row) -> list[str]:
    folds = ", ".join(map(str, row.runs))
    return [f"{'folds' if len(row.runs) > 1 else 'fold'} {folds} only"] if row.partial else []
