"""COCO-20i's folder: links to COCO's annotations and images, checked, and masks as PNG for who wants them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sd_aanet.data.prepare import SPLITS
from sd_aanet.data.prepare.making import check_complete, link, write_mask
from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.coco import CocoAnnotations
from sd_aanet.data.sources.coco20i import CLASSES
from sd_aanet.errors import DataError

ANNOTATED = {"train": 82_081, "val": 40_137}
"""Images of COCO 2014 with an annotation; the field's lists for COCO-20i are these."""
_OF = ".annotations"
"""In a folder of masks that we drew: the state of their annotations."""


def build(coco: Path, out: Path, png: bool) -> None:
    """Make `out`/annotations, `out`/train and `out`/val, with `png` `out`/masks too; say what is in it.

    Args:
        coco: holds annotations/, train2014/ and val2014/, or those of 2017.
        out: is made, but for masks that are there; those that an earlier call drew from other annotations go.
        png: draw the masks now, which takes long, instead of when they are needed.

    Raises:
        DataError: files are missing, malformed, or do not fit together.
    """
    annotations, images = _found_in(coco)
    for folder in images:
        if not folder.is_dir():
            raise DataError(f"folder {folder} is missing, expected COCO's images: unpack them there")
    splits = [CocoAnnotations(path) for path in annotations]
    _check_categories(splits)
    for split, folder in zip(splits, images, strict=True):
        check_complete(f"images of {split.path}", split.images, folder, "unpack their archive again")
    for name, path, split, folder in zip(SPLITS, annotations, splits, images, strict=True):
        link(path, out / "annotations" / f"instances_{name}.json")
        link(folder, out / name)
        expected = f" (expected of 2014: {ANNOTATED[name]:,})" if "2014" in path.name else ""
        print(
            f"{name}: {len(split.images):,} images, {int(split.annotated.sum()):,} of them annotated{expected}",
            flush=True,
        )
        masks = out / "masks" / name
        mark = masks / _OF  # which a user's own masks do not have
        if mark.is_file() and mark.read_text(encoding="utf-8") != split.state:
            shutil.rmtree(masks)
        if png and not masks.is_dir():
            _draw_masks(split, masks, f"Writing the {name} masks")
    print(f"written: {out}; use it as dataset=coco20i dataset.root={out}")


def _found_in(coco: Path) -> tuple[list[Path], list[Path]]:
    """The annotations and the folders of images, train and val, in COCO's layout."""
    for year in (2014, 2017):
        annotations = [coco / "annotations" / f"instances_{split}{year}.json" for split in SPLITS]
        if all(path.is_file() for path in annotations):
            return annotations, [coco / f"{split}{year}" for split in SPLITS]
    raise DataError(
        f"folder {coco} lacks COCO's layout, expected annotations/instances_{{train,val}}2014.json (or 2017): set "
        "--coco to the folder above annotations/"
    )


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


def _draw_masks(annotations: CocoAnnotations, folder: Path, title: str) -> None:
    """Write a PNG for each image into a folder that is there, and so is used, only once all are."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for _ in read_all(partial(_draw_mask, annotations, unfinished), len(annotations.images), title):
        pass
    (unfinished / _OF).write_text(annotations.state, encoding="utf-8")
    unfinished.rename(folder)


def _draw_mask(annotations: CocoAnnotations, folder: Path, i: int) -> None:
    write_mask(annotations.label(i), folder / f"{annotations.images[i].rpartition('.')[0]}.png")
