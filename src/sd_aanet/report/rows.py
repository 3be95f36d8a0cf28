"""From runs to the rows of a table: what belongs together, its mean over folds and its spread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from sd_aanet.evaluation.statistics import half_interval
from sd_aanet.report.collect import Run, Settings
from sd_aanet.settings import flat, named

OF_A_RUN = ("dataset", "folds", "test_seed", "classes", *named("column"), *named("collected"))
"""What a result's protocol says of the run itself, or has a column of its own."""
TRAININGS, EVALUATIONS = "trainings", "evaluations"


@dataclass(frozen=True)
class Cell:
    """A score in [0, 1].

    Attributes:
        value: mean over trainings and evaluation seeds.
        spread: sample standard deviation over `TRAININGS`, or half the 95 % interval over `EVALUATIONS`; None where
            there is one of each.
        over: which of the two.
    """

    value: float
    spread: float | None = None
    over: str | None = None


@dataclass(frozen=True)
class Row:
    """A row: one network on the folds of one data set under one protocol.

    Attributes:
        dataset: name of the data set.
        model: label of the network.
        backbone: its label.
        shot: K of the evaluation.
        train_shot: K of the training; None where no training is known.
        resolution: at which it was scored.
        protocol: switches in common to its runs.
        settings: of network and training, those that no other attribute holds.
        folds: how many the data set has.
        runs: fold (see `Run.fold`) -> seed of the training -> run.
    """

    dataset: str
    model: str
    backbone: str
    shot: int
    train_shot: int | None
    resolution: str
    protocol: Settings
    settings: Settings
    folds: int
    runs: Mapping[int, Mapping[int | None, Run]]

    def scores(self, fold: int) -> dict[int | None, Settings]:
        """What a fold's runs scored, by the seed of the training; None where no training is known."""
        return {seed: run.scores(self.resolution) for seed, run in self.runs[fold].items()}

    def cell(self, fold: int) -> Cell | None:
        """MIoU of a fold; None where it was not run."""
        return self.mean("miou", [fold]) if fold in self.runs else None

    def mean(self, score: str, folds: Iterable[int] | None = None) -> Cell:
        """Mean of "miou" or "fb_iou" over folds, all that were run unless told otherwise, and the spread of that mean.

        The spread is that of the means over folds of each seed, for the seeds that all folds share: of the training
        where any fold has several, else of the evaluation.
        """
        found = [self.scores(fold) for fold in folds or self.runs]
        value = fmean([fmean([scores[score] for scores in fold.values()]) for fold in found])
        if any(len(fold) > 1 for fold in found):
            means = [fmean([fold[seed][score] for fold in found]) for seed in _shared(found)]
            return Cell(value, float(np.std(means, ddof=1)), TRAININGS) if len(means) > 1 else Cell(value)
        single = [{each["seed"]: each for each in next(iter(fold.values()))["seeds"]} for fold in found]
        means = [fmean([seeds[seed][score] for seeds in single]) for seed in _shared(single)]
        return Cell(value, half_interval(means), EVALUATIONS) if len(means) > 1 else Cell(value)

    @property
    def headline(self) -> bool:
        """Whether its resolution is the first one of all its runs."""
        return all(run.resolution == self.resolution for run in self.all_runs())

    @property
    def partial(self) -> bool:
        """Whether folds are missing; none is where the episodes are of no fold."""
        return len(self.runs) < self.folds and min(self.runs) >= 0

    @property
    def trainings(self) -> list[int]:
        """How many trainings there are of each fold that was run."""
        return [len(runs) for runs in self.runs.values()]

    @property
    def untrained(self) -> bool:
        """Whether no training of any run is known."""
        return all(set(runs) == {None} for runs in self.runs.values())

    def all_runs(self) -> list[Run]:
        """The runs of all folds."""
        return [run for runs in self.runs.values() for run in runs.values()]


