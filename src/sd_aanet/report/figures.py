"""Figures of evaluations: IoU of each class, IoU against the object's size, and the prototypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.report.collect import Episodes, Run, fold_name
from sd_aanet.report.rows import Row
from sd_aanet.report.style import MARKERS, Comparison, Plot, by_dataset, comparisons, finish, legend_above, panels
from sd_aanet.training.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EDGES = (0.0, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 100.0)
"""Of the bins of object sizes, in per cent of the image."""
PANEL_CLASSES, LEGEND_CLASSES, POINTS = 40, 24, 400
"""Classes in a panel of bars; classes and points in one of prototypes."""


def class_bars(rows: Sequence[Row]) -> Iterator[Plot]:
    """IoU of each class as bars, the best of a fold first."""
    return map(_class_bars, comparisons(rows))


def _class_bars(comparison: Comparison) -> Plot:
    values = [_class_iou(row) for row in comparison.rows]
    found = dict.fromkeys(key for iou in values for key in iou)
    mean = {key: float(np.mean([iou[key] for iou in values if key in iou])) for key in found}
    blocks = _blocks(mean)
    sizes = [len(classes) for _, classes in blocks]
    longest = [max(sizes[start : start + 2]) for start in range(0, len(sizes), 2)]
    figure, axes = panels(len(blocks), [n * (0.11 * len(values) + 0.13) + 0.75 for n in longest])
    height = 0.8 / len(values)
    for index, (panel, (title, classes)) in enumerate(zip(axes, blocks, strict=True)):
        for place, (name, iou) in enumerate(zip(comparison.names, values, strict=True)):
            shown = [(y + (place + 0.5) * height - 0.4, iou[c]) for y, c in enumerate(classes) if c in iou]
            y, widths = zip(*shown, strict=True) if shown else ((), ())
            panel.barh(y, widths, height * 0.92, color=COLOURS[place], label=name)
        panel.set_yticks(range(len(classes)), [_shortened(name) for _, name in classes], fontsize=9)
        panel.set(title=title, xlim=(0, 100), ylim=(longest[index // 2] - 0.5, -0.5), xlabel="IoU, %")
        panel.grid(visible=False, axis="y")
    if len(values) > 1:
        legend_above(figure, axes[0], comparison.names)
    order = [c for _, part in blocks for c in part]
    best, worst = max(order, key=mean.__getitem__), min(order, key=mean.__getitem__)
    return finish(
        "classes",
        "IoU of each novel class",
        "Each bar is a class's IoU over all test episodes of the fold in which it is novel, the mean over trainings "
        "and evaluation seeds; within a fold the best class comes first. The mean of a fold's bars is its mIoU. A "
        "missing bar was not run.",
        f"Bars of {len(mean)} classes, from {worst[1]} with {mean[worst]:.0f} % to {best[1]} with {mean[best]:.0f} %.",
        figure,
        comparison.of,
    )


def _class_iou(row: Row) -> dict[tuple[int, str], float]:
    """{(fold, class): IoU in per cent}, the mean over trainings."""
    values: dict[tuple[int, str], list[float]] = {}
    for fold in row.runs:
        for scores in row.scores(fold).values():
            for name, entry in scores["classes"].items():
                values.setdefault((fold, name), []).append(100 * entry["iou"])
    return {key: float(np.mean(each)) for key, each in values.items()}


def _blocks(mean: dict[tuple[int, str], float]) -> list[tuple[str, list[tuple[int, str]]]]:
    """Titles and classes of the panels: a fold each, or several of one with many classes; the best first."""
    blocks = []
    for fold in sorted({fold for fold, _ in mean}):
        ordered = sorted((key for key in mean if key[0] == fold), key=lambda key: (-mean[key], key))
        parts = range(0, len(ordered), PANEL_CLASSES)
        for start in parts:
            part = f", {start // PANEL_CLASSES + 1} of {len(parts)}" if len(parts) > 1 else ""
            blocks.append((f"{fold_name(fold)}{part}", ordered[start : start + PANEL_CLASSES]))
    return blocks


def by_size(rows: Sequence[Row]) -> Iterator[Plot]:
    """IoU against the share of the image that the object takes."""
    return map(_by_size, comparisons([row for row in rows if any(run.episodes for run in row.all_runs())]))


def _by_size(comparison: Comparison) -> Plot:
    figure, (axes,) = panels(1, 4.6)
    bins = [size_bins([run.episodes for run in row.all_runs() if run.episodes]) for row in comparison.rows]
    places = np.arange(len(EDGES) - 1)
    for place, (name, (iou, _)) in enumerate(zip(comparison.names, bins, strict=True)):
        axes.plot(places, 100 * iou, color=COLOURS[place], marker=MARKERS[place], label=name)
    axes.set_xticks(places, _bin_names())
    axes.set(ylabel="IoU, %", ylim=(0, 100), xlim=(-0.5, len(places) - 0.5))
    _write_counts(axes, [count for _, count in bins])
    if len(bins) > 1:
        legend_above(figure, axes, comparison.names)
    runs = [run for row in comparison.rows for run in row.all_runs()]
    worst, best = (100 * float(pick(bins[0][0][bins[0][1] > 0])) for pick in (np.min, np.max))
    return finish(
        "sizes",
        "IoU against the size of the object",
        "Each point is the foreground's IoU, from summed intersections and unions, of the test episodes of all folds, "
        "trainings and evaluation seeds whose object covers that share of the query image, whatever its class; below "
        "it the number of these episodes. A point of few episodes says little." + _absent(runs),
        f"Lines over {len(places)} bins of object size; {comparison.names[0]} lies between {worst:.0f} and "
        f"{best:.0f} %.",
        figure,
        comparison.of,
    )


def size_bins(episodes: Sequence[Episodes]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """IoU of each bin of `EDGES`, from sums, NaN where it is empty; and its number of episodes."""
    intersection, union, background, true = (
        np.concatenate([part[name] for part in episodes])
        for name in ("intersection", "union", "background_intersection", "object")
    )
    place = np.digitize(100 * true / np.maximum(union + background, 1), EDGES[1:-1])  # of all that is not ignored
    sums = [np.bincount(place, values, len(EDGES) - 1) for values in (intersection, union)]
    count = np.bincount(place, minlength=len(EDGES) - 1)
    return np.where(count > 0, sums[0] / np.maximum(sums[1], 1), np.nan), count


def _bin_names() -> list[str]:
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES[1:-1])]
    return [f"under {EDGES[1]:g}", *inner, f"over {EDGES[-2]:g}"]


def _write_counts(axes: Axes, counts: Sequence[NDArray[np.int64]]) -> None:
    """The number of episodes under each bin, once where all rows have the same."""
    alike = all(np.array_equal(count, counts[0]) for count in counts)
    glyphs = "●■▲◆▼✚"
    for line, count in enumerate(counts[:1] if alike else counts):
        below: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 9}
        at_left: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", **below}
        axes.annotate("episodes", (0, 0), (-18, -22 - 14 * line), **at_left)
        if not alike:
            axes.annotate(glyphs[line], (0, 0), (-6, -22 - 14 * line), color=COLOURS[line], **at_left)
        for place, number in enumerate(count):
            at = ("data", "axes fraction")
            axes.annotate(f"{number:,}", (place, 0), (0, -22 - 14 * line), at, ha="center", **below)
    lines = 1 if alike else len(counts)
    axes.set_xlabel("object, % of the query image", labelpad=6 + 14 * lines)


def prototypes(rows: Sequence[Row]) -> Iterator[Plot]:
    """Prototypes of test episodes in the plane, a panel for each fold of one row of each data set."""
    for ours in by_dataset(rows).values():
        row = max(ours, key=lambda row: (len(_with_prototypes(row)), not row.untrained, -row.shot))
        if runs := _with_prototypes(row):
            yield _prototypes(row, runs)


def _prototypes(row: Row, runs: Sequence[Run]) -> Plot:
    figure, axes = panels(len(runs), 4.3)
    for panel, run in zip(axes, runs, strict=True):
        assert run.prototypes is not None
        points, class_id = sampled(*run.prototypes)
        plane, names = project(points), _class_names(run)
        for place, c in enumerate(np.unique(class_id).tolist()):
            panel.scatter(
                plane[class_id == c, 0],
                plane[class_id == c, 1],
                s=16,
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                linewidths=0,
                alpha=0.75,
                label=_shortened(names.get(c, f"class {c}")),
            )
        panel.set(title=fold_name(run.fold), xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9, markerscale=1.6, handletextpad=0.1)
    return finish(
        "prototypes",
        "Prototypes of test episodes, by t-SNE",
        f"Each point is the prototype of one test episode of {row.model}, {row.backbone}, {row.shot}-shot (the first "
        f"training and evaluation seed), at most {POINTS} points and {LEGEND_CLASSES} classes a fold; colour and "
        "marker are the class. Classes that lie apart are told apart by their supports alone. Distances between "
        "clusters mean nothing in t-SNE, nor do the axes.",
        f"{len(runs)} scatter plots of prototypes, one a fold, coloured by class.",
        figure,
        [row.dataset],
    )


def _with_prototypes(row: Row) -> list[Run]:
    """The first run with enough prototypes of each fold."""
    enough = {
        fold: [run for run in runs.values() if run.prototypes is not None and _spread_out(run.prototypes[0])]
        for fold, runs in row.runs.items()
    }
    return [runs[0] for runs in enough.values() if runs]


def _spread_out(points: NDArray[np.float32]) -> bool:
    return len(points) >= 10 and len(np.unique(points, axis=0)) > 3


def sampled(points: NDArray[np.float32], class_id: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """At most `POINTS` prototypes of at most `LEGEND_CLASSES` classes, drawn from a fixed seed."""
    classes, counts = np.unique(class_id, return_counts=True)
    most = classes[np.argsort(-counts, kind="stable")[:LEGEND_CLASSES]]
    chosen = np.flatnonzero(np.isin(class_id, most))
    if len(chosen) > POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, POINTS, replace=False))
    return points[chosen], class_id[chosen]


def project(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, C) in the plane (N, 2), by t-SNE from their principal components; the same each time."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn's own

    tsne = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=0, max_iter=500)
    with threadpool_limits(1):  # threads sum in another order, and on a busy machine take ten times as long
        plane: NDArray[np.float32] = tsne.fit_transform(points)
    return plane


def _class_names(run: Run) -> dict[int, str]:
    """Class id -> name: from the episodes, else from the protocol, which lists names in the order of their ids."""
    if run.episodes is not None:
        return dict(zip(run.episodes["class_id"].tolist(), run.episodes["class"].tolist(), strict=True))
    assert run.prototypes is not None
    ids, names = np.unique(run.prototypes[1]).tolist(), run.protocol["classes"]["test"]
    return dict(zip(ids, names, strict=True)) if len(ids) == len(names) else {}


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _absent(runs: Sequence[Run]) -> str:
    missing = sum(run.episodes is None for run in runs)
    return f" {missing} of {len(runs)} runs have no episodes.csv and are not in it." if missing else ""
