"""What the commands on pictures of one's own share: supports and a segmenter as they are given, a folder of results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sd_aanet.arguments import word
from sd_aanet.building import untrained
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.files import claimed, written_whole
from sd_aanet.images import Array8, Picture
from sd_aanet.pictures import BLUE, Captioned, fit, grid, overlay
from sd_aanet.precision import set_tf32
from sd_aanet.rules import at_home, check
from sd_aanet.segmenting.marks import Box, Mark, Points, read_support
from sd_aanet.segmenting.segmenter import THING, FewShotSegmenter
from sd_aanet.settings import RULES

_COLUMNS, _SIDE = 4, 320
_COLON = re.compile(r":(?:(?<!^[A-Za-z]:)(?<!:[A-Za-z]:)|(?![\\/]))")
"""Not that of a drive, `C:\\`."""


class Shown(NamedTuple):
    """A labelled picture as the user names it: of which thing, where, and what marks it."""

    name: str
    image: Path
    mark: Mark


def lists(config: Mapping[str, Any], *names: str) -> list[list[Any]]:
    """Settings that are one value or a list of them, checked.

    Raises:
        ConfigError: one that is empty, or cannot work.
    """
    given = {name: _list(config, name) for name in names}
    check(given, RULES)
    return list(given.values())


def segmenter_of(config: Mapping[str, Any]) -> FewShotSegmenter:
    """The one that a configuration asks for.

    Args:
        config: `checkpoint`, or where that is None `backbone`, `model`, `size`, `resize` and `recipe`; `not_finite`,
            `device`, `precision`.

    Raises:
        ConfigError: a setting that cannot work, or a model that has to be trained.
        CheckpointError: see `FewShotSegmenter.from_checkpoint`.
    """
    precision = str(config.get("precision") or "32-true")
    set_tf32(precision == "tf32")
    where = str(config.get("device") or "auto"), "32-true" if precision == "tf32" else precision
    if config["checkpoint"] is None:
        method, _, preprocess = untrained(dict(config))
        if method.trains:
            raise ConfigError(
                f"model={method.name} has to be trained: give checkpoint=..., or choose one that needs no training, "
                "such as model=probe"
            )
        return FewShotSegmenter(method, preprocess, *where)
    checkpoint = _list(config, "checkpoint")[0]
    return FewShotSegmenter.from_checkpoint(checkpoint, *where, not_finite=str(config.get("not_finite") or "refuse"))


def remember(
    segmenter: FewShotSegmenter,
    pairs: Sequence[Shown],
    class_id: int | None,
    more: Mapping[str, Iterable[tuple[Picture, Mark]]] | None = None,
) -> Image.Image:
    """Show a segmenter its supports, those of `more` behind the others of their thing.

    Returns:
        What shows `pairs` as they were understood.
    """
    shown: list[Captioned] = []
    for thing in dict.fromkeys(pair.name for pair in pairs):
        of_it = [pair for pair in pairs if pair.name == thing]
        segmenter.remember(thing, chain(_read(of_it, class_id, shown), (more or {}).get(thing, ())))
    return grid([shown[i : i + _COLUMNS] for i in range(0, len(shown), _COLUMNS)], side=_SIDE)


@contextmanager
def folder_of_results(out: Path) -> Iterator[None]:
    """Write into a folder, see `claimed`.

    Raises:
        ConfigError: another process works there.
        DataError: it cannot be written.
    """
    try:
        with claimed(out):
            yield
    except OSError as error:
        raise DataError(f"out='{out}' cannot be written ({error}): choose another folder") from None


def refuse_overwriting(out: Path, results: Iterable[str], pictures: Sequence[Path], pairs: Sequence[Shown]) -> None:
    """Raise ConfigError where `out` is a file, or a result in it would be written over a picture or a support."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out='{out}' is a file: choose a folder")
    written = {(out / name).resolve() for name in results}
    for path in (*pictures, *(path for pair in pairs for path in pair if isinstance(path, Path))):
        if path.resolve() in written:
            raise ConfigError(f"out='{out}' would overwrite the input '{path}': choose another folder")


def unique(stems: Sequence[str]) -> list[str]:
    """The stems, the second of a kind with _2 behind it; case aside, which some file systems do not keep."""
    taken: set[str] = set()
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def counted(number: int, one: str, many: str) -> str:
    """A number of things in words."""
    return f"{number} {one if number == 1 else many}"


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole."""
    with written_whole(path) as temporary:
        picture.save(temporary, compress_level=1)  # large photographs take three times as long at the usual one


def _list(config: Mapping[str, Any], name: str) -> list[Any]:
    """A setting that is one value or a list of them."""
    value = config.get(name)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if values in ([], [None]):
        raise ConfigError(f"{name} is empty: set it, for example {word(f'{name}={RULES[name].example}')}")
    return values


def support_of(entry: str | Mapping[str, Any]) -> Shown:
    """By name, or image and mask parted by the last colon, for a path may hold one itself."""
    if isinstance(entry, str):
        *_, last = 0, *(colon.start() for colon in _COLON.finditer(entry))
        entry = {"image": entry[:last], "mask": entry[last + 1 :]}
    if not entry["image"] or entry.get("mask") == "":
        named = "'support=[{image: img1.jpg, mask: mask1.png}]'"
        whole = f"{entry['image']}{entry.get('mask', '')}"
        raise ConfigError(f"support '{whole}' is not a pair: write image and mask as img1.jpg:mask1.png, or as {named}")
    mark: Mark
    if "box" in entry:
        if not isinstance(entry["box"], list) or len(entry["box"]) != 4:
            raise ConfigError(f"the box of '{entry['image']}' is {entry['box']}: expected [x0, y0, x1, y1] in pixels")
        mark = Box(*entry["box"])
    elif "points" in entry:
        mark = Points(entry["points"], entry.get("not") or ())
    else:
        mark = entry["polygons"] if "polygons" in entry else Path(at_home(entry["mask"]))
    return Shown(str(entry.get("name") or THING), Path(at_home(entry["image"])), mark)


def _read(pairs: Sequence[Shown], class_id: int | None, shown: list[Captioned]) -> Iterator[tuple[Array8, Array8]]:
    """The supports, one after the other; what shows each goes into a list."""
    for name, path, mark in pairs:
        image, mask = read_support(path, mark, class_id)
        yield image, mask
        small = np.asarray(fit(overlay(image, mask, BLUE, image), _SIDE))
        shown.append((small, f"{path.name}: {name} {np.mean(mask == 1):.1%}"))
