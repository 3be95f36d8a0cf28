"""A small fake of VOC's folder, in which a picture's red channel repeats its mask."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.fakes import Pair, main, picture_of, write_mask, write_picture

Voc = Callable[..., Path]


def write_pair(root: Path, key: str, label: NDArray[np.uint8], masks: str = "SegmentationClassAug") -> None:
    """Write a mask, and a picture that is red where the mask shows a class, blue where it does not."""
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    write_picture(root / "JPEGImages" / f"{key}.jpg", picture_of(label, key))
    write_mask(root / masks / f"{key}.png", label)


def make_voc(root: Path, images: int = 4, masks: str = "SegmentationClassAug", pairs: bool = False) -> Path:
    """Write `images` of each class to each split: a large object, and in a third also a small, other one."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for number in range(images * 20):
            label = np.zeros((72, 96), np.uint8)
            y, x = rng.integers(2, 12), rng.integers(2, 30)
            label[y : y + 48, x : x + 50] = number % 20 + 1
            label[y, x : x + 50] = 255
            if number // 20 % 3 == 0:
                label[66:72, 80:92] = (number + 5) % 20 + 1  # 72 pixels of a class of another fold
            key = f"{split}_{number:03d}"
            write_pair(root, key, label, masks)
            lines.append(f"/JPEGImages/{key}.jpg /{masks}/{key}.png" if pairs else key)
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def voc_pairs(root: Path, split: str = "train") -> list[Pair]:
    """The pictures of a split and their masks."""
    pictures = sorted(root.glob(f"JPEGImages/{split}_*.jpg"))
    return [(path, root / "SegmentationClassAug" / f"{path.stem}.png") for path in pictures]


if __name__ == "__main__":
    main(make_voc, voc_pairs)
