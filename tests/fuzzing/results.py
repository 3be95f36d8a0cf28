"""Folders of trainings and evaluations, by what reports, compares and resumes them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from commands import ran
from fuzzing.inputs import Input
from report.fake_results import make_run
from sd_aanet.report.collect import read_failures, read_runs
from sd_aanet.report.compare import compare
from sd_aanet.report.rows import build_rows
from sd_aanet.report.table import WRITERS, build_table

SMALL = (
    *(
        "strategy=cpu",
        "dataset.source.size=33",
        "dataset.source.images=60",
        "min_object_pixels=9",
        "seeds=1",
        "size=33",
    ),
    *("precision=32-true", "batch_size=2", "steps=1", "val_every=1", "val_episodes=1", "test_episodes=1", "workers=0"),
    *("test_batch_size=1", "model.channels=8", "backbone.trainable=false", "backbone.norm=frozen", "augment=none"),
)
"""A training of a moment."""


def make(valid: Path) -> None:
    make_run(valid / "one/a", fold=0, also=True, config={"lr": 0.1, "optimizer": {"name": "sgd", "momentum": 0.9}})
    make_run(valid / "one/b", fold=1)
    make_run(valid / "two/a", fold=0, also=True, label="another")
    with contextlib.chdir(valid):
        ran("train", *SMALL, "out=trained")


def _damaged(input: Input, folder: Path) -> None:
    """Odd content in one of a run's files."""
    path = input.chance.choice(
        [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".ckpt"]
    )
    content = path.read_bytes()
    path.unlink()
    if input.whole:
        path.write_bytes(content)
    elif path.suffix == ".json" and input.often(0.8):
        path.write_text(input.json(json.loads(content)))
    elif path.suffix == ".yaml" and input.often(0.8):
        path.write_text(yaml.safe_dump(input.tree(yaml.safe_load(content))))
    elif path.suffix == ".csv" and input.often(0.7):
        path.write_text(_cells(input, content.decode()), newline="")
    elif path.suffix == ".npz" and input.often(0.6):
        with np.load(io.BytesIO(content)) as file:
            arrays = {name: _odd_array(input, file[name]) if input.often(0.6) else file[name] for name in file}
        np.savez(path, **{name: array for name, array in arrays.items() if input.often(0.9)})
    elif input.often(0.9):
        path.write_bytes(input.bytes_of(content))


def _cells(input: Input, content: str) -> str:
    rows = [*csv.reader(io.StringIO(content))]
    for _ in range(input.chance.randint(1, 3)):
        row = input.chance.choice(rows[:1] if input.often(0.3) else rows)
        if row and input.often(0.8):
            row[input.chance.randrange(len(row))] = str(input.a_value())[:1000]
        elif row:
            row.pop()
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "replace").decode()


def _odd_array(input: Input, old: np.ndarray) -> Any:
    changes: tuple[Callable[[], Any], ...] = (
        *(
            lambda: old[:0],
            lambda: old[:1],
            lambda: old[None],
            lambda: old.astype(np.complex64),
            lambda: old.astype("U9"),
        ),
        *(
            lambda: np.full_like(old, -1),
            lambda: np.zeros_like(old),
            lambda: old.astype(np.float64) * np.nan,
            lambda: 0,
        ),
        *(lambda: old.ravel()[0], lambda: np.array([None], object), lambda: old.astype(np.uint64) + np.uint64(2**63)),
    )
    return input.chance.choice(changes)()


def read(input: Input) -> None:
    """Results with odd content, as a report reads and tells them, now and then by the whole command; and compared."""
    for name in ("one", "two"):
        input.copy(input.valid / name)
    _damaged(input, Path("one"))

    def told() -> None:
        runs = read_runs(Path("one"))
        read_failures(Path("one"))
        for run in runs:
            _ = run.recipe, run.episodes, run.prototypes, run.curves
        made = build_table(*build_rows(runs))
        for writer in WRITERS.values():
            writer(made)

    def compared() -> None:
        for difference in compare(Path("one"), Path("two")).values():
            str(difference)

    input.read(told)
    input.read(compared)
    if input.often(0.04) or input.whole:
        input.command("report", "one", "--out", "report")
    elif input.often(0.03):
        input.command("compare", "one", "two")


def resumed(input: Input) -> None:
    """A training that is finished, or lacks its end, with something odd in its folder."""
    input.copy(input.valid / "trained")
    last, path = Path("trained/checkpoints/last.ckpt"), Path("trained/config.yaml")
    if input.whole:
        pass
    elif input.often(0.6):
        config = yaml.safe_load(path.read_text())
        path.unlink()
        text = yaml.safe_dump(input.tree(config))
        path.write_text(text if input.often(0.9) else input.lines(text))
    elif input.often(0.4):
        content = torch.load(last, weights_only=True)
        last.unlink()
        light = {name: value for name, value in content.items() if name not in ("state_dict", "optimizer_states")}
        odd = input.tree(light)
        torch.save({**content, **odd} if isinstance(odd, dict) else odd, last)
    elif input.often(0.5):
        data = last.read_bytes()
        last.unlink()
        last.write_bytes(input.bytes_of(data))
    else:
        _damaged(input, Path("trained"))
    if input.often(0.3):
        Path("trained/trained.json").unlink(missing_ok=True)
    done_before = {*Path("trained").rglob("*")}
    done = input.command("train", *SMALL, "resume=trained")
    assert done.code != 2 or {*Path("trained").rglob("*")} <= done_before


KINDS = {"results": (700, read), "resumed trainings": (200, resumed)}
