"""Whether a checkpoint is tested on what it has seen in training: such figures are none of few-shot segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 5
"""How many classes a line names."""


def seen_classes(training: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """The tested classes that a training has seen, in words; empty where it saw none, or nothing of it is known.

    Classes are the same by name, in one data set: folds do not tell, for the same fold has other classes with other
    settings of the data set.

    Args:
        training: what a checkpoint tells of its training.
        protocol: of the test, with data set, fold and classes.
    """
    if training.get("dataset") != protocol["dataset"]:
        return ""
    classes, tested = training.get("classes"), protocol["classes"]["test"]
    if classes is None:  # a checkpoint of an earlier version, which tells the fold alone
        own = training.get("fold", protocol["fold"])
        return "" if own == protocol["fold"] else f"tested classes (it was trained for fold {own})"
    used = {*classes["train"], *(classes["val"] if training["select_on"] == "base" else ())}
    found = [name for name in tested if name in used]
    names = ", ".join([*found[:SHOWN], *(["..."] if len(found) > SHOWN else [])])
    return f"{len(found)} of {len(tested)} tested classes ({names})" if found else ""
