"""COCO-20i's folder: links to COCO's annotations and images, checked, and masks as PNG for who wants them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sd_aanet.data.prepare import SPLITS
from sd_aanet.data.prepare.making import check_complete, link, link_folder, write_mask
from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.coco20i import CLASSES
from sd_aanet.episode import IGNORE
from sd_aanet.errors import DataError
from sd_aanet.files import written_whole
from sd_aanet.images import read_label

ANNOTATED = {"train": 82_081, "val": 40_137}
"""Images of COCO 2014 with an annotation; the field's lists for COCO-20i are these."""
USABLE = 2 * 32 * 32
"""Pixels of a class from which on an image counts for it, in most protocols."""
_OF = ".annotations"
"""In a folder of masks that we drew: the state of their annotations."""


def found_in(coco: Path) -> tuple[list[Path], list[Path]]:
    """The annotations and the folders of images, train and val, in COCO's layout.

    Raises:
        DataError: the folder has another layout.
    """
    for year in (2014, 2017):
        annotations = [coco / "annotations" / f"instances_{split}{year}.json" for split in SPLITS]
        if all(path.is_file() for path in annotations):
            return annotations, [coco / f"{split}{year}" for split in SPLITS]
    raise DataError(
        f"folder {coco} lacks COCO's layout, expected annotations/instances_{{train,val}}2014.json (or 2017): set "
        "--coco to the folder above annotations/, or give --annotations and --images"
    )


def build(annotations: Sequence[Path], images: Sequence[Path], out: Path, png: bool) -> None:
    """Make `out`/annotations, `out`/train and `out`/val, with `png` `out`/masks too; say what is in it.

    Args:
        annotations: the JSON files of train and val.
        images: their folders of images.
        out: is made, but for masks that are there already; those that were drawn from other annotations go.
        png: draw the masks now, which takes long, instead of when they are needed.

    Raises:
        DataError: files are missing, malformed, or do not fit together.
    """
    for folder in images:
        if not folder.is_dir():
            raise DataError(f"folder {folder} is missing, expected COCO's images: unpack them there or give --images")
    splits = [CocoAnnotations.open(path) for path in annotations]
    _check_categories(splits)
    for split, folder in zip(splits, images, strict=True):
        check_complete(f"images of {split.path}", split.images, folder, "unpack their archive again")
    for name, path, split, folder in zip(SPLITS, annotations, splits, images, strict=True):
        link(path, out / "annotations" / f"instances_{name}.json")
        link_folder(folder, out / name, split.images)
        expected = f" (expected of 2014: {ANNOTATED[name]:,})" if "2014" in path.name else ""
        print(
            f"{name}: {len(split.images):,} images, {int(split.annotated.sum()):,} of them annotated{expected}",
            flush=True,
        )
        masks = out / "masks" / name
        _remove_stale(split, masks)
        if png:
            usable = _write_masks(split, masks, f"Writing the {name} masks")
            print(f"{name}: {usable:,} images show a class on at least {USABLE:,} pixels", flush=True)
    print(f"written: {out}; use it as dataset=coco20i dataset.root={out}")


def _check_categories(splits: Sequence[CocoAnnotations]) -> None:
    for split in splits:
        if len(split.categories) != CLASSES:
            raise DataError(
                f"annotations {split.path} have {len(split.categories)} categories, expected COCO's {CLASSES}: other "
                "data sets in this format need no preparation, see dataset=folder"
            )
    if splits[0].categories != splits[1].categories:
        raise DataError(
            f"annotations {splits[0].path} and {splits[1].path} have different categories, expected the same in both: "
            "take both from one release"
        )


def _unfinished(folder: Path) -> Path:
    """Where masks are drawn until all are there: a folder of masks is used as soon as it exists."""
    return folder.with_name(f".{folder.name}")


def _remove_stale(annotations: CocoAnnotations, folder: Path) -> None:
    """Remove masks that an earlier call drew from other annotations; the user's own have no mark of ours."""
    for place in (folder, _unfinished(folder)):
        mark = place / _OF
        if mark.is_file() and mark.read_text(encoding="utf-8") != annotations.state:
            shutil.rmtree(place)


def _write_masks(annotations: CocoAnnotations, folder: Path, title: str) -> int:
    """Write a PNG for each image, but for those that are there; how many show a class large enough."""
    place = folder if folder.is_dir() else _unfinished(folder)
    if place != folder:
        with written_whole(place / _OF) as temporary:
            temporary.write_text(annotations.state, encoding="utf-8")
    usable = sum(read_all(partial(_write_mask, annotations, place), len(annotations.images), title))
    if place != folder:
        place.rename(folder)
    return usable


def _write_mask(annotations: CocoAnnotations, folder: Path, i: int) -> bool:
    """Write the mask of image `i` unless it is there; whether it shows a class large enough."""
    path = folder / f"{annotations.images[i].rpartition('.')[0]}.png"
    if path.is_file():
        label = read_label(path)
    else:
        label = annotations.label(i)
        write_mask(label, path)
    counts = np.bincount(label.ravel(), minlength=IGNORE)
    return bool(counts[1:IGNORE].max() >= USABLE)
