"""Folds: which classes are novel. The benchmarks' rules, a user's own file, or an automatic division."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from sd_aanet.data.listing import read_text
from sd_aanet.errors import ConfigError, DataError

Folds = tuple[tuple[int, ...], ...]
"""The class ids of each fold."""
ARRANGEMENTS = ("contiguous", "interleaved")


def arranged(classes: int, folds: int, arrangement: str) -> Folds:
    """Folds of one size: "contiguous" (the first classes in the first fold) or "interleaved" (dealt out in turn).

    Args:
        classes: how many.
        folds: how many; has to divide `classes`.
        arrangement: of `ARRANGEMENTS`.

    Raises:
        ConfigError: another arrangement, or a number that does not divide the classes.
    """
    if arrangement not in ARRANGEMENTS:
        raise ConfigError(f"arrangement={arrangement!r}, expected one of {', '.join(ARRANGEMENTS)}: choose one of them")
    if folds < 1 or classes % folds:
        raise ConfigError(f"folds={folds}, expected a divisor of the {classes} classes: the benchmark has 4")
    size = classes // folds
    ids = np.arange(1, classes + 1).reshape(folds, size) if arrangement == "contiguous" else None
    ids = np.arange(1, classes + 1).reshape(size, folds).T if ids is None else ids
    return tuple(tuple(row) for row in ids.tolist())


def shuffled(classes: int, folds: int | None, seed: int) -> Folds:
    """An automatic division, as even as it can be, the same for the same numbers on any machine.

    Args:
        classes: how many.
        folds: how many; None for 4, or one a class where there are fewer.
        seed: not negative.

    Raises:
        ConfigError: fewer classes than folds.
    """
    count = min(4, classes) if folds is None else folds
    if not 1 <= count <= classes:
        raise ConfigError(f"folds={count}, expected 1 to {classes}, the number of classes: set dataset.source.folds")
    raw = np.random.PCG64(seed).random_raw  # its stream never changes, what Generator makes of it may
    order = sorted(range(1, classes + 1), key=lambda _: int(raw()))
    return tuple(tuple(sorted(order[fold::count])) for fold in range(count))


def from_file(path: Path, names: Sequence[str]) -> Folds:
    """A user's folds: a YAML list of lists of class names, or a mapping whose values are such lists.

    Raises:
        DataError: the file is not that, names a class that does not exist, or one twice.
    """
    try:
        content = yaml.load(read_text(path), yaml.BaseLoader)  # all text: a class may be called `no` or `1`
    except yaml.YAMLError as error:
        raise DataError(f"folds file {path} cannot be read ({' '.join(str(error).split())}): write YAML") from None
    lists = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(lists, list) or not lists or not all(isinstance(fold, list) and fold for fold in lists):
        raise DataError(f"folds file {path} is no list of folds, expected a list for each, as in [[cat, dog], [cup]]")
    ids = {name: c for c, name in enumerate(names, start=1)}
    listed = [str(name) for fold in lists for name in fold]
    unknown = [name for name in listed if name not in ids]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if unknown or twice:
        what = f"the class '{unknown[0]}', which does not exist" if unknown else f"the class '{twice[0]}' twice"
        raise DataError(f"folds file {path} names {what}, expected each of {', '.join(names)} at most once")
    return tuple(tuple(sorted(ids[name] for name in fold)) for fold in lists)
