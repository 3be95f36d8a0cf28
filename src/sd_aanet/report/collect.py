"""The results in a folder: every result.json at any depth, checked, and what a run left beside it."""

from __future__ import annotations

import csv
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from sd_aanet.data.sources.listing import is_text
from sd_aanet.errors import UNREADABLE, DataError
from sd_aanet.evaluation.leakage import leaked_classes
from sd_aanet.rules import SWITCH, Rule, number, or_null, whole
from sd_aanet.settings import RULES, flat, named
from sd_aanet.training.plots import Series, read_metrics

Settings = dict[str, Any]
Prototypes = tuple[NDArray[np.float32], NDArray[np.int64]]
Episodes = Mapping[str, NDArray[Any]]
"""Columns of episodes.csv: "class" names, `COUNTS` numbers."""
SCORES = ("miou", "fb_iou")
COUNTS = ("seed", "class_id", "intersection", "union", "background_intersection", "background_union", "object")
_PATH = Rule("a text", lambda value: isinstance(value, str), "x")
_NAME = Rule("a text in UTF-8", lambda value: isinstance(value, str) and is_text(value), "x")
_NAMES = Rule("a list of texts", lambda value: isinstance(value, list) and all(map(_NAME.holds, value)), "[x]")
_SETTINGS = Rule("settings of its own", lambda value: isinstance(value, dict), "{}")
NEEDED: dict[str, Rule] = {
    **dict.fromkeys(("backbone", "label", "precision", "protocol.dataset"), _NAME),
    **dict.fromkeys(("checkpoint", "protocol.episodes_file"), or_null(_PATH)),
    **dict.fromkeys(("network", "protocol", "protocol.classes", "versions", "also"), _SETTINGS),
    **dict.fromkeys(("episodes", "protocol.folds", "protocol.way", "protocol.test_shot"), whole(1)),
    **dict.fromkeys(("protocol.fold", "protocol.seed"), or_null(whole(0))),
    **{"seconds": number(1.0), "trains": SWITCH, "protocol.ignore_boundary": SWITCH, "protocol.classes.test": _NAMES},
    "protocol.resolution": RULES["resolution"],
}
"""What a result has beside its scores."""
NEEDED_OF_TRAINING: dict[str, Rule] = {"training.seed": whole(0), "training.shot": whole(1)}
"""And where it tells of its training."""
WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What comes of values of another kind, numbers that are too large among them."""
AGAIN = "evaluate again, with sd-aanet evaluate checkpoint=..."


def fold_name(fold: int) -> str:
    """What a fold is called, see `Run.fold`."""
    return "no fold" if fold < 0 else f"fold {fold}"


@dataclass(frozen=True)
class Run:
    """One training or evaluation. What stands beside its result is read when it is asked for.

    Attributes:
        name: its folder, from the folder that was searched.
        folder: its folder.
        result: all of result.json.
    """

    name: str
    folder: Path
    result: Settings

    @property
    def protocol(self) -> Settings:
        """Every switch of the evaluation."""
        return dict(self.result["protocol"])

    @property
    def training(self) -> Settings:
        """Settings and classes of the training; empty where there was none, or none is known."""
        return dict(self.result["training"] or {})

    @property
    def leaked(self) -> str:
        """The tested classes that its training has seen, see `leaked_classes`."""
        return leaked_classes(self.training, self.protocol)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.protocol["dataset"])

    @property
    def fold(self) -> int:
        """Whose classes are novel; -1 for a list of episodes that is of no fold."""
        fold = self.protocol["fold"]
        return -1 if fold is None else int(fold)

    @property
    def resolution(self) -> str:
        """Where its headline was scored."""
        resolution = str(self.protocol["resolution"])
        return "original" if resolution == "both" else resolution

    @property
    def shot(self) -> int:
        """K of the evaluation."""
        return int(self.protocol["test_shot"])

    @property
    def lists(self) -> dict[int, str]:
        """The digest of each list of episodes, by its seed."""
        return {int(seed["seed"]): str(seed["episodes"]) for seed in self.result["seeds"]}

    def scores(self, resolution: str) -> Settings:
        """What it scored at a resolution, as evaluation.results.summary has it."""
        return cast(Settings, self.result if resolution == self.resolution else self.result["also"][resolution])

    @cached_property
    def recipe(self) -> Settings:
        """What the config.yaml of its training, here or beside the checkpoint, has that its result does not name."""
        checkpoint = self.result["checkpoint"]
        places = [self.folder, *([Path(checkpoint).parent.parent] if checkpoint else [])]
        for config in (place / "config.yaml" for place in places):
            if config.is_file():
                try:
                    saved = dict(flat(cast(Settings, OmegaConf.to_container(OmegaConf.load(config)))))
                except Exception as error:  # the system's, YAML's or OmegaConf's
                    line = " ".join(str(error).split())
                    raise DataError(f"'{config}' is not a readable configuration ({line}): move it away") from None
                optimizer = (key for key in saved if key.startswith("optimizer."))
                own = dict.fromkeys([*named("recipe"), "backbone.weights", *optimizer])
                found = {key: saved[key] for key in own if saved.get(key) is not None and key != "optimizer.lr"}
                # Each fold starts from one of its own.
                return found | ({"checkpoint": "given"} if saved.get("checkpoint") is not None else {})
        return {}

    @cached_property
    def episodes(self) -> Episodes | None:
        """Its test episodes at its headline resolution; None without episodes.csv.

        Raises:
            DataError: the file is damaged, or does not have as many episodes as the result.
        """
        path = self.folder / "episodes.csv"
        if not path.is_file():
            return None
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header, *lines = csv.reader(file, strict=True)
            columns = dict(zip(header, zip(*lines, strict=True), strict=True))
            kept = ~np.isin(columns["resolution"], list(self.result["also"]))
            episodes = {name: np.array(columns[name])[kept] for name in ("class", *COUNTS)}
            episodes |= {name: episodes[name].astype(np.int64) for name in COUNTS}
        except (OSError, *WRONG, csv.Error) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"'{path}' cannot be read to its end ({what}): {AGAIN}") from None
        expected = self.result["episodes"] * int(self.protocol["way"])  # a row an episode and class
        if (found := len(episodes["union"])) != expected:
            raise DataError(f"'{path}' holds {found} rows, expected the {expected} of result.json beside it: {AGAIN}")
        return episodes

    @cached_property
    def prototypes(self) -> Prototypes | None:
        """(N, C) float32 of test episodes, and their class ids (N,); None without prototypes.npz."""
        path = self.folder / "prototypes.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                prototype, class_id = arrays["prototype"].astype(np.float32), arrays["class_id"].astype(np.int64)
            if prototype.ndim != 2 or class_id.shape != prototype.shape[:1]:
                raise ValueError(f"shapes {prototype.shape} and {class_id.shape}")
        except (OSError, *WRONG, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"'{path}' holds no prototypes (N, C) with class ids (N,) ({error}): {AGAIN}") from None
        finite = np.isfinite(prototype).all(1)  # float16 ends at 65504
        return prototype[finite], class_id[finite]

    @cached_property
    def curves(self) -> Series:
        """{metric: (steps, values)} of the training; empty without one."""
        try:
            return read_metrics(self.folder)
        except (OSError, *WRONG, csv.Error) as error:
            raise DataError(
                f"'{self.folder / 'logs'}' has a metrics.csv that cannot be read to its end ({error}): move it away to "
                "do without its curves"
            ) from None


def read_runs(folder: Path) -> list[Run]:
    """Every run with a result under a folder, ordered by path.

    Raises:
        DataError: no such folder, no result in it, or one that is damaged or none of ours.
    """
    if not folder.is_dir():
        raise DataError(f"folder '{folder}' does not exist: give the folder of a sweep, a training or an evaluation")
    paths = sorted(folder.rglob("result.json"))
    if not paths:
        failed = len(read_failures(folder))
        why = f" ({failed} failed jobs)" if failed else ""
        raise DataError(
            f"folder '{folder}' holds no result.json at any depth{why}: give the folder of a sweep, a training or "
            "an evaluation that has finished"
        )
    return [read_run(path, folder) for path in paths]


def read_run(path: Path, root: Path) -> Run:
    """A result.json, checked.

    Args:
        path: of the file.
        root: the folder that the run is named from.

    Raises:
        DataError: the file is damaged or none of ours.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise DataError(f"'{path}' is not readable JSON ({error}): {AGAIN}") from None
    try:
        run = Run(path.parent.relative_to(root).as_posix(), path.parent, result)
        needed = NEEDED | NEEDED_OF_TRAINING if result["training"] else NEEDED
        for key, rule in needed.items():
            value = reduce(getitem, key.split("."), result)
            if not rule.holds(value):
                raise ValueError(f"{key}={str(value)[:80]}, expected {rule.expected}")
        known: list[object] = [run.lists, run.leaked, run.training]
        for scores in (result, *result["also"].values()):
            known += [float(each[name]) for each in (scores, *scores["seeds"]) for name in SCORES]
            known += [(name.encode(), float(entry["iou"])) for name, entry in scores["classes"].items()]
    except WRONG as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"'{path}' is not a result of sd-aanet evaluate or train ({what}): move it away, or {AGAIN}"
        ) from None
    return run


def read_failures(folder: Path) -> dict[str, str]:
    """What is known of jobs that failed: name -> text of failures/<name>.txt, which sweeps at any depth leave."""
    return {
        (path.parent.parent / path.stem).relative_to(folder).as_posix(): path.read_text("utf-8", "replace").strip()
        for path in sorted(folder.glob("**/failures/*.txt"))
    }
