"""Objects cut out of pictures from a box around them, or from points on them and beside them.

Both are OpenCV's GrabCut (Rother, Kolmogorov and Blake, "GrabCut", SIGGRAPH 2004) from a guess that the mark allows, on
a picture at a bounded size whose noise is smoothed. `python -m benchmarks.marks` measures them; docs/results.md has
what it found, and what was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sd_aanet.images import Array8

_SIDE = 256
"""Pixels of the longer side of what is cut: a bound on time."""
_COARSE = 128
"""The same, of the map on which distances are found."""
_AROUND = 0.5
"""Of a box's sides: so much around it shows what the background is."""
_CORE, _GUESS = 0.2, 1.3
"""Of a box's sides: the ellipse in its middle that is the object for sure, and the one that may be it, all but the
corners of the box."""
_DISC = 0.02
"""Of the longer side: the radius around a point that belongs to it."""
_ROUNDS = 3
_LEAST, _MOST = 0.1, 0.98
"""Of a box, and of a picture with points: where less, or more, is found, that is no answer (of photographs' boxes,
0.23 to 0.9 was found). Then it is the ellipse that fills the box, or what is nearer to the points."""
_SMOOTHING = (9, 30, 9)
"""The bilateral filter's diameter, and its deviations of colour and of place."""

_NEIGHBOURS = (
    (np.s_[:, :-1], np.s_[:, 1:], 1.0),
    (np.s_[:-1], np.s_[1:], 1.0),
    (np.s_[:-1, :-1], np.s_[1:, 1:], 2**0.5),
    (np.s_[:-1, 1:], np.s_[1:, :-1], 2**0.5),
)
"""Of pixels side by side: the ones, the others, and how far apart they are."""

Place = tuple[float, float]


def cut_box(picture: Array8, box: tuple[int, int, int, int]) -> Array8:
    """The object in a box, from all of it but its corners; what is outside is background.

    Args:
        picture: uint8 (H, W, 3).
        box: left, top, right, bottom, in the picture; the latter two behind its last pixels.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else.
    """
    left, top, right, bottom = box
    more_x, more_y = round((right - left) * _AROUND) + 8, round((bottom - top) * _AROUND) + 8
    rows = slice(max(0, top - more_y), bottom + more_y)
    columns = slice(max(0, left - more_x), right + more_x)
    near = picture[rows, columns]
    small = _bounded(near, _SIDE)
    scale_x, scale_y = small.shape[1] / near.shape[1], small.shape[0] / near.shape[0]
    x0, x1 = ((x - columns.start) * scale_x for x in (left, right))
    y0, y1 = ((y - rows.start) * scale_y for y in (top, bottom))
    inside = np.zeros(small.shape[:2], bool)
    inside[round(y0) : max(round(y0) + 1, round(y1)), round(x0) : max(round(x0) + 1, round(x1))] = True
    guess = _ellipse(inside.shape, (x0, y0, x1, y1), _GUESS) & inside
    core = _ellipse(inside.shape, (x0, y0, x1, y1), _CORE) & inside
    found = _cut(small, guess, core, ~inside)
    if np.count_nonzero(found) < _LEAST * np.count_nonzero(inside):
        found = _ellipse(inside.shape, (x0, y0, x1, y1), 1) & inside
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[rows, columns] = _enlarged(found, near.shape[:2])
    mask[:top] = mask[bottom:] = mask[:, :left] = mask[:, right:] = 0
    if not mask.any():  # a box that is thinner than a pixel at that size
        mask[top:bottom, left:right] = 1
    return mask


def cut_points(picture: Array8, positive: Sequence[Place], negative: Sequence[Place] = ()) -> Array8:
    """The object that points lie on, from what is nearer to them than to the points beside it and the picture's edge.

    Near is what few changes of colour part (a geodesic distance). Of what is found, that which hangs together with a
    positive point is the object.

    Args:
        picture: uint8 (H, W, 3).
        positive: places x, y on the object, at least one.
        negative: places beside it.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else.
    """
    small = _bounded(picture, _SIDE)
    scale = small.shape[1] / picture.shape[1], small.shape[0] / picture.shape[0]
    beside = _discs(small.shape[:2], negative, scale)
    core = (_discs(small.shape[:2], positive, scale) & ~beside) | _discs(small.shape[:2], positive, scale, radius=0)
    beside &= ~core
    guess = (_nearer(picture, positive, negative, small.shape[:2]) & ~beside) | core
    found = _joined(_cut(small, guess, core, beside), core)
    if not 1.2 * np.count_nonzero(core) < np.count_nonzero(found) < _MOST * found.size:
        found = _joined(guess, core)
    return _enlarged(found, picture.shape[:2])


