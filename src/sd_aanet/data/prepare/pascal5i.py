"""PASCAL-5i's folder from VOC2012 and SBD: which masks there are, whose they are, and the lists by rule."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from sd_aanet.data.prepare import SPLITS
from sd_aanet.data.prepare.making import check_complete, link, write_mask
from sd_aanet.data.prepare.matlab import read_field
from sd_aanet.data.reading import read_all
from sd_aanet.data.sources.pascal5i import CLASSES, read_ids
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.files import written_whole
from sd_aanet.images import Array8, check_same_size, image_size, read_label

MASKS = "SegmentationClassAug"
LISTS = Path("ImageSets", "Segmentation")
VOC_TRAIN, VOC_VAL, SBD_TRAIN, TRAIN = 1_464, 1_449, 5_623, 5_953
"""Images of VOC2012's lists, of SBD's train.txt without VOC's val.txt, and of the benchmark's training."""


def build(voc: Path, sbd: Path | None, out: Path) -> None:
    """Make a folder in VOC's layout with the benchmark's masks and lists; say what is in it.

    val is VOC2012's. train is VOC2012's train united with SBD's train.txt, without val. A mask is VOC's own where VOC
    has one, else SBD's. Without SBD, a ready `SegmentationClassAug` in VOC's folder is taken as it is.

    Args:
        voc: VOCdevkit/VOC2012.
        sbd: benchmark_RELEASE or the `dataset` in it.
        out: is made, but for masks that are there already.

    Raises:
        ConfigError: SBD is missing, or `out` would overwrite VOC's lists.
        DataError: files are missing, damaged, or do not fit together.
    """
    if out.resolve() == voc.resolve():
        raise ConfigError(f"--out {out} is VOC's own folder, whose lists would be overwritten: choose another")
    _check_folder(voc / "JPEGImages", "--voc VOCdevkit/VOC2012")
    if sbd is not None and (sbd / "dataset").is_dir():
        sbd /= "dataset"
    val = _ids_of(voc / LISTS / "val.txt")
    _tell_count("VOC's val.txt", val, VOC_VAL)
    train = _train_of_ready_masks(voc, val) if sbd is None else _train_by_rule(voc, sbd, val)
    _tell_count("train", train, TRAIN)
    listed = sorted(train | val)
    pictures = [f"{name}.jpg" for name in listed]
    check_complete("pictures of the lists", pictures, voc / "JPEGImages", "unpack VOC's archive again")
    if sbd is None:
        masks = [f"{name}.png" for name in listed]
        check_complete("masks of the lists", masks, voc / MASKS, "complete the folder, or give --sbd")
        link(voc / MASKS, out / MASKS)
    else:
        _write_masks(listed, voc, sbd, out / MASKS)
    link(voc / "JPEGImages", out / "JPEGImages")
    for split, names in zip(SPLITS, (train, val), strict=True):
        with written_whole(out / LISTS / f"{split}.txt") as temporary:
            temporary.write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")
    print(
        f"written: {out}, {len(train):,} train and {len(val):,} val images; "
        f"use it as dataset=pascal5i dataset.root={out}"
    )


def read_sbd(path: Path) -> Array8:
    """The class indices that a .mat file of SBD holds, uint8 (H, W).

    Raises:
        DataError: the file is damaged or holds something else.
    """
    try:
        label = read_field(path.read_bytes(), "GTcls", "Segmentation")
    except Exception as error:  # a damaged file is an error of almost any kind
        problem = f"{type(error).__name__}: {error}"
    else:
        if label.ndim == 2 and ((label >= 0) & (label <= IGNORE)).all():
            return label.astype(np.uint8)
        problem = "its field GTcls.Segmentation is not a map of class indices"
    raise DataError(f"mask {path} cannot be read ({' '.join(problem.split())}): unpack SBD's archive again")


def _ids_of(path: Path) -> set[str]:
    return set(read_ids(path, "unpack its archive again"))


def _train_by_rule(voc: Path, sbd: Path, val: set[str]) -> set[str]:
    _check_folder(voc / "SegmentationClass", "--voc VOCdevkit/VOC2012")
    _check_folder(sbd / "cls", "--sbd benchmark_RELEASE")
    voc_train = _ids_of(voc / LISTS / "train.txt") - val
    sbd_train = _ids_of(sbd / "train.txt") - val
    _tell_count("VOC's train.txt", voc_train, VOC_TRAIN)
    _tell_count("SBD's train.txt without VOC's val.txt", sbd_train, SBD_TRAIN)
    return voc_train | sbd_train


def _train_of_ready_masks(voc: Path, val: set[str]) -> set[str]:
    if not (voc / MASKS).is_dir():
        raise ConfigError(f"--sbd is missing, and {voc} holds no {MASKS}: give --sbd benchmark_RELEASE, or --download")
    ready = voc / LISTS / "trainaug.txt"
    if ready.is_file():
        print(f"masks are those of {voc / MASKS}; train is {ready} without val")
        return _ids_of(ready) - val
    print(f"masks are those of {voc / MASKS}; train is all of them that have a picture and are not in val")
    pictures = {path.stem for path in (voc / "JPEGImages").glob("*.jpg")}
    return {path.stem for path in (voc / MASKS).glob("*.png")} & pictures - val


def _tell_count(what: str, names: Collection[str], expected: int) -> None:
    if difference := len(names) - expected:
        off = f"{difference:,} too many" if difference > 0 else f"{-difference:,} are missing"
        print(
            f"warning: {what} has {len(names):,} images, expected {expected:,}: {off}, so scores do not compare with "
            "published ones"
        )


def _write_masks(names: list[str], voc: Path, sbd: Path, folder: Path) -> None:
    if folder.is_symlink():  # to ready masks, of an earlier call: they are not ours to add to
        folder.unlink()
    own = {path.stem for path in (voc / "SegmentationClass").glob("*.png")}
    others = {path.stem for path in (sbd / "cls").glob("*.mat")}
    if lacking := [name for name in names if name not in own | others]:
        raise DataError(
            f"masks of the lists: {len(lacking):,} of {len(names):,} are neither in {voc / 'SegmentationClass'} nor in "
            f"{sbd / 'cls'}, the first is {lacking[0]}: unpack both archives again"
        )
    left = [name for name in names if not (folder / f"{name}.png").is_file()]
    for _ in read_all(partial(_write_mask, left, voc, sbd, folder), len(left), "Writing masks"):
        pass


def _write_mask(names: list[str], voc: Path, sbd: Path, folder: Path, i: int) -> None:
    picture, source = voc / "JPEGImages" / f"{names[i]}.jpg", voc / "SegmentationClass" / f"{names[i]}.png"
    if source.is_file():
        label = read_label(source)
    else:
        source = sbd / "cls" / f"{names[i]}.mat"
        label = read_sbd(source)
    check_same_size(picture, image_size(picture, upright=False), source, label.shape)
    strange = label[(label > len(CLASSES)) & (label != IGNORE)]
    if strange.size:
        raise DataError(
            f"mask {source} holds the index {strange.min()}, expected 0 to {len(CLASSES)} or {IGNORE} (ignore): unpack "
            "its archive again"
        )
    write_mask(label, folder / f"{names[i]}.png")


def _check_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise DataError(f"folder {folder} is missing, expected for {option}: give the folder above it")
