"""Folds: which classes are novel. The benchmarks' rules, a user's own file, or an automatic division."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.listing import read_text
from sd_aanet.errors import UNREADABLE, ConfigError, DataError

Folds = tuple[tuple[int, ...], ...]
"""The class ids of each fold."""
ARRANGEMENTS = ("contiguous", "interleaved")


@dataclass(frozen=True)
class ClassSplit:
    """Class ids that are trained on, validated on and tested on."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


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
    ids = np.arange(1, classes + 1)
    rows = ids.reshape(folds, -1) if arrangement == "contiguous" else ids.reshape(-1, folds).T
    return tuple(tuple(row) for row in rows.tolist())


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
        content = yaml.load(read_text(path), yaml.BaseLoader)  # nosec B506 # all text: a class may be called `no` or `1`
    except (yaml.YAMLError, *UNREADABLE) as error:
        raise DataError(f"folds file {path} cannot be read ({' '.join(str(error).split())}): write YAML") from None
    lists = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(lists, list) or not lists or not all(isinstance(fold, list) and fold for fold in lists):
        raise DataError(
            f"folds file {path} is not a list of folds, expected a list for each, as in [[cat, dog], [cup]]"
        )
    ids = {name: c for c, name in enumerate(names, start=1)}
    listed = [str(name) for fold in lists for name in fold]
    unknown = [name for name in listed if name not in ids]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if unknown or twice:
        what = f"the class '{unknown[0]}', which does not exist" if unknown else f"the class '{twice[0]}' twice"
        raise DataError(f"folds file {path} names {what}, expected each of {', '.join(names)} at most once")
    return tuple(tuple(sorted(ids[name] for name in fold)) for fold in lists)


def split_classes(source: ImageSource, fold: int, seed: int, select_on: str, held_out: int) -> ClassSplit:
    """Which classes are trained on, validated on and tested on.

    Args:
        source: whose classes.
        fold: its classes are tested on.
        seed: of which base classes are held out, for each fold others.
        select_on: what validation sees: "base" (held-out base classes), "novel" (the test's) or "none".
        held_out: how many base classes are held out where `select_on` is "base" and the benchmark does not name them.

    Raises:
        ConfigError: no such fold, or `held_out` leaves no class to train on.
    """
    if not 0 <= fold < source.folds:
        raise ConfigError(f"fold={fold}, expected 0 to {source.folds - 1} for {source.name}: choose one of these")
    novel = source.fold_classes(fold)
    base = tuple(c for c in range(1, len(source.classes) + 1) if c not in novel)
    own = source.val_classes(fold)
    train = base if own is None else tuple(c for c in base if c not in own)
    if select_on != "base" or not base:
        return ClassSplit(train, novel if select_on == "novel" else (), novel)
    if own is not None:
        return ClassSplit(train, own, novel)
    if len(base) == 1:
        raise ConfigError(
            f"held_out={held_out}, expected 0 with a single base class: set select_on=none to hold out none"
        )
    if not 1 <= held_out < len(base):
        raise ConfigError(
            f"held_out={held_out}, expected 1 to {len(base) - 1} of the {len(base)} base classes: "
            "change it, or set select_on=none to hold out none"
        )
    raw = np.random.PCG64([seed, fold]).random_raw
    held = sorted(base, key=lambda _: int(raw()))[:held_out]
    return ClassSplit(tuple(c for c in base if c not in held), tuple(sorted(held)), novel)
