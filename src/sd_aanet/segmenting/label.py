"""`sd-aanet label`: masks proposed for many pictures, to be corrected by hand and learnt from, round by round."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sd_aanet.errors import UNREADABLE, ConfigError, DataError
from sd_aanet.files import written_whole
from sd_aanet.images import check_image
from sd_aanet.rules import check
from sd_aanet.segmenting.annotations import Found, Labelled, posix, write_coco, write_cvat, write_json
from sd_aanet.segmenting.given import (
    counted,
    folder_of_results,
    lists,
    refuse_overwriting,
    remember,
    save,
    segmenter_of,
    support_of,
    unique,
)
from sd_aanet.segmenting.labelme import content_of, read_labelme
from sd_aanet.segmenting.queries import SUPPORTS, pictures_of
from sd_aanet.segmenting.result import Segmentation
from sd_aanet.settings import RULES

TABLE, MANIFEST, OVERLAYS = "proposed.csv", "label.json", "overlays"
_WHOLE = {"coco": "annotations.json", "cvat": "annotations.xml"}
"""The formats that have one file for all pictures."""
_SIDE = 640
"""Outlines that people correct leave the mask by up to a pixel of a picture of this side: fewer corners to move."""
_FIRST = 3
"""So many pictures are named as those to look at first."""


class Row(NamedTuple):
    """What is told of a thing in a picture, see `Segmentation`."""

    picture: str
    thing: str
    unsure: float
    score: float
    present: bool
    area_share: float


class Proposals:
    """Tells proposals that a person has changed from those that are as they were written, by their SHA-256.

    The list of these is written before a proposal is, with the new one and with the one that it replaces: a run that is
    killed at any time leaves no proposal that would count as changed.

    Args:
        out: the folder of the proposals.

    Raises:
        ConfigError: the list is damaged, or gone, so that nobody knows any more what was changed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._written: dict[str, list[str]] = {}
        path = out / MANIFEST
        if path.exists():
            try:
                self._written = {str(name): [*map(str, some)] for name, some in json.loads(path.read_bytes()).items()}
            except (*UNREADABLE, AttributeError, TypeError):
                raise _unknown(path, "is damaged") from None
        elif (out / TABLE).exists():
            raise _unknown(path, "is gone")

    def changed(self, name: str) -> bool:
        """Whether a file is there that is not as it was written here."""
        found = self._digest(self.out / name)
        return found is not None and found not in self._written.get(name, ())

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """A temporary name for a new proposal, see `written_whole`."""
        path = self.out / name
        with written_whole(path) as temporary:
            yield temporary
            self._written[name] = [some for some in (self._digest(path), self._digest(temporary)) if some is not None]
            write_json(self.out / MANIFEST, self._written)

    @staticmethod
    def _digest(path: Path) -> str | None:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def run(config: Mapping[str, Any]) -> Path:
    """Propose masks for pictures, the least sure ones told first; those that a person has corrected are supports.

    In labelme's format, `dog.json` is the proposal for `dog.jpg`. In a later round, with the same folder, a file that
    is not as it was written (saved in labelme, with another outline or not) is never written again: what it shows is a
    support, and a picture without a shape shows none of the things. All others are proposed anew. `annotations.json`
    (COCO) and `annotations.xml` (CVAT) hold all pictures, and there are no rounds. Beside them are
    `overlays/<picture>.png`, `supports.png`, `proposed.csv` (a row for each picture and thing, the least sure one
    first) and `label.json` (see `Proposals`).

    Args:
        config: as for `sd-aanet predict`, but for `query`: `images`, a list of files and folders, and `format`.

    Returns:
        The folder that holds the results.

    Raises:
        ConfigError: a setting that is missing or cannot work, or results that would overwrite an input.
        DataError: pictures, masks or corrected files that are missing, unreadable or do not fit.
        CheckpointError: see `FewShotSegmenter.from_checkpoint`.
    """
    supports, given = lists(config, "support", "images")
    pairs = [support_of(entry) for entry in supports]
    pictures = [*dict.fromkeys(pictures_of(given))]
    kind = config.get("format") or "labelme"
    check({"format": kind}, RULES)
    out = Path(str(config.get("out") or "proposals"))
    files = dict.fromkeys(pictures, _WHOLE[kind]) if kind in _WHOLE else _one_each(pictures)
    overlays = {
        picture: f"{OVERLAYS}/{stem}.png"
        for picture, stem in zip(pictures, unique([picture.stem for picture in pictures]), strict=True)
    }
    results = (*files.values(), *overlays.values(), TABLE, MANIFEST, SUPPORTS)
    refuse_overwriting(out, results, pictures, pairs)
    for picture in pictures:
        check_image(picture)
    segmenter = segmenter_of(config)
    above = os.path.commonpath([picture.absolute().parent for picture in pictures])
    names = {picture: os.path.relpath(picture.absolute(), above) for picture in pictures}
    rows: list[Row] = []

    def tell(picture: Path, found: Segmentation) -> None:
        save(found.overlay(found.image), out / overlays[picture])
        rows.extend(_rows(names[picture], found))

    def labelled(picture: Path, found: Segmentation) -> Labelled:
        shown = {name: Found(mask, found.score[name]) for name, mask in found.masks.items()}
        return Labelled(names[picture], found.image.shape[:2], shown)

    def all_labelled() -> Iterator[Labelled]:
        for picture, found in segmented:
            tell(picture, found)
            yield labelled(picture, found)

    with folder_of_results(out):
        proposals = Proposals(out)
        if kind in _WHOLE and proposals.changed(_WHOLE[kind]):
            raise ConfigError(
                f"'{out / _WHOLE[kind]}' was changed since it was proposed, and format={kind} has no rounds: choose "
                "another out, or format=labelme"
            )
        corrected = {} if kind in _WHOLE else _corrected(proposals, files, [pair.name for pair in pairs])
        more = {pair.name: _supports(pair.name, out, files, corrected) for pair in pairs}
        understood = remember(segmenter, pairs, config.get("class_id"), more)
        without = [picture for picture, shown in corrected.items() if not shown]
        if without and segmenter.method.adapts:
            segmenter.reject(without)

        save(understood, out / SUPPORTS)
        for picture in corrected:  # whose overlays show what was proposed
            (out / overlays[picture]).unlink(missing_ok=True)
        todo = [picture for picture in pictures if picture not in corrected]
        bar = tqdm(todo, "label", unit="image", disable=len(todo) < 2)
        segmented = ((picture, segmenter.segment(picture)) for picture in bar)
        if kind in _WHOLE:
            with proposals.written(_WHOLE[kind]) as temporary:
                write, tolerance = (write_coco, 0) if kind == "coco" else (write_cvat, 1)
                write(temporary, all_labelled(), segmenter.names, tolerance)
        else:
            for picture, found in segmented:
                path = posix(os.path.relpath(picture.parent.resolve() / picture.name, out.resolve()))
                tolerance = max(found.labels.shape) / _SIDE
                content = content_of(labelled(picture, found), segmenter.names, path, tolerance)
                if not proposals.changed(files[picture]):  # by a person, while this run was under way
                    with proposals.written(files[picture]) as temporary:
                        write_json(temporary, content)
                    tell(picture, found)
        rows.sort(key=lambda row: -row.unsure)
        _save_table(out / TABLE, rows)
    _tell(out, rows, len(corrected) - len(without), len(without))
    return out


