"""Small fakes of VOCdevkit/VOC2012 and of SBD's benchmark_RELEASE, in their true layouts."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat
from scipy.sparse import csc_matrix

from data.fake_voc import write_pair
from data.fakes import Pair, main

VOC_TRAIN = ("2007_000032", "2007_000039")
VOC_VAL = ("2007_000033", "2007_000042")
SBD_TRAIN = ("2008_000003", "2007_000039", "2007_000042", "2010_000001")
"""One is in VOC's train, with a mask of its own, and one in VOC's val."""
UNLISTED = "2011_000999"
"""A photograph of VOC's other tasks."""
HEIGHT, WIDTH = 72, 96


def label_of(name: str, author: str) -> NDArray[np.uint8]:
    """What VOC or SBD says that an image shows: VOC with a border of 255."""
    rng = np.random.default_rng([*name.encode(), *author.encode()])
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = rng.integers(2, 12), rng.integers(2, 30)
    label[y : y + 48, x : x + 50] = rng.integers(1, 21)
    if author == "voc":
        label[y, x : x + 50] = 255
    return label


def make_voc2012(root: Path) -> Path:
    """Write pictures of all images, and masks and lists of those that VOC segments itself."""
    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, UNLISTED}:
        write_pair(root, name, label_of(name, "voc"), "SegmentationClass")
        if name not in VOC_TRAIN + VOC_VAL:
            (root / "SegmentationClass" / f"{name}.png").unlink()
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", sorted(VOC_TRAIN + VOC_VAL))):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def make_sbd(root: Path) -> Path:
    """Write benchmark_RELEASE/dataset with a .mat file for each image of its list, and one of its val list."""
    (root / "dataset/cls").mkdir(parents=True)
    for name in (*SBD_TRAIN, UNLISTED):
        write_mat(root / "dataset/cls" / f"{name}.mat", label_of(name, "sbd"))
    (root / "dataset/train.txt").write_text("\n".join(SBD_TRAIN))
    (root / "dataset/val.txt").write_text(f"{UNLISTED}\n")
    return root


def write_mat(path: Path, label: NDArray[np.uint8]) -> None:
    """Write GTcls as SBD does: boundaries, map of classes, classes present."""
    boundaries = np.empty((20, 1), object)
    for place in range(20):
        boundaries[place, 0] = csc_matrix(label.shape[:2])
    present = np.setdiff1d(np.unique(label), (0, 255)).astype(np.float64)[:, None]
    fields = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    savemat(path, {"GTcls": fields}, do_compression=True)


def make_archives(root: Path) -> Path:
    """Write both, as their archives unpack."""
    make_voc2012(root / "VOCdevkit/VOC2012")
    make_sbd(root / "benchmark_RELEASE")
    return root


def voc2012_pairs(root: Path) -> list[Pair]:
    """The masks of VOC's own, and their pictures."""
    masks = sorted(root.glob("VOCdevkit/VOC2012/SegmentationClass/*.png"))
    return [(path.parents[1] / f"JPEGImages/{path.stem}.jpg", path) for path in masks]


if __name__ == "__main__":
    main(make_archives, voc2012_pairs)
