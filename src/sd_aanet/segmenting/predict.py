"""`sd-aanet predict`: masks, overlays and attention maps of a user's own pictures, as files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sd_aanet.arguments import word
from sd_aanet.building import untrained
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.files import claimed, written_whole
from sd_aanet.images import Array8, check_image
from sd_aanet.pictures import BLUE, Captioned, fit, grid, heat, heat_colours, overlay
from sd_aanet.precision import set_tf32
from sd_aanet.rules import at_home, check
from sd_aanet.segmenting.marks import Box, Mark, Points, read_support
from sd_aanet.segmenting.queries import OURS, SUPPORTS, pictures_of
from sd_aanet.segmenting.result import Segmentation
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


def run(config: Mapping[str, Any]) -> Path:
    """Segment every query from the supports and write, at each query's own size, what was found.

    For a query `dog.jpg`: `dog_mask.png` (indices 0 and 1, with a palette), `dog_overlay.png` and, where the method has
    a map to look at (see `Segmentation.attention`), `dog_attention.png`. `supports.png` shows the supports as they were
    understood. Before the first file is written all settings and supports are checked, and of the queries what shows
    without decoding them; each is decoded once, in its turn.

    Args:
        config: `checkpoint`, or where that is None `backbone`, `model`, `size`, `resize` and `recipe`; `support`, a
            list of "image:mask" or of {"image": ..., "mask": ...}; `query`, a list of files and folders; `out`, a
            folder; `class_id`, the object's value in the masks, or None; `device`; `precision`.

    Returns:
        The folder that holds the results.

    Raises:
        ConfigError: a setting that is missing or cannot work, or results that would overwrite an input.
        DataError: pictures or masks that are missing, unreadable or do not fit.
        CheckpointError: see `FewShotSegmenter.from_checkpoint`.
    """
    given = {name: _list(config, name) for name in ("support", "query")}
    check(given, RULES)
    pairs = [_pair(entry) for entry in given["support"]]
    queries = pictures_of(given["query"])
    out = Path(str(config.get("out") or "predictions"))
    names = _unique([query.stem for query in queries])
    _check_out(out, [f"{name}{ending}" for name in names for ending in OURS] + [SUPPORTS], queries, pairs)
    for query in queries:
        check_image(query)
    precision = str(config.get("precision") or "32-true")
    set_tf32(precision == "tf32")
    device = str(config.get("device") or "auto")
    segmenter = segmenter_of(config, device, "32-true" if precision == "tf32" else precision)
    shown: list[Captioned] = []
    for thing in dict.fromkeys(pair.name for pair in pairs):
        of_it = [pair for pair in pairs if pair.name == thing]
        segmenter.remember(thing, _read(of_it, config.get("class_id"), shown))

    try:
        with claimed(out):
            _save(grid([shown[i : i + _COLUMNS] for i in range(0, len(shown), _COLUMNS)], side=_SIDE), out / SUPPORTS)
            named = zip(queries, names, strict=True)
            for query, name in tqdm(named, "predict", total=len(queries), unit="image", disable=len(queries) == 1):
                segmentation = segmenter.segment(query)
                for ending, picture in _pictures(segmentation):
                    _save(picture, out / f"{name}{ending}")
                    del picture  # before the next one is drawn: of a large query each takes much memory
                if segmentation.looked_at is None:  # nor that of another run
                    (out / f"{name}{OURS[2]}").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"out='{out}' cannot be written ({error}): choose another folder") from None
    endings = ", ".join(f"*{ending}" for ending in (OURS if segmentation.looked_at is not None else OURS[:2]))
    print(
        f"{_count(len(queries), 'query', 'queries')} segmented from {_count(len(pairs), 'support', 'supports')}: "
        f"{out}/ holds {endings}; {SUPPORTS} shows how the supports were understood"
    )
    return out


def segmenter_of(config: Mapping[str, Any], device: str, precision: str) -> FewShotSegmenter:
    """That of a checkpoint, or of a model that needs no training.

    Args:
        config: see `run`.
        device, precision: see `FewShotSegmenter`.

    Raises:
        ConfigError: a model that has to be trained, without a checkpoint; and see `FewShotSegmenter.from_checkpoint`.
    """
    if config["checkpoint"] is None:
        method, _, preprocess = untrained(dict(config))
        if method.trains:
            raise ConfigError(
                f"model={method.name} has to be trained: give checkpoint=..., or choose one that needs no training, "
                "such as model=probe"
            )
        return FewShotSegmenter(method, preprocess, device, precision)
    checkpoint = _list(config, "checkpoint")[0]
    not_finite = str(config.get("not_finite") or "refuse")
    return FewShotSegmenter.from_checkpoint(checkpoint, device, precision, not_finite)


def _list(config: Mapping[str, Any], name: str) -> list[Any]:
    """A setting that is one value or a list of them."""
    value = config.get(name)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if values in ([], [None]):
        raise ConfigError(f"{name} is empty: set it, for example {word(f'{name}={RULES[name].example}')}")
    return values


def _pair(entry: str | Mapping[str, Any]) -> Shown:
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


def _unique(stems: Sequence[str]) -> list[str]:
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


def _check_out(out: Path, results: Sequence[str], queries: Sequence[Path], pairs: Sequence[Shown]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out='{out}' is a file: choose a folder")
    written = {(out / name).resolve() for name in results}
    for path in (*queries, *(path for pair in pairs for path in pair if isinstance(path, Path))):
        if path.resolve() in written:
            raise ConfigError(f"out='{out}' would overwrite the input '{path}': choose another folder")


def _read(pairs: Sequence[Shown], class_id: int | None, shown: list[Captioned]) -> Iterator[tuple[Array8, Array8]]:
    """The supports, one after the other; what shows each goes into a list."""
    for name, path, mark in pairs:
        image, mask = read_support(path, mark, class_id)
        yield image, mask
        small = np.asarray(fit(overlay(image, mask, BLUE, image), _SIDE))
        shown.append((small, f"{path.name}: {name} {np.mean(mask == 1):.1%}"))


def _pictures(found: Segmentation) -> Iterator[tuple[str, Image.Image]]:
    """The results of one query, by the end of their names; its picture is drawn over."""
    yield OURS[0], found.drawn_mask()
    yield OURS[1], found.overlay()
    if found.looked_at is not None:
        values = np.empty(found.labels.shape, np.uint8)
        for rows, strip in found.looked_at.strips():
            values[rows] = heat(strip)
        attention = Image.fromarray(values, mode="P")
        attention.putpalette(heat_colours().ravel().tolist())
        yield OURS[2], attention


def _save(picture: Image.Image, path: Path) -> None:
    with written_whole(path) as temporary:
        picture.save(temporary, compress_level=1)  # large photographs take three times as long at the usual one


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
