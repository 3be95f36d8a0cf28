"""A small fake of FSS-1000: a folder a class, pictures and masks side by side."""

from pathlib import Path

import numpy as np

from data.fakes import Pair, main, picture_of, write_mask, write_picture

SHARES = {"train": 4, "val": 2, "test": 2}


def make_fss(root: Path, images: int = 3, lists: str | None = "{name}", shares: dict[str, int] = SHARES) -> Path:
    """Write `images` of each class, called train_a, train_b, ..., test_b.

    Args:
        root: the folder.
        images: of each class.
        lists: a line of a list, with `{name}` for the class; None to write no lists.
        shares: classes of each stage.
    """
    rng = np.random.default_rng(0)
    for stage, count in shares.items():
        names = [f"{stage}_{chr(ord('a') + c)}" for c in range(count)]
        for name in names:
            for number in range(1, images + 1):
                label = np.zeros((60, 60), np.uint8)
                y, x = rng.integers(2, 12), rng.integers(2, 12)
                label[y : y + 40, x : x + 40] = 1
                write_picture(root / name / f"{number}.jpg", picture_of(label, f"{name}{number}"))
                write_mask(root / name / f"{number}.png", label * np.uint8(255 if number % 2 else 1))
        if lists is not None:
            (root / f"{stage}.txt").write_text("".join(lists.format(name=name) + "\n" for name in names))
    return root


def fss_pairs(root: Path, stage: str = "train") -> list[Pair]:
    """The pictures of a stage and their masks."""
    return [(path, path.with_suffix(".png")) for path in sorted(root.glob(f"{stage}_*/*.jpg"))]


if __name__ == "__main__":
    main(make_fss, fss_pairs)
