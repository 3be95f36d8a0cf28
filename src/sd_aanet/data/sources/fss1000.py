"""FSS-1000: a thousand classes of ten pictures each, a folder a class."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sd_aanet.data.folds import shuffled
from sd_aanet.data.sources.base import Split
from sd_aanet.data.sources.index import IndexedSource
from sd_aanet.data.sources.listing import composed, files_below, is_text, read_lines
from sd_aanet.data.sources.refusal import refuse
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import Array8, check_same_size, image_size, read_image, read_mask
from sd_aanet.rules import or_null, text, whole

LISTS = {"train": ("train.txt", "trn.txt"), "val": ("val.txt",), "test": ("test.txt",)}
"""The names that lists of classes have, by stage."""
PICTURES = (".jpg", ".jpeg")
MASK = ".png"
SHARES = {"train": 520, "val": 240, "test": 240}
"""Classes of each stage in the benchmark; other numbers of classes are divided in proportion."""


class Fss1000(IndexedSource):
    """FSS-1000 in one fold: 520 classes to train on, 240 to validate on, 240 to test on.

    A folder for each class holds `<n>.jpg` and its mask `<n>.png`, light (over 127, or 1 in a mask of 0 and 1) where
    the object is. Which class is in which stage comes from lists (a class, or the path of one of its files, in each
    line), or from a seeded division. A class on none of the lists is no part of the data set.

    Args:
        root: the folder of the classes' folders.
        split: "train" (images of the training classes) or "val" (of the validation and test classes).
        lists: the folder of train.txt (or trn.txt), val.txt and test.txt; None for `root`, if they are there.
        seed: of the division where there are no lists.

    Raises:
        DataError: no such folder, no class in it, or lists that are incomplete, overlap, or name what is not there.
        ConfigError: `lists` is not a folder.
    """

    name = "fss1000"
    rules: ClassVar = {"root": text("fss1000"), "lists": or_null(text("lists")), "seed": whole(0)}
    dividing = ("lists", "seed")
    folds = 1

    def __init__(self, root: str | Path, split: Split, lists: str | Path | None = None, seed: int = 0) -> None:
        self.split = split
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(
                f"dataset root {self.root} is not a folder, expected one folder per class in it: set dataset.root"
            )
        pictures, self._others = _files_of_classes(self.root)
        if not pictures:
            raise DataError(
                f"dataset root {self.root} holds no class, expected folders with 1.jpg, 1.png and so on: "
                "set dataset.root to the folder above them"
            )
        stages = self._listed(lists, pictures) or _divided(self.root, list(pictures), seed)
        self.classes = tuple(sorted(name for names in stages.values() for name in names))
        ids = {name: c for c, name in enumerate(self.classes, start=1)}
        self._stages = {stage: tuple(sorted(ids[name] for name in names)) for stage, names in stages.items()}
        shown = self._stages["train"] if split == "train" else (*self._stages["val"], *self._stages["test"])
        self._pictures = [(c, path) for c in sorted(shown) for path in pictures[self.classes[c - 1]]]

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, i: int) -> str:
        own, path = self._pictures[i]
        return f"{self.classes[own - 1]}/{composed(path.stem)}"

    def image(self, i: int) -> Array8:
        return read_image(self._pictures[i][1], upright=False)

    def mask(self, i: int, class_id: int) -> Array8:
        own, picture = self._pictures[i]
        path = picture.with_suffix(MASK)
        mask = read_mask(path)
        check_same_size(picture, image_size(picture, upright=False), path, mask.shape)
        return mask if class_id == own else np.zeros_like(mask)

    def count(self, i: int) -> NDArray[np.int64]:
        own = self._pictures[i][0]
        counts = np.zeros(len(self.classes), np.int64)
        counts[own - 1] = np.count_nonzero(self.mask(i, own) == 1)
        return counts

    def label_files(self) -> Sequence[str]:
        return [str(picture.with_suffix(MASK)) for _, picture in self._pictures]

    def fold_classes(self, fold: int) -> tuple[int, ...]:
        return self._stages["test"]

    def val_classes(self, fold: int) -> tuple[int, ...] | None:
        return self._stages["val"]

    def strays(self) -> Sequence[DataError]:
        return [DataError(line, "stray") for line in self._others]

    def _listed(self, lists: str | Path | None, found: Collection[str]) -> dict[str, list[str]] | None:
        """The classes of each stage by the lists; None where there are none and none were asked for."""
        folder = self.root if lists is None else Path(lists).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"dataset.source.lists={lists} is not a folder, expected train.txt, val.txt, test.txt in it"
            )
        paths = {
            stage: next((folder / n for n in names if (folder / n).is_file()), None) for stage, names in LISTS.items()
        }
        missing = [stage for stage, path in paths.items() if path is None]
        if len(missing) == len(paths) and lists is None:
            return None
        if missing:
            raise DataError(f"the lists in {folder} lack {missing[0]}.txt, expected train.txt, val.txt and test.txt")
        stages = {stage: _read_list(path, found) for stage, path in paths.items() if path is not None}
        seen: dict[str, str] = {}
        for stage, name in ((stage, name) for stage, names in stages.items() for name in names):
            if name in seen:
                refuse(
                    f"class '{name}' is in the lists of {seen[name]} and of {stage} in {folder}, expected one of them: "
                    "take it off the other"
                )
            else:
                seen[name] = stage
        self._others += [f"class {self.root / name} is in none of the lists" for name in found if name not in seen]
        return {stage: [name for name in names if seen[name] == stage] for stage, names in stages.items()}


def _files_of_classes(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The pictures of each class, and lines on files that belong to none of them."""
    pictures: dict[str, list[Path]] = {}
    others: list[str] = []
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    seen: set[Path] = set()
    for folder in sorted(folders, key=lambda path: (path.is_symlink(), path)):  # each real folder once
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        files = [Path(path) for place, path in files_below(folder).items() if "/" not in place]
        found = [path for path in files if path.suffix.lower() in PICTURES]
        name, stems = composed(folder.name), {path.stem for path in found}
        if not is_text(name):
            refuse(f"{folder} has a name that is not in UTF-8, as old archives have them: rename it")
        elif name in pictures:
            refuse(f"{folder} and {pictures[name][0].parent} have one name in two spellings (Unicode): rename one")
        elif len(stems) < len(found):
            refuse(
                f"{folder} holds {len(found)} pictures of {len(stems)} names, expected one of each: take the others out"
            )
        elif found:
            pictures[name] = found
        else:
            others.append(f"folder {folder} holds no picture ({', '.join(PICTURES)})")
        others += [
            f"mask {path} has no picture beside it" for path in files if path.suffix == MASK and path.stem not in stems
        ]
    return pictures, others


