"""The embedded data set: pictures of textured shapes, drawn on the fly, the same on any machine.

A class is an outline *and* a texture, each with a hue, and each outline and each texture belongs to two classes, so
that neither alone names a class; shades, light, scale and rotation are drawn anew for every object and name none.
What is left to learn is what few-shot segmentation needs: find in the query what the support shows.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sd_aanet.data.sources.base import ImageSource, Split
from sd_aanet.data.sources.patterns import FOLDS, Contour, Floats, Texture, plain
from sd_aanet.errors import ConfigError
from sd_aanet.images import Array8
from sd_aanet.rules import check, or_null, whole

_CLASSES = tuple(pair for fold in FOLDS for pair in fold)
_HUES = {
    name: place / len(_CLASSES) * 2
    for part in (0, 1)
    for place, name in enumerate(sorted({pair[part].__name__ for pair in _CLASSES}))
}
"""The outline's hue is in a class's dark parts, the texture's in its light ones; ten hues each."""
_TEXTURE_UNIT = 0.07
"""Of the picture's side: stripes repeat every 6.8 px at 97 px, coarse enough to tell textures at stride 8."""


def _unit(contours: list[Contour]) -> list[Contour]:
    """Centred on the origin, with an area of 1."""
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    areas = [float(cv2.contourArea(c.astype(np.float32))) for c in contours]
    scale = 1 / math.sqrt(areas[0] - sum(areas[1:]))
    return [(c - (low + high) / 2) * scale for c in contours]


_OUTLINES = tuple(_unit(outline()) for _, outline in _CLASSES)

# ------------------------------------------------------------------------------------------ one picture


@dataclass(frozen=True)
class _Item:
    """One thing to draw. The picture's side is the unit of length: a layout is the same at every size."""

    class_id: int  # 0: clutter, which belongs to no class
    contours: list[Contour]
    texture: Texture
    centre: tuple[float, float]
    angle: float
    unit: float
    phase: float

    def corners(self, size: int) -> list[NDArray[np.int32]]:
        """The contours in sixteenths of a pixel."""
        return [np.round(c * (size * 16)).astype(np.int32) for c in self.contours]


def _object(rng: Generator, class_id: int, area: float, centre: tuple[float, float]) -> _Item:
    texture, _ = _CLASSES[class_id - 1]
    return _place(rng, class_id, _OUTLINES[class_id - 1], texture, math.sqrt(area), centre)