def build_rows(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Runs as rows, ordered by data set, model, backbone and shot; rows of different protocols stay apart.

    Returns:
        The rows, and what is to be known of single runs: of one that is left out because a later one is of the same
        training, fold, shot and protocol, and of one that was trained on the classes it is tested on.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run in runs:
        for resolution in (run.resolution, *run.result["also"]):
            groups.setdefault(_key(run, resolution), []).append((run, resolution))
    rows, notes = [], [_caution(run) for run in runs if run.leaked]
    for group in groups.values():
        row, twice = _row(group)
        rows.append(row)
        notes += [line for line in twice if line not in notes]
    order = sorted(
        rows, key=lambda row: (row.dataset, row.model.casefold(), row.backbone, row.shot, row.train_shot or 0)
    )
    return _told_apart(order), notes


def _key(run: Run, resolution: str) -> str:
    training = {name: value for name, value in run.training.items() if name not in ("seed", "fold", "classes")}
    parts = [run.dataset, run.shot, run.result["network"], training, run.recipe, switches(run), resolution]
    parts.append(run.result["precision"])
    return json.dumps([*parts, _untrained(run), bool(run.leaked), run.fold < 0], sort_keys=True, default=str)


def switches(run: Run) -> Settings:
    """Those of the protocol that say nothing of the run itself; not the resolution, of which a run may have several."""
    return {name: value for name, value in run.protocol.items() if name not in (*OF_A_RUN, "resolution")}


def _caution(run: Run) -> str:
    return f"CAUTION: {run.name} has seen {run.leaked} in training: these are not few-shot results."


def _untrained(run: Run) -> bool:
    return not run.training and run.result["checkpoint"] is None


def _row(group: Sequence[tuple[Run, str]]) -> tuple[Row, list[str]]:
    first, resolution = group[0]
    cells: dict[int, dict[int | None, Run]] = {}
    twice = []
    for run, _ in group:
        trainings, seed = cells.setdefault(run.fold, {}), run.training.get("seed")
        if seed in trainings:
            twice.append(
                f"{trainings[seed].name} is left out: {run.name} has the same fold, shot, training seed and protocol"
            )
        trainings[seed] = run
    collected = {name: _collected([run.protocol[name] for run, _ in group]) for name in named("collected")}
    protocol = switches(first) | {"resolution": resolution} | collected
    training = {name: value for name, value in first.training.items() if name not in (*OF_A_RUN, *protocol)}
    tested = {"tested in": first.result["precision"]}
    row = Row(
        dataset=first.dataset,
        model=_model(first),
        backbone=first.result["backbone"],
        shot=first.shot,
        train_shot=first.training.get("shot"),
        resolution=resolution,
        protocol=protocol,
        settings=dict(flat(first.result["network"])) | training | first.recipe | tested,
        folds=first.protocol["folds"],
        runs={fold: dict(sorted(cells[fold].items(), key=lambda item: item[0] or 0)) for fold in sorted(cells)},
    )
    return row, twice


def _collected(values: Sequence[Any]) -> Any:
    """The one value of all runs, or a list of all."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else sorted(distinct, key=str)


def _model(run: Run) -> str:
    elsewhere = run.training.get("dataset", run.dataset)
    trained = f", trained on {elsewhere}" if elsewhere != run.dataset else ""
    untrained = ", untrained" if _untrained(run) and run.result["trains"] else ""
    return f"{run.result['label']}{untrained}{trained}{', CAUTION: has seen tested classes' if run.leaked else ''}"


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """The same rows; where two of a label differ in a setting, the label says which value each has."""
    told = []
    for row in rows:
        alike = [other.settings for other in rows if _label(other) == _label(row)]
        names = {name: None for settings in alike for name in settings}
        differing = [name for name in names if len({repr(settings.get(name)) for settings in alike}) > 1]
        values = [f"{name} {_shown(row.settings[name])}" for name in differing if name in row.settings]
        told.append(replace(row, model=", ".join([row.model, *values])))
    return told


def _label(row: Row) -> tuple[object, ...]:
    return row.dataset, row.model, row.backbone


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) or value is None else str(value)


def _shared(folds: Sequence[Mapping[Any, Any]]) -> list[Any]:
    """Keys that all have, in the first one's order."""
    return [key for key in folds[0] if all(key in fold for fold in folds)]