def _bounded(picture: Array8, side: int) -> Array8:
    """A picture scaled to a side of at most so many pixels."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(picture)
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _enlarged(found: NDArray[np.bool_], size: tuple[int, ...]) -> Array8:
    large = cv2.resize(found.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return (large > 0.5).astype(np.uint8)


def _cut(
    small: Array8, guess: NDArray[np.bool_], core: NDArray[np.bool_], beside: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """GrabCut.

    Args:
        small: uint8 (h, w, 3).
        guess: what may be the object.
        core: what is it for sure.
        beside: what is not, for sure.
    """
    kinds = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    kinds[beside] = cv2.GC_BGD
    kinds[core] = cv2.GC_FGD
    if guess.all() or not guess.any():  # nothing to tell apart
        return guess
    cv2.setRNGSeed(0)  # of the clusters of colours
    smooth, colours, others = _smooth(small), np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(smooth, kinds, (0, 0, 0, 0), colours, others, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    found: NDArray[np.bool_] = (kinds == cv2.GC_FGD) | (kinds == cv2.GC_PR_FGD)
    return found


def _smooth(small: Array8) -> Array8:
    """Without the noise that parts pixels of one thing; edges stay."""
    return cv2.bilateralFilter(small, *_SMOOTHING).astype(np.uint8)


def _ellipse(size: tuple[int, ...], box: tuple[float, float, float, float], share: float) -> NDArray[np.bool_]:
    """The ellipse in the middle of a box, whose sides it fills by a share."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    across, down = (x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)
    inside: NDArray[np.bool_] = np.hypot(across, down) <= share / 2
    return inside


def _discs(
    size: tuple[int, ...], places: Sequence[Place], scale: tuple[float, float], radius: float = _DISC
) -> NDArray[np.bool_]:
    """Discs around places of the picture, on its smaller one; each has a pixel."""
    drawn = np.zeros(size, np.uint8)
    for x, y in places:
        centre = min(size[1] - 1, int(x * scale[0])), min(size[0] - 1, int(y * scale[1]))
        cv2.circle(drawn, centre, round(radius * max(size)), 1, thickness=-1)
    return drawn > 0


def _joined(found: NDArray[np.bool_], core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts that reach a core."""
    _, parts = cv2.connectedComponents(found.astype(np.uint8))
    return found & np.isin(parts, np.unique(parts[core & found]))


def _nearer(
    picture: Array8, positive: Sequence[Place], negative: Sequence[Place], size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Where the positive points are nearer than all else, at a size."""
    small = _smooth(_bounded(picture, _COARSE))
    height, width = small.shape[:2]
    scale = width / picture.shape[1], height / picture.shape[0]
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    ways = _ways(small)
    on = _away(ways, _discs((height, width), positive, scale))
    off = _away(ways, _discs((height, width), negative, scale) | edge)
    ratio = np.log((off + 1e-6) / (on + 1e-6)).astype(np.float32)
    return cv2.resize(ratio, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) > 0


def _ways(small: Array8) -> Any:
    """A sparse graph: how far each pixel is from the eight around it, by colour (CIELAB) and a little by place."""
    from scipy.sparse import coo_array

    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    place = np.arange(lab.shape[0] * lab.shape[1]).reshape(lab.shape[:2])
    here, there, far = [], [], []
    for a, b, step in _NEIGHBOURS:
        here.append(place[a].ravel())
        there.append(place[b].ravel())
        colours = np.linalg.norm(lab[a] - lab[b], axis=-1).ravel()
        far.append(step * (1 / np.hypot(*place.shape) + colours / 100))
    ends = np.concatenate(here), np.concatenate(there)
    return coo_array((np.concatenate(far), ends), shape=(place.size, place.size)).tocsr()


def _away(ways: Any, places: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far each pixel is from the nearest of some places."""
    from scipy.sparse.csgraph import dijkstra

    far = dijkstra(ways, directed=False, indices=np.flatnonzero(places), min_only=True)
    return np.asarray(far, np.float64).reshape(places.shape)