def _clutter(rng: Generator, width: float, length: float) -> _Item:
    """A ragged patch or bar, plain or with the texture of some class, that is no object."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (length / 2, width / 2)
    contour = corners * rng.uniform(0.7, 1.3, (4, 2))
    texture = _CLASSES[int(rng.integers(len(_CLASSES)))][0] if rng.random() < 0.3 else plain
    x, y = rng.uniform(0, 1, 2).tolist()
    return _place(rng, 0, [contour], texture, 1.0, (x, y))


def _place(
    rng: Generator, class_id: int, contours: list[Contour], texture: Texture, scale: float, centre: tuple[float, float]
) -> _Item:
    """Turn by up to 40 degrees, stretch and move; the texture turns too, but nearly keeps its scale."""
    angle, stretch = rng.uniform(-0.7, 0.7), math.exp(rng.uniform(-0.2, 0.2))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = scale * np.array([[cos, sin], [-sin, cos]]) * [[stretch], [1 / stretch]]
    unit = _TEXTURE_UNIT * math.exp(rng.uniform(-0.15, 0.15))
    moved = [c @ matrix + centre for c in contours]
    return _Item(class_id, moved, texture, centre, angle, unit, phase=float(rng.random()))


def _layout(rng: Generator, first: int) -> list[_Item]:
    """What a picture shows, back to front: clutter, 2 or 3 objects of different classes, maybe a bar."""
    items = [_clutter(rng, *rng.uniform(0.1, 0.35, 2).tolist()) for _ in range(rng.integers(0, 4))]
    others = rng.permutation([c for c in range(1, len(_CLASSES) + 1) if c != first]).tolist()
    if rng.random() < 0.1:  # a lookalike, of the same outline or texture, so that neither is enough
        others.sort(key=lambda c: not set(_CLASSES[c - 1]) & set(_CLASSES[first - 1]))
    areas = [rng.uniform(0.12, 0.3), rng.uniform(0.03, 0.1), *rng.uniform(0.02, 0.05, rng.integers(0, 2))]
    placed: list[tuple[float, float, float]] = []
    for class_id, area in sorted(zip([first, *others], areas, strict=False), key=lambda pair: -pair[1]):
        radius = math.sqrt(area / math.pi)
        spots = rng.uniform(0.8 * radius, 1 - 0.8 * radius, (6, 2)).tolist()
        # The freest of a few spots: most objects stand apart, some still overlap and hide each other in part.
        x, y = max(spots, key=lambda s: min((math.dist(s, p[:2]) - p[2] for p in placed), default=0.0))
        placed.append((x, y, radius))
        items.append(_object(rng, class_id, area, (x, y)))
    bars = [_clutter(rng, rng.uniform(0.02, 0.05), 1.5) for _ in range(rng.integers(0, 2))]
    return items + bars


def _label(items: list[_Item], size: int) -> Array8:
    """The class that each pixel shows, uint8 (size, size), 0 for none."""
    label = np.zeros((size, size), np.uint8)
    for item in items:
        cv2.fillPoly(label, item.corners(size), item.class_id, shift=4)
    return label


def _render(rng: Generator, items: list[_Item], size: int) -> Array8:
    """The picture, uint8 (size, size, 3); plain sums and products alone, which all machines round alike."""
    picture = _ground(rng, size)
    for item in items:
        _draw(picture, item, *_colours(rng, item.class_id))
    # Light: a gain, and a gradient in any direction.
    across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope_x, slope_y, gain = (np.float32(x) for x in rng.uniform((-0.4, -0.4, 0.7), (0.4, 0.4, 1.15)))
    picture *= (gain + slope_x * across + slope_y * across[:, None])[..., None]
    picture += rng.integers(-128, 128, picture.shape, np.int8) * np.float32(rng.uniform(0, 0.15))
    image = np.clip(picture, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(image, (3, 3), 0).astype(np.uint8) if rng.random() < 0.4 else image


def _ground(rng: Generator, size: int) -> Floats:
    """Noise of four octaves around a random colour, float32 (size, size, 3)."""
    ground = np.broadcast_to(rng.uniform(50, 200, 3).astype(np.float32), (size, size, 3)).copy()
    for cells, contrast in ((3, 0.7), (8, 0.6), (24, 0.5), (60, 0.4)):
        grid = rng.integers(0, 256, (cells, cells), np.uint8)
        octave = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
        colour = rng.uniform(0.2, 1, 3) * rng.uniform(0, contrast)
        ground += (octave - np.float32(127.5))[..., None] * colour.astype(np.float32)
    return ground


def _colours(rng: Generator, class_id: int) -> tuple[Floats, Floats]:
    """Two RGB colours of an item: around the hues of the class's outline (darker) and texture (lighter)."""
    if class_id:
        texture, outline = _CLASSES[class_id - 1]
        hues = (_HUES[outline.__name__] + rng.normal(0, 0.03), _HUES[texture.__name__] + rng.normal(0, 0.03))
    else:
        hues = tuple(rng.uniform(0, 1, 2))
    dark = colorsys.hsv_to_rgb(hues[0] % 1, rng.uniform(0.4, 1), rng.uniform(0.15, 0.5))
    light = colorsys.hsv_to_rgb(hues[1] % 1, rng.uniform(0.4, 1), rng.uniform(0.6, 1))
    first, second = (np.array(colour, np.float32) * np.float32(255) for colour in (dark, light))
    return first, second


