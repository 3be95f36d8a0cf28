"""Whether a checkpoint is tested on classes that it has seen in training: that is not few-shot segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    if training.get("dataset") != protocol["dataset"]:
        return ""
    classes, tested = training.get("classes") or {}, protocol["classes"]["test"]
    used = {*(classes.get("train") or ())}
    if training.get("select_on") == "base":
        used |= {*(classes.get("val") or ())}
    found = [name for name in tested if name in used]
    names = ", ".join([*found[:SHOWN], *(["..."] if len(found) > SHOWN else [])])
    return f"{len(found)} of {len(tested)} tested classes ({names})" if found else ""
