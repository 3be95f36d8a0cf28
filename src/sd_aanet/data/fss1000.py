"""FSS-1000: a thousand classes of ten pictures each, a folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.folds import shuffled
from sd_aanet.data.index import IndexedSource
from sd_aanet.data.source import Array8, Split, check_same_size, image_size, read_image, read_mask
from sd_aanet.errors import ConfigError, DataError

LISTS = {"train": ("train.txt", "trn.txt"), "val": ("val.txt",), "test": ("test.txt",)}
"""The names that lists of classes have, by stage."""
SHARES = {"train": 520, "val": 240, "test": 240}
"""Classes of each stage in the benchmark; other numbers of classes are divided in proportion."""


class Fss1000(IndexedSource):
    """FSS-1000 in one fold: 520 classes to train on, 240 to validate on, 240 to test on.

    A folder for each class holds `<n>.jpg` and its mask `<n>.png`, light (over 127, or 1 in a mask of 0 and 1) where
    the object is. Which class is in which stage comes from lists (a class, or the path of one of its files, in each
    line), or from a seeded division.

    Args:
        root: the folder of the classes' folders.
        split: "train" (images of the training classes) or "val" (of the validation and test classes).
        lists: the folder of train.txt (or trn.txt), val.txt and test.txt; None for `root`, if they are there.
        seed: of the division where there are no lists.

    Raises:
        DataError: no such folder, no class in it, or lists that are incomplete, overlap, or name what is not there.
        ConfigError: `lists` is no folder.
    """

    name = "fss1000"
    folds = 1

    def __init__(self, root: str | Path, split: Split, lists: str | Path | None = None, seed: int = 0) -> None:
        self.split = split
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"dataset root {self.root} is no folder, expected a folder a class in it: set dataset.root")
        found = {folder.name: folder for folder in sorted(self.root.iterdir()) if any(folder.glob("*.jpg"))}
        if not found:
            raise DataError(
                f"dataset root {self.root} holds no class, expected folders with 1.jpg, 1.png and so on: "
                "set dataset.root to the folder above them"
            )
        self.classes = tuple(found)
        self._stages = self._listed(lists) or self._divided(seed)
        shown = self._stages["train"] if split == "train" else (*self._stages["val"], *self._stages["test"])
        self._pictures = [
            (c, picture) for c in sorted(shown) for picture in sorted(found[self.classes[c - 1]].glob("*.jpg"))
        ]

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, i: int) -> str:
        picture = self._pictures[i][1]
        return f"{picture.parent.name}/{picture.stem}"

    def image(self, i: int) -> Array8:
        return read_image(self._pictures[i][1])

    def mask(self, i: int, class_id: int) -> Array8:
        own, picture = self._pictures[i]
        path = picture.with_suffix(".png")
        mask = read_mask(path)
        check_same_size(picture, image_size(picture), path, mask.shape)
        return mask if class_id == own else np.zeros_like(mask)

    def count(self, i: int) -> NDArray[np.int64]:
        own = self._pictures[i][0]
        counts = np.zeros(len(self.classes), np.int64)
        counts[own - 1] = np.count_nonzero(self.mask(i, own) == 1)
        return counts

    def label_files(self) -> Sequence[str]:
        return [str(picture.with_suffix(".png")) for _, picture in self._pictures]

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        return self._stages["test"]

    def val_classes(self, fold: int) -> tuple[int, ...] | None:
        return self._stages["val"]

    def strays(self) -> Sequence[str]:
        pictures = {picture.with_suffix(".png") for _, picture in self._pictures}
        folders = sorted({picture.parent for _, picture in self._pictures})
        masks = (mask for folder in folders for mask in sorted(folder.glob("*.png")))
        return [f"mask {mask} has no picture beside it" for mask in masks if mask not in pictures]

    def _listed(self, lists: str | Path | None) -> dict[str, tuple[int, ...]] | None:
        """The class ids of each stage by the lists; None where there are none and none were asked for."""
        folder = self.root if lists is None else Path(lists).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"dataset.source.lists={lists} is no folder, expected train.txt, val.txt, test.txt in it")
        paths = {
            stage: next((folder / n for n in names if (folder / n).is_file()), None) for stage, names in LISTS.items()
        }
        missing = [stage for stage, path in paths.items() if path is None]
        if len(missing) == len(paths) and lists is None:
            return None
        if missing:
            raise DataError(f"the lists in {folder} lack {missing[0]}.txt, expected train.txt, val.txt and test.txt")
        stages = {stage: self._read_list(path) for stage, path in paths.items() if path is not None}
        seen: dict[int, str] = {}
        for stage, ids in stages.items():
            for c in ids:
                if c in seen:
                    raise DataError(
                        f"class '{self.classes[c - 1]}' is in the lists of {seen[c]} and of {stage} in {folder}: "
                        "take it off one of them"
                    )
                seen[c] = stage
        return stages

    def _read_list(self, path: Path) -> tuple[int, ...]:
        ids = set()
        for line in path.read_text(encoding="utf-8").split("\n"):
            parts = [part for part in line.strip().replace("\\", "/").split(" ")[0].split("/") if part]
            if not parts:
                continue
            name = parts[-2] if len(parts) > 1 and "." in parts[-1] else parts[-1]
            if name not in self.classes:
                raise DataError(f"list {path} names '{name}', no folder with pictures in {self.root}: correct it")
            ids.add(self.classes.index(name) + 1)
        if not ids:
            raise DataError(f"list {path} is empty, expected a class or a path in each line")
        return tuple(sorted(ids))

    def _divided(self, seed: int) -> dict[str, tuple[int, ...]]:
        """A seeded division in the benchmark's proportion; at least one class a stage."""
        count, total = len(self.classes), sum(SHARES.values())
        if count < len(SHARES):
            raise DataError(f"{self.root} holds {count} classes, expected {len(SHARES)} or more to divide: add some")
        order = [ids[0] for ids in shuffled(count, count, seed)]
        val, test = (max(1, round(count * SHARES[stage] / total)) for stage in ("val", "test"))
        parts = {"train": order[: count - val - test], "val": order[count - val - test : count - test]}
        return {stage: tuple(sorted(ids)) for stage, ids in (parts | {"test": order[count - test :]}).items()}