def _read_list(path: Path, classes: Collection[str]) -> list[str]:
    names: list[str] = []
    lines = read_lines(path)
    for line in lines:
        name = next((name for name in _candidates(line) if name in classes), None)
        if name is None:
            refuse(f"list {path} names '{line}', expected the name of a folder with pictures: correct it")
        elif name not in names:
            names.append(name)
    if not lines:
        refuse(f"list {path} is empty, expected a class or a path in each line: fill it")
    return names


def _candidates(line: str) -> Iterator[str]:
    """What may be the class: the line, or the end of its path, or of the first of its paths."""
    yield line
    for path in (line, line.split()[0]):
        yield from reversed(path.replace("\\", "/").strip("/").split("/")[-2:])


def _divided(root: Path, classes: Sequence[str], seed: int) -> dict[str, list[str]]:
    """A seeded division in the benchmark's proportion; at least one class a stage."""
    count, total = len(classes), sum(SHARES.values())
    if count < len(SHARES):
        raise DataError(f"{root} holds {count} classes, expected {len(SHARES)} or more to divide: add some")
    order = [classes[ids[0] - 1] for ids in shuffled(count, count, seed)]
    val, test = (max(1, round(count * SHARES[stage] / total)) for stage in ("val", "test"))
    train = count - val - test
    return {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
