"""`python -m benchmarks.marks --data VOC`: masks of boxes and points, and of polygons, against the true ones.

Pictures are drawn from a split in VOC's layout, in which one connected object of a class covers 1 % to 80 %. A box is
the object's own. Points are drawn: positive ones from the object, eroded by a twelfth of its size, negative ones at
least 10 px beside it. IoU over pixels that are not ignored.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.sources.run_lengths import pack_polygons, paint, unpack
from sd_aanet.images import Array8
from sd_aanet.segmenting.marks import Box, Points, mask_of
from sd_aanet.segmenting.polygons import polygons

NEGATIVE = 2


class Case(NamedTuple):
    image: Array8
    mask: Array8  # 1 = the object, 255 = ignore
    seed: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        y, x = np.nonzero(self.mask == 1)
        return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1

    def points(self, count: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        rng = np.random.default_rng((self.seed, count))
        inside = (self.mask == 1).astype(np.uint8)
        depth = max(1, round(inside.sum() ** 0.5 / 12))
        deep = cv2.erode(np.pad(inside, 1), np.ones((2 * depth + 1,) * 2, np.uint8))[1:-1, 1:-1]
        far = (cv2.dilate(inside, np.ones((21, 21), np.uint8)) == 0) & (self.mask == 0)
        drawn = []
        for where, number in (
            (deep if deep.any() else inside, count),
            (far if far.any() else self.mask == 0, NEGATIVE),
        ):
            places = np.argwhere(where)
            drawn.append([(x + 0.5, y + 0.5) for y, x in rng.choice(places, number).tolist()])
        return drawn[0], drawn[1]

    def iou(self, found: NDArray[np.integer]) -> float:
        a, b = (found == 1) & (self.mask != 255), self.mask == 1
        return float((a & b).sum() / (a | b).sum())


def cases(data: Path, split: str, count: int) -> Iterator[Case]:
    source = Pascal5i(data, "train" if split == "train" else "val")
    rng = np.random.default_rng(0)
    for i in rng.permutation(len(source)).tolist():
        for class_id in rng.permutation(np.flatnonzero(source.count(i)) + 1).tolist():
            mask = source.mask(i, class_id)
            closed = cv2.morphologyEx((mask == 1).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
            if cv2.connectedComponents(closed)[0] == 2 and 0.01 < (mask == 1).mean() < 0.8:
                yield Case(source.image(i), mask, i)
                count -= 1
                break
        if not count:
            return


def whole(case: Case) -> Array8:
    x0, y0, x1, y1 = case.box
    found = np.zeros(case.mask.shape, np.uint8)
    found[y0:y1, x0:x1] = 1
    return found


def ellipse(case: Case) -> Array8:
    x0, y0, x1, y1 = case.box
    found = np.zeros(case.mask.shape, np.uint8)
    cv2.ellipse(found, (((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), (x1 - x0, y1 - y0), 0), 1, -1)
    return found


def grabcut(case: Case) -> Array8:
    """As OpenCV's own example does it."""
    x0, y0, x1, y1 = case.box
    kinds = np.zeros(case.mask.shape, np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    if (x1 - x0, y1 - y0) == case.mask.shape[::-1]:
        return whole(case)
    cv2.grabCut(case.image, kinds, (x0, y0, x1 - x0, y1 - y0), *models, 5, cv2.GC_INIT_WITH_RECT)
    return ((kinds == cv2.GC_FGD) | (kinds == cv2.GC_PR_FGD)).astype(np.uint8)


def by_box(case: Case) -> Array8:
    return mask_of(case.image, Box(*case.box))


def by_points(count: int, negative: bool) -> Callable[[Case], Array8]:
    def find(case: Case) -> Array8:
        on, beside = case.points(count)
        return mask_of(case.image, Points(on, beside if negative else ()))

    return find


def discs(count: int) -> Callable[[Case], Array8]:
    """GrabCut that starts from a disc around each point, of 0.15 of the longer side."""

    def find(case: Case) -> Array8:
        on, beside = case.points(count)
        kinds = np.full(case.mask.shape, cv2.GC_PR_BGD, np.uint8)
        longer = max(kinds.shape)
        for places, share, kind in (
            (on, 0.15, cv2.GC_PR_FGD),
            (on, 0.02, cv2.GC_FGD),
            (beside, 0.02, cv2.GC_BGD),
        ):
            for x, y in places:
                cv2.circle(kinds, (int(x), int(y)), round(share * longer), int(kind), -1)
        cv2.setRNGSeed(0)
        cv2.grabCut(case.image, kinds, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
        return ((kinds == cv2.GC_FGD) | (kinds == cv2.GC_PR_FGD)).astype(np.uint8)

    return find


def by_coco(tolerance: float) -> Callable[[Case], Array8]:
    def draw(case: Case) -> Array8:
        height, width = case.mask.shape
        columns = np.zeros((width, height), np.uint8)
        # Largest first: a part may lie in another one's hole.
        for part in sorted(polygons(case.mask, tolerance), key=lambda part: -np.ptp(part.outer, axis=0).prod()):
            for value, ring in ((1, part.outer), *((0, hole) for hole in part.holes)):
                paint(columns, unpack(pack_polygons([ring.ravel().tolist()], height, width)), value)
        return columns.T

    return draw


def by_labelme(tolerance: float) -> Callable[[Case], Array8]:
    def draw(case: Case) -> Array8:
        parts = polygons(case.mask, tolerance, centres=True)
        if any(part.holes for part in parts):  # which are written as they are
            return case.mask
        picture = Image.new("L", case.mask.shape[::-1])
        for part in parts:
            ImageDraw.Draw(picture).polygon([(x, y) for x, y in part.outer.tolist()], fill=1, outline=1)
        return np.array(picture)

    return draw


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.marks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set in VOC's layout")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    some = list(cases(options.data, options.split, options.pictures))
    ways: dict[str, Callable[[Case], Array8]] = {
        "the box itself": whole,
        "the ellipse in it": ellipse,
        "GrabCut from it, on the whole picture": grabcut,
        "**`Box`**": by_box,
    }
    for count in (1, 3):
        ways |= {
            f"{count} + {NEGATIVE} points, GrabCut from discs": discs(count),
            f"**`Points`**, {count} + {NEGATIVE}": by_points(count, negative=True),
            f"**`Points`**, {count} + 0": by_points(count, negative=False),
        }
    for tolerance in (0, 0.75, 1):
        ways |= {
            f"polygons, tolerance {tolerance}, drawn by COCO's tools": by_coco(tolerance),
            f"polygons, tolerance {tolerance}, drawn by labelme": by_labelme(tolerance),
        }
    print(f"| {len(some)} pictures of {options.split} | mean IoU | median | tenth from below | under 0.3 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, find in ways.items():
        start = time.thread_time()
        found = np.array([case.iou(find(case)) for case in some])
        spent = (time.thread_time() - start) / len(some)
        low, few = np.quantile(found, 0.1), (found < 0.3).sum()
        print(f"| {name} | {found.mean():.3f} | {np.median(found):.3f} | {low:.3f} | {few} | {spent:.2f} |", flush=True)


if __name__ == "__main__":
    main()
