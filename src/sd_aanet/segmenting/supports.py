"""What a user's mask means: which of its values is the object, and when it is no mask at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import Array8

_STRIP = 2**22
"""Pixels that are looked at at once."""
_SHOWN = 8
_STEPS, _FLAT = 8, 0.25
"""Values between 0 and 255 from which on a mask without 255 may be soft, and the share of such pixels that have their
own value all around: of soft edges, JPEG's noise and photographs under 0.15, of regions of classes over 0.5."""


def foreground_of(
    values: NDArray[np.integer] | NDArray[np.bool_], class_id: int | None = None, name: str = "the mask"
) -> Array8:
    """What a mask means: which of its values is the object.

    With `class_id`: that value is the object, and 255 is ignored unless it is the class. Without: True is; or 1 is,
    beside 0 and 255 (ignored); or 255 is where there is nothing but 0 beside it, as painting programs write it; or
    the only value beside 0 and 255 is.

    Args:
        values: (H, W) integers or booleans.
        class_id: the object's value, from 1.
        name: what errors call the mask.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: no foreground, or several values and no `class_id` to choose among them.
        ConfigError: `class_id` is under 1.
    """
    whole = isinstance(class_id, int | np.integer) and not isinstance(class_id, bool)
    if class_id is not None and not (whole and class_id >= 1):
        raise ConfigError(
            f"class_id={class_id!r}, expected a whole number, the object's value in the masks, from 1 on (0 is the "
            "background), or none"
        )
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    present = _present(values)
    candidates = [value for value in present if value not in (0, IGNORE)]
    if _is_soft(values, present):
        raise DataError(
            f"{name} has soft edges or noise ({len(candidates)} values beside 0 and {IGNORE}), as painting, scaling "
            "and JPEG leave them, expected one value a class: save it as PNG with hard edges, no smoothing, no JPEG",
            defect="values",
        )
    if class_id is not None:
        chosen = int(class_id)
    elif len(candidates) > 1:
        raise DataError(
            f"{name} holds {len(candidates)} classes ({_listed(candidates)}), expected one: choose it with class_id=..."
        )
    else:
        chosen = candidates[0] if candidates else IGNORE
    if chosen not in present or present == [IGNORE]:
        wanted = "" if class_id is None else f" of class_id={class_id}"
        raise DataError(
            f"{name} shows no foreground{wanted}, only {_listed(present)}: mark the object in it, or leave it out"
        )
    meaning = np.zeros(values.shape, np.uint8)
    meaning[values == IGNORE] = IGNORE
    meaning[values == chosen] = 1
    return meaning


def _present(values: NDArray[Any]) -> list[int]:
    """The values of a mask, sorted; of a part of a large one at a time, as to sort takes memory."""
    rows = max(1, _STRIP // max(1, values.shape[1]))
    parts = (np.unique(values[top : top + rows]).tolist() for top in range(0, len(values), rows))
    return sorted({value for part in parts for value in part})


def _is_soft(values: NDArray[Any], present: Sequence[int]) -> bool:
    """Whether the values between background and object are no classes, but edges or noise: nowhere flat."""
    between = {*present} - {0, IGNORE, np.iinfo(np.uint16).max}
    if between <= {1} or (len(between) < _STEPS and IGNORE not in present):
        return False
    inside = (values != 0) & (values != IGNORE)
    count, padded = np.count_nonzero(inside), np.pad(values, 1, mode="edge")
    for neighbour in (padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]):
        inside &= neighbour == values
    return bool(np.count_nonzero(inside) < _FLAT * count)


def _listed(values: list[int]) -> str:
    more = f", ... {values[-1]}" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
