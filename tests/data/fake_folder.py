"""Small fakes of folders of one's own pictures, in both layouts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.fake_coco import annotation, coco_json, rectangle
from data.fakes import Array8, Pair, main, picture_of, write_mask, write_picture

CLASSES = ("cat", "dog", "cup", "fox")
HEIGHT, WIDTH = 60, 80
OBJECT = 1200
"""Pixels of each object."""


def make_folder(root: Path, classes: Sequence[str] = CLASSES, images: int = 3, lists: bool = True) -> Path:
    """Write images/, masks/ and classes.txt: `images` of each class to each split, called `train_000` and so on."""
    for key, _, _, label in _scenes(classes, images):
        write_picture(root / f"images/{key}.jpg", picture_of(label, key))
        write_mask(root / f"masks/{key}.png", label)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    if lists:
        _write_lists(root, len(classes) * images)
    return root


def make_json(
    root: Path,
    classes: Sequence[str] = CLASSES,
    images: int = 3,
    lists: bool = True,
    *,
    annotations: str = "annotations.json",
    pictures: str = "images/",
    file_name: str = "{key}.jpg",
    first_id: int = 1,
    parents: Sequence[str] = (),
) -> Path:
    """Write the same scenes in COCO's format, as one exporter or another does.

    Args:
        root: the folder.
        classes: their names.
        images: of each class and split.
        lists: write train.txt and val.txt.
        annotations: the JSON file.
        pictures: where the pictures are.
        file_name: what the JSON calls a picture.
        first_id: of the categories.
        parents: categories before them that no object has.
    """
    entries: list[dict[str, Any]] = []
    outlines: list[dict[str, Any]] = []
    categories = list(enumerate((*parents, *classes), start=first_id))
    for number, (key, c, box, label) in enumerate(_scenes(classes, images)):
        write_picture(root / f"{pictures}{key}.jpg", picture_of(label, key))
        entries.append({"id": number, "file_name": file_name.format(key=key), "height": HEIGHT, "width": WIDTH})
        outlines.append(annotation(number, first_id + len(parents) + c - 1, [rectangle(*box)]))
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(coco_json(entries, outlines, categories)))
    if lists:
        _write_lists(root, len(classes) * images)
    return root


def folder_pairs(root: Path, split: str = "train") -> list[Pair]:
    """The pictures of a split, and what holds their masks: a PNG, or else the annotations of all of them."""
    pictures = sorted(root.rglob(f"{split}_*.jpg"))
    annotations = next(root.rglob("*.json"), None)
    return [(path, annotations or root / f"masks/{path.stem}.png") for path in pictures]


def _scenes(classes: Sequence[str], images: int) -> Iterator[tuple[str, int, tuple[int, int, int, int], Array8]]:
    """Key, class, box (x, y, width, height) and label map."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(images * len(classes)):
            x, y = (int(value) for value in rng.integers(2, (30, 18)))
            label = np.zeros((HEIGHT, WIDTH), np.uint8)
            label[y : y + 30, x : x + 40] = c = number % len(classes) + 1
            yield f"{split}_{number:03d}", c, (x, y, 40, 30), label


def _write_lists(root: Path, count: int) -> None:
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("".join(f"{split}_{number:03d}\n" for number in range(count)))


if __name__ == "__main__":
    main(make_folder, folder_pairs)
