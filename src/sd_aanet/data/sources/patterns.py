"""What the shapes of the embedded data set are made of: outlines and textures, and the classes, which pair them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Contour = NDArray[np.float64]
"""(N, 2) corners, x to the right and y down."""
Outline = Callable[[], list[Contour]]
"""Gives closed contours; those after the first are holes in it."""
Texture = Callable[[Floats, Floats, float], Floats]
"""Blend of an object's two colours, in [0, 1], at coordinates (u, v) that turn with the object. One unit is
the period of the plain stripes; the phase in [0, 1) shifts the pattern."""

# ------------------------------------------------------------------------------------------ outlines


def _polar(radius: Callable[[float], float], corners: int = 60) -> Contour:
    """The closed curve at distance `radius(t)` from the origin, t in [0, 1) once around."""
    turns = [(k / corners, math.tau * k / corners) for k in range(corners)]
    return np.array([(radius(t) * math.sin(angle), -radius(t) * math.cos(angle)) for t, angle in turns])


def _mirrored(*right: tuple[float, float]) -> Contour:
    """A polygon from its right half, listed top to bottom."""
    return np.array([*right, *((-x, y) for x, y in reversed(right))], dtype=np.float64)


def star() -> list[Contour]:
    return [_polar(lambda t: 0.42 if round(10 * t) % 2 else 1.0, corners=10)]


def ring() -> list[Contour]:
    return [_polar(lambda t: 1.0), _polar(lambda t: 0.5)]


def cross() -> list[Contour]:
    a = 0.36
    return [_mirrored((a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1))]


def gear() -> list[Contour]:
    return [_polar(lambda t: 1.0 if (8 * t) % 1 < 0.5 else 0.72, corners=64)]


def crescent() -> list[Contour]:
    """Between the unit circle and a smaller one, which meets it 0.5 rad to either side of the opening."""
    centre, (tip_x, tip_y) = 0.45, (math.cos(0.5), math.sin(0.5))
    radius, angle = math.hypot(tip_x - centre, tip_y), math.atan2(tip_y, tip_x - centre)
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(0.5, math.tau - 0.5, 40).tolist()]
    inner = np.linspace(math.tau - angle, angle, 30).tolist()
    return [np.array(outer + [(centre + radius * math.cos(a), radius * math.sin(a)) for a in inner])]


def arrow() -> list[Contour]:
    return [_mirrored((0, -1), (0.85, -0.05), (0.34, -0.05), (0.34, 1))]


def heart() -> list[Contour]:
    turns = np.linspace(0, math.tau, 60, endpoint=False).tolist()
    y = [-(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) for a in turns]
    return [np.array([(16 * math.sin(a) ** 3, b) for a, b in zip(turns, y, strict=True)])]


def triangle() -> list[Contour]:
    return [_polar(lambda t: 1.0, corners=3)]


def clover() -> list[Contour]:
    return [_polar(lambda t: 1 + 0.5 * math.cos(3 * math.tau * t))]


def letter() -> list[Contour]:
    bar, stem, edge = 0.25, 0.3, 0.85
    top = [(0, -bar), (stem, -bar), (stem, -1), (edge, -1)]
    return [_mirrored(*top, *((x, -y) for x, y in reversed(top)))]


# ------------------------------------------------------------------------------------------ textures


def striped(u: Floats, v: Floats, phase: float) -> Floats:
    return _on((u + phase) % 1 < 0.5)


def zigzag(u: Floats, v: Floats, phase: float) -> Floats:
    return _on((0.8 * u + phase + np.abs((0.5 * v) % 1 - 0.5) * 1.6) % 1 < 0.5)


def checked(u: Floats, v: Floats, phase: float) -> Floats:
    return _on((np.floor(u + phase) + np.floor(v + phase)) % 2 < 1)


def dotted(u: Floats, v: Floats, phase: float) -> Floats:
    row = np.floor(v / 1.3 + phase)
    x, y = (u / 1.5 + 0.5 * (row % 2)) % 1 - 0.5, (v / 1.3 + phase) % 1 - 0.5
    return _on(x * x + y * y < 0.1)


def ringed(u: Floats, v: Floats, phase: float) -> Floats:
    return _on((np.sqrt(u * u + v * v) / 1.2 + phase) % 1 < 0.5)


def gridded(u: Floats, v: Floats, phase: float) -> Floats:
    return _on(((u / 1.4 + phase) % 1 < 0.3) | ((v / 1.4 + phase) % 1 < 0.3))


def bricked(u: Floats, v: Floats, phase: float) -> Floats:
    course = v + phase
    return _on((course % 1 < 0.3) | ((u / 2.2 + phase + 0.5 * (np.floor(course) % 2)) % 1 < 0.14))


def woven(u: Floats, v: Floats, phase: float) -> Floats:
    across = (np.floor(u / 2.4 + phase) + np.floor(v / 2.4 + phase)) % 2 < 1
    return _on(np.where(across, u / 0.8, v / 0.8) % 1 < 0.5)


def mosaic(u: Floats, v: Floats, phase: float) -> Floats:
    x, y = np.floor(u + 97 * phase).astype(np.int32), np.floor(v + 89 * phase).astype(np.int32)
    tile = x * 7919 + y * 104729  # any hash of the tile's place; wrapping around is welcome
    shade: Floats = (((tile ^ (tile >> 5)) * 26543 >> 7) % 4).astype(np.float32) / np.float32(3)
    return shade


def shaded(u: Floats, v: Floats, phase: float) -> Floats:
    return np.clip(0.5 + u / 4, 0, 1).astype(np.float32)


def plain(u: Floats, v: Floats, phase: float) -> Floats:
    """The texture of no class, for clutter."""
    return np.zeros_like(u + v)


def _on(where: NDArray[np.bool_]) -> Floats:
    return where.astype(np.float32)


# ------------------------------------------------------------------------------------------ classes

FOLDS: Final[tuple[tuple[tuple[Texture, Outline], ...], ...]] = (
    ((striped, star), (checked, ring), (dotted, cross), (shaded, gear), (woven, crescent)),
    ((zigzag, arrow), (gridded, heart), (bricked, triangle), (mosaic, clover), (ringed, letter)),
    ((zigzag, star), (bricked, cross), (mosaic, crescent), (shaded, heart), (striped, clover)),
    ((gridded, ring), (ringed, gear), (woven, arrow), (dotted, triangle), (checked, letter)),
)
"""The classes: within a fold every outline and every texture differ; its lookalikes are in other folds."""
