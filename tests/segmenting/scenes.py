"""Masks of several classes, for tests of annotation files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_aanet.segmenting.annotations import Found, Labelled

CLASSES = ("plate", "mug", "spoon")
SIZE = (41, 67)
Masks = dict[str, NDArray[np.bool_]]


def shapes() -> Masks:
    """A ring, two discs, and a single pixel in the corner."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = np.abs(np.hypot(x - 20, y - 20) - 10.5) < 4.2
    discs = (np.hypot(x - 50, y - 10) < 7) | (np.hypot(x - 55, y - 31) < 6.4)
    corner = (x == 0) & (y == 0)
    return {"plate": ring, "mug": discs, "spoon": corner}


def labelled(file_name: str = "desk.jpg", **masks: NDArray[Any]) -> Labelled:
    return Labelled(file_name, SIZE, {name: Found(mask) for name, mask in masks.items()})


def noise(seed: int) -> Masks:
    """Classes without a common pixel, of many parts and holes."""
    label = np.random.default_rng(seed).integers(0, 4, SIZE)
    return {name: label == n for n, name in enumerate(CLASSES, start=1)}