def _draw(picture: Floats, item: _Item, first: Floats, second: Floats) -> None:
    """Paint one item over the picture, softened by a pixel at its edge."""
    size = len(picture)
    corners = item.corners(size)
    points = np.concatenate(corners) // 16
    x0, y0 = np.clip(points.min(axis=0) - 2, 0, size).tolist()
    x1, y1 = np.clip(points.max(axis=0) + 4, 0, size).tolist()
    if x0 >= x1 or y0 >= y1:  # a bar outside the picture
        return
    alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(alpha, [c - np.array((x0 * 16, y0 * 16), np.int32) for c in corners], 255, shift=4)
    alpha = cv2.GaussianBlur(alpha, (3, 3), 0).astype(np.uint8)
    pixel = 1 / (item.unit * size)
    cos, sin = np.float32(math.cos(item.angle) * pixel), np.float32(math.sin(item.angle) * pixel)
    x = np.arange(x0, x1, dtype=np.float32) - np.float32(item.centre[0] * size)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(item.centre[1] * size)
    blend = item.texture(cos * x + sin * y, cos * y - sin * x, item.phase)[..., None]
    region = picture[y0:y1, x0:x1]
    region += (first + (second - first) * blend - region) * (alpha * np.float32(1 / 255))[..., None]


# ------------------------------------------------------------------------------------------ the data set


class Shapes(ImageSource):
    """Pictures of textured shapes, 20 classes in 4 folds of 5.

    A picture holds 2 or 3 objects of different classes on cluttered ground, hidden in part by each other and
    by a bar. The first, of class `1 + i % 20`, has 12 to 30 % of the picture's area, the second 3 to 10 %, a
    third 2 to 5 %. Every picture is a function of (seed, split, index) and the size. Pictures are made when
    first asked for and kept in memory (50 kB each at 129 px).

    The usual least object of 2048 pixels is a rule for photographs: here `min_object_pixels` should be about
    4 % of the area, 375 at 97 px and 665 at 129 px, which leaves 1 to 3 usable classes in a picture.

    Args:
        split: "train" or "val".
        images: how many; 1500 to train and 500 to validate where None.
        size: side of the square pictures in pixels, at least 33; networks like 8n + 1, such as 97 or 129.
        seed: another seed gives other pictures of the same classes.

    Raises:
        ConfigError: an unknown split, no images, a size under 33 or a negative seed.
    """

    name = "shapes"
    rules: ClassVar = {"images": or_null(whole(1, 500)), "size": whole(33, 97), "seed": whole(0)}
    dividing = ("seed",)
    classes = tuple(f"{texture.__name__} {outline.__name__}" for texture, outline in _CLASSES)
    folds = len(FOLDS)

    def __init__(self, split: Split, images: int | None = None, size: int = 129, seed: int = 0) -> None:
        if split not in ("train", "val"):
            raise ConfigError(f"split {split!r} of the data set shapes is unknown: choose 'train' or 'val'")
        check({"images": images, "size": size, "seed": seed}, self.rules, "dataset.source.")
        count = {"train": 1500, "val": 500}[split] if images is None else images
        self.split: Split = split
        self.size = size
        self.seed = seed
        self._images: list[Array8 | None] = [None] * count
        self._labels: list[Array8 | None] = [None] * count

    def __len__(self) -> int:
        return len(self._images)

    def key(self, i: int) -> str:
        return f"{self.name}-{self.split}-{self.seed}-{self.size}-{range(len(self))[i]:05d}"

    def image(self, i: int) -> Array8:
        image = self._images[i]
        if image is None:
            image = self._images[i] = _render(self._rng(i, stream=2), self._items(i), self.size)
        return image.copy()

    def mask(self, i: int, class_id: int) -> Array8:
        shown: Array8 = (self._label(i) == class_id).astype(np.uint8)
        return shown

    def count(self, i: int) -> NDArray[np.int64]:
        return np.bincount(self._label(i).ravel(), minlength=len(self.classes) + 1)[1:]

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        first = 1 + sum(map(len, FOLDS[:fold]))
        return tuple(range(first, first + len(FOLDS[fold])))

    def _label(self, i: int) -> Array8:
        label = self._labels[i]
        if label is None:
            label = self._labels[i] = _label(self._items(i), self.size)
        return label

    def _items(self, i: int) -> list[_Item]:
        return _layout(self._rng(i, stream=1), first=1 + i % len(self.classes))

    def _rng(self, i: int, stream: int) -> Generator:
        """Layout and picture draw from streams of their own: labels alone need no rendering."""
        return np.random.default_rng([self.seed, ("train", "val").index(self.split), i, stream])
