"""A small fake of COCO's folders: annotations as COCO and its exporters write them, and pictures that show them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data.fakes import Pair, main, picture_of, write_mask, write_picture
from sd_aanet.data.sources.coco import CocoAnnotations

COCO_IDS = tuple(n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The ids of COCO's 80 categories."""
HEIGHT, WIDTH = 72, 96


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def lengths(mask: NDArray[Any]) -> dict[str, Any]:
    """Run lengths as a list, as crowds have them in COCO."""
    columns = mask.astype(np.int8).ravel(order="F")
    edges = np.flatnonzero(np.diff(columns, prepend=0, append=columns[-1] ^ 1))
    return {"counts": np.diff(edges, prepend=0).tolist(), "size": list(mask.shape)}


def packed(mask: NDArray[Any]) -> dict[str, Any]:
    """Run lengths in characters, as other tools write them."""
    found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"counts": found["counts"].decode(), "size": list(mask.shape)}


def annotation(image_id: int | str, category_id: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, **more}


def coco_json(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], categories: Sequence[tuple[int, str]]
) -> dict[str, Any]:
    """What a JSON file holds."""
    return {
        "info": {"year": 2014},
        "images": images,
        "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations)],
        "categories": [{"id": number, "name": name, "supercategory": "thing"} for number, name in categories],
    }


def make_coco(root: Path, images: int = 2, ids: Sequence[int] = COCO_IDS, year: int = 2014) -> Path:
    """Write `images` of each category to each split, in COCO's layout.

    Each image shows a large object of its category; over that a small one of the next category, its outline in one of
    three kinds; and every third a crowd. Pictures are red where the labels show a category.
    """
    categories = [(number, f"class {number}") for number in ids]
    (root / "annotations").mkdir(parents=True)
    for seed, split in enumerate(("train", "val")):
        rng = np.random.default_rng(seed)
        folder = root / f"{split}{year}"
        folder.mkdir()
        entries, annotations = [], []
        for number in range(images * len(ids)):
            name = f"COCO_{split}{year}_{number:012d}.jpg"
            entries.append({"id": 1000 + number, "file_name": name, "height": HEIGHT, "width": WIDTH})
            shown, drawn = _scene(rng, number, ids)
            annotations += [{"image_id": 1000 + number, **entry} for entry in drawn]
            write_picture(folder / name, picture_of(shown, name))
        bare = f"COCO_{split}{year}_bare.jpg"
        entries.append({"id": 1, "file_name": bare, "height": HEIGHT, "width": WIDTH})
        write_picture(folder / bare, picture_of(np.zeros((HEIGHT, WIDTH), np.uint8), bare))
        content = coco_json(entries, annotations, categories)
        (root / f"annotations/instances_{split}{year}.json").write_text(json.dumps(content))
    return root


def write_masks(root: Path) -> Path:
    """Write the labels of a fake as masks, too, as prepared data may have them."""
    for split in ("train", "val"):
        (path,) = root.glob(f"annotations/instances_{split}*.json")
        annotations = CocoAnnotations(path)
        for i, name in enumerate(annotations.images):
            write_mask(root / f"masks/{split}/{Path(name).stem}.png", annotations.label(i))
    return root


def coco_pairs(root: Path, split: str = "train") -> list[Pair]:
    """The pictures of a split, and what holds their masks: a PNG, or else the annotations of all of them."""
    (annotations,) = root.glob(f"annotations/instances_{split}*.json")
    pictures = sorted(root.glob(f"{split}*/*.jpg"))
    masks = [root / f"masks/{split}/{path.stem}.png" for path in pictures]
    return [(path, mask if mask.exists() else annotations) for path, mask in zip(pictures, masks, strict=True)]


def _scene(rng: np.random.Generator, number: int, ids: Sequence[int]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Where a picture shows an object, and its annotations."""
    x, y = (int(value) for value in rng.integers(2, (30, 12)))
    shown, small, crowd = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(3))
    shown[y : y + 48, x : x + 50] = 1
    small[y + 10 : y + 20, x + 10 : x + 30] = 1
    crowd[66:, :40] = 1
    kinds = ([rectangle(x + 10, y + 10, 20, 10)], lengths(small), packed(small))
    large = {"category_id": ids[number % len(ids)], "segmentation": [rectangle(x, y, 50, 48)], "iscrowd": 0}
    annotations = [
        large | {"area": 2400.0, "bbox": [x, y, 50, 48]},
        {"category_id": ids[(number + 1) % len(ids)], "segmentation": kinds[number % 3], "iscrowd": 0},
    ]
    if number % 3 == 0:
        annotations.append({"category_id": ids[number % len(ids)], "segmentation": lengths(crowd), "iscrowd": 1})
    return shown, annotations


if __name__ == "__main__":
    main(make_coco, coco_pairs)