def _unknown(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"'{path}' {problem}, which tells proposals from what was corrected: choose another out, and give as support "
        "what was corrected"
    )


def _one_each(pictures: Sequence[Path]) -> dict[Path, str]:
    """The file of each picture, called as labelme calls it."""
    taken: dict[str, Path | str] = {MANIFEST: "the list of proposals"}
    for picture in pictures:
        name = f"{picture.stem}.json"
        if (other := taken.setdefault(name.lower(), picture)) is not picture:
            raise DataError(f"{name} would be the file of {other} and of {picture}: rename one, or choose format=coco")
    return {picture: f"{picture.stem}.json" for picture in pictures}


def _corrected(proposals: Proposals, files: Mapping[Path, str], things: Collection[str]) -> dict[Path, set[str]]:
    """The pictures whose proposals a person has changed, and what each shows."""
    corrected = {}
    for picture, name in files.items():
        if not proposals.changed(name):
            continue
        shown = {thing for thing, found in read_labelme(proposals.out / name).found.items() if found.mask.any()}
        if unknown := shown.difference(things):
            raise DataError(
                f"annotations {proposals.out / name}: the label '{min(unknown)}' is none of the things that are shown "
                f"({', '.join(dict.fromkeys(things))}): correct it, or give a support with that name"
            )
        corrected[picture] = shown
    return corrected


def _supports(
    thing: str, out: Path, files: Mapping[Path, str], corrected: Mapping[Path, Collection[str]]
) -> Iterator[tuple[Path, NDArray[Any]]]:
    """The pictures on which a person has marked a thing, and where; read as they are needed."""
    for picture, shown in corrected.items():
        if thing in shown:
            yield picture, read_labelme(out / files[picture]).found[thing].mask


def _rows(picture: str, found: Segmentation) -> Iterator[Row]:
    for name, mask in found.masks.items():
        yield Row(picture, name, found.unsure[name], found.score[name], found.present[name], float(np.mean(mask)))


def _save_table(path: Path, rows: Sequence[Row]) -> None:
    with (
        written_whole(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(name.replace("_", " ") for name in Row._fields)
        for picture, thing, unsure, score, present, area_share in rows:
            numbers = f"{unsure:.4f}", f"{score:.4f}", "yes" if present else "no", f"{area_share:.4f}"
            table.writerow([picture, thing, *numbers])


def _tell(out: Path, rows: Sequence[Row], learnt: int, without: int) -> None:
    pictures = [*dict.fromkeys(row.picture for row in rows)]
    line = f"{out}/: {counted(len(pictures), 'picture', 'pictures')} proposed"
    if learnt:
        line += f", {counted(learnt, 'corrected one', 'corrected ones')} taken as supports"
    if without:
        line += f", {without} as without the thing"
    print(f"{line}; look first at {', '.join(pictures[:_FIRST])}" if pictures else line)
