"""Whether a checkpoint is tested on classes that it has seen in training: that is not few-shot segmentation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)
SHOWN = 5
"""How many classes a line names."""


def leaked_classes(training: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """The tested classes that a training has seen, in words; empty where it saw none, or no training is known.

    Classes are the same by name, in one data set: folds do not tell, for the same fold has other classes with other
    settings of the data set.

    Args:
        training: what a checkpoint says of its training; empty where it says nothing.
        protocol: of the test, with data set, fold and classes.
    """
    tested, used = protocol["classes"]["test"], seen_classes(training, protocol["dataset"])
    found = [name for name in tested if name in used]
    names = ", ".join([*found[:SHOWN], *(["..."] if len(found) > SHOWN else [])])
    return f"{len(found)} of {len(tested)} tested classes ({names})" if found else ""


def say_leaked(training: Mapping[str, Any] | None, protocol: Mapping[str, Any]) -> None:
    """Say so, see `leaked_classes`."""
    if leaked := leaked_classes(training or {}, protocol):
        logger.warning("CAUTION: this network has seen %s in training: these are not few-shot results", leaked)


def seen_classes(training: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    """The classes of a data set that a training has used: to learn from, or to choose its checkpoint by."""
    shipped = (training.get("shipped") or {}).get(dataset) or ()
    if training.get("dataset") != dataset:
        return tuple(shipped)
    classes = training.get("classes") or {}
    chosen_by = classes.get("val") if training.get("select_on") == "base" else None
    return tuple(dict.fromkeys([*(classes.get("train") or ()), *(chosen_by or ()), *shipped]))
