"""What `sd-aanet check` found: a table for the terminal, check.json, and a picture of samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sd_aanet.data.check.defects import ERRORS, WARNINGS, Checked
from sd_aanet.errors import DataError
from sd_aanet.files import written_whole
from sd_aanet.pictures import BLUE, Captioned, grid, overlay

Summary = dict[str, Any]
LINES = 10
"""Of each kind of defect on the terminal; check.json has all."""
CLASSES = 30
"""Of more classes than this, so many on the terminal: those with the fewest images."""
_SAMPLES, _COLUMNS, _SIDE = 20, 5, 240


def summary(splits: Sequence[Checked], defects: Sequence[DataError], shot: int, least: int) -> Summary:
    """All that was found, as plain values for check.json.

    Args:
        splits: what was read.
        defects: what is wrong.
        shot: K that it was checked for.
        least: pixels from which on an image counts for a class.
    """
    kinds = Counter(defect.defect for defect in defects)
    return {
        "dataset": splits[0].source.name,
        "shot": shot,
        "min_object_pixels": least,
        "errors": sum(kinds[kind] for kind in ERRORS),
        "warnings": sum(kinds[kind] for kind in WARNINGS),
        "splits": {split.source.split: _of_split(split, least) for split in splits},
        "classes": _of_classes(splits, least),
        "defects": {kind: [str(d) for d in defects if d.defect == kind] for kind in ERRORS | WARNINGS if kinds[kind]},
    }


def write_summary(found: Summary, out: Path) -> None:
    """Write check.json."""
    with written_whole(out / "check.json") as path:
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def table(found: Summary) -> str:
    """What was found, for the terminal: splits, classes, and the first defects of each kind."""
    splits, classes = found["splits"], found["classes"]
    rows = [("", *splits), ("images", *(str(split["images"]) for split in splits.values()))]
    for side in ("width", "height"):
        rows.append((side, *(_range(split[side]) for split in splits.values())))
    rows.append(("without an object", *(str(split["empty"]) for split in splits.values())))
    rows.append((f"objects under {found['min_object_pixels']} px", *(str(split["small"]) for split in splits.values())))
    lines = [f"{found['dataset']}, {len(classes)} classes", *_aligned(rows), "", *_class_lines(found)]
    return "\n".join([*lines, *_defect_lines(found["defects"]), "", _verdict(found)])


def write_samples(splits: Sequence[Checked], least: int, out: Path) -> list[Path]:
    """Draw an image of each class with its mask into samples.png; of many classes, of some all over the list.

    Returns:
        The picture's path; nothing where no class has an image that can be read.
    """
    shown = np.flatnonzero(sum(split.pixels.any(axis=0) for split in splits))
    if not len(shown):
        return []
    chosen = np.unique(np.linspace(0, len(shown) - 1, _SAMPLES).round().astype(int))
    cells = [cell for c in shown[chosen].tolist() if (cell := _sample(splits, c + 1, least)) is not None]
    if not cells:
        return []
    with written_whole(out / "samples.png") as path:
        grid([cells[i : i + _COLUMNS] for i in range(0, len(cells), _COLUMNS)], side=_SIDE).save(path)
    return [out / "samples.png"]


def _of_split(split: Checked, least: int) -> Summary:
    sizes = np.array([reading.size for reading in split.readings if reading.size is not None]).reshape(-1, 2)
    ranges = [
        {"min": int(side.min()), "median": float(np.median(side)), "max": int(side.max())} if len(side) else None
        for side in sizes.T
    ]
    return {
        "images": len(split.readings),
        "unreadable": len(split.readings) - len(sizes),
        "height": ranges[0],
        "width": ranges[1],
        "empty": int((~split.pixels.any(axis=1)).sum()),
        "small": int(((split.pixels > 0) & (split.pixels < least)).sum()),
    }


def _of_classes(splits: Sequence[Checked], least: int) -> list[Summary]:
    source = splits[0].source
    novel: dict[int, list[int]] = {}
    for fold in range(source.folds):
        for c in source.fold_classes(fold):
            novel.setdefault(c, []).append(fold)
    counts = {split.source.split: (split.images(1), split.images(least)) for split in splits}
    return [
        {
            "id": c,
            "name": name,
            "novel_in": novel.get(c, []),
            **{s: {"images": images[c - 1], "usable": usable[c - 1]} for s, (images, usable) in counts.items()},
        }
        for c, name in enumerate(source.classes, start=1)
    ]


def _range(side: dict[str, float] | None) -> str:
    return "-" if side is None else f"{side['min']} to {side['max']}, median {side['median']:g}"


def _class_lines(found: Summary) -> list[str]:
    """A class a line, the poorest where there are many."""
    splits, classes = list(found["splits"]), found["classes"]
    poorest = sorted(classes, key=lambda entry: sum(entry[split]["usable"] for split in splits))[:CLASSES]
    rows = [("class", "novel in", *(f"{split}: usable of images" for split in splits))]
    for entry in sorted(poorest, key=lambda entry: int(entry["id"])):
        folds = ", ".join(f"fold {fold}" for fold in entry["novel_in"]) or "-"
        rows.append((entry["name"], folds, *("{usable} of {images}".format(**entry[split]) for split in splits)))
    more = len(classes) - len(poorest)
    return [*_aligned(rows), *([f"and {more} classes with more images, see check.json"] if more else [])]


def _defect_lines(defects: dict[str, list[str]]) -> Iterator[str]:
    """The first defects of each kind, and how many more there are."""
    for kinds, word in ((ERRORS, "error"), (WARNINGS, "warning")):
        for kind in (kind for kind in kinds if kind in defects):
            lines = defects[kind]
            yield from ("", f"{word}: {kinds[kind]} ({len(lines)})")
            yield from (f"  {line}" for line in lines[:LINES])
            if len(lines) > LINES:
                yield f"  and {len(lines) - LINES} more, see check.json"


def _verdict(found: Summary) -> str:
    counts = {word: found[f"{word}s"] for word in ("error", "warning")}
    if not any(counts.values()):
        return "nothing wrong"
    return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sample(splits: Sequence[Checked], c: int, least: int) -> Captioned | None:
    """A typical image of a class: of those that can be used, the one with the median of pixels, else the largest."""
    found = [
        (int(split.pixels[i, c - 1]), split.source, i)
        for split in splits
        for i in np.flatnonzero(split.pixels[:, c - 1]).tolist()
        if split.readings[i].size is not None
    ]
    if not found:
        return None
    found.sort(key=lambda place: place[0])
    usable = [place for place in found if place[0] >= least]
    pixels, source, i = usable[len(usable) // 2] if usable else found[-1]
    image, mask = source.image(i), source.mask(i, c)
    caption = f"{source.classes[c - 1]}: {source.key(i)}, {pixels / mask.size:.1%}"
    scale = min(1.0, 2 * _SIDE / max(mask.shape))
    size = [max(1, round(side * scale)) for side in reversed(mask.shape)]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    return overlay(image, mask, BLUE), caption
