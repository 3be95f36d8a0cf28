"""Lists of episodes as files: written by us, or by anybody who names the images of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sd_aanet.arguments import word
from sd_aanet.data.episodes import EpisodeSpec
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.errors import UNREADABLE, ConfigError, DataError
from sd_aanet.files import written_out
from sd_aanet.settings import SETTINGS

FORMAT = "sd_aanet episodes 1"
KEYS = ("class", "query", "supports")
ABOUT = {"dataset": str} | {s.name: type(s.rule.example) for s in SETTINGS if "listed" in s.uses}
"""What a list may say of how it was drawn, and the kind of value."""


class EpisodeList:
    """Episodes read from a file.

    Attributes:
        way: N, of all of them.
        shot: K, of all of them.
        classes: the class ids that occur, sorted.
        about: what the file says of how it was drawn, by the names of `ABOUT`; None where it does not say.
        seed: 0; nothing is drawn.
    """

    seed = 0

    def __init__(self, specs: list[EpisodeSpec], about: dict[str, Any]) -> None:
        self._specs = specs
        self.about = about
        self.classes = tuple(sorted({c for spec in specs for c in spec.classes}))
        self.way = len(specs[0].classes)
        self.shot = len(specs[0].supports[0])

    def __len__(self) -> int:
        return len(self._specs)

    def draw(self, epoch: int, index: int) -> EpisodeSpec:
        """The episode at `index`; the same in each epoch."""
        return self._specs[index]


def write_list(path: Path, source: ImageSource, specs: Iterable[EpisodeSpec], about: Mapping[str, Any]) -> str:
    """Write a list: JSON, an episode a line, images by their keys, classes by name.

    Args:
        path: of the file.
        source: whose images the specs number.
        specs: the episodes.
        about: what the list was drawn from (data set, fold, shot, seed, ...), for its reader.

    Returns:
        The list's digest.

    Raises:
        ConfigError: the file cannot be written.
    """
    specs = list(specs)
    lines = ",\n  ".join(json.dumps(_entry(source, spec)) for spec in specs)
    head = json.dumps({"format": FORMAT, **about, "digest": digest(source, specs)}, indent=1)[:-2]
    with written_out(path) as temporary:
        temporary.write_text(f'{head},\n "episodes": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    return digest(source, specs)


def read_list(path: Path, source: ImageSource) -> EpisodeList:
    """Read a list for a data set.

    Expects a JSON object whose `episodes` are objects with `class` (a name, or a number: its id), `query` (an image's
    key) and `supports` (K keys, the same K for all); of several classes at once, `class` is a list of N of them and
    `supports` a list of N such lists.

    Raises:
        DataError: the file is missing or not that, or names what the data set does not have.
        ConfigError: it says that it is of another data set.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"episodes_file={path} does not exist: write one with sd-aanet episodes --out {word(path)}"
        ) from None
    except UNREADABLE as error:
        raise DataError(f"episodes_file={path} is not readable JSON ({' '.join(str(error).split())})") from None
    entries = content.get("episodes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"episodes_file={path} has no 'episodes', expected a list of objects with {', '.join(KEYS)}")
    about = _about(content, path)
    if about["dataset"] not in (None, source.name):
        raise ConfigError(
            f"episodes_file={path} is a list of the data set {about['dataset']}, not of {source.name}: choose that "
            "data set, or another list"
        )
    places = {source.key(i): i for i in range(len(source))}
    ids: dict[str | int, int] = {name: c for c, name in enumerate(source.classes, start=1)}
    ids |= {c: c for c in ids.values()}  # 3 is an id, "3" a name: classes may be called by numbers
    specs: list[EpisodeSpec] = []
    for number, entry in enumerate(entries):
        problem, spec = _spec(entry, places, ids, source)
        if spec is not None and specs and [len(s) for s in spec.supports] != [len(s) for s in specs[0].supports]:
            (ways, shots), (first_ways, first_shots) = ((len(s.classes), len(s.supports[0])) for s in (spec, specs[0]))
            one = f"{ways} classes of {shots}" if ways != first_ways else str(shots)
            other = f"{first_ways} classes of {first_shots}" if ways != first_ways else str(first_shots)
            problem, spec = f"has {one} supports and the first one {other}", None
        if spec is None:
            raise DataError(f"episodes_file={path}: episode {number} {problem}: correct it, or choose its data set")
        specs.append(spec)
    return EpisodeList(specs, about)


def digest(source: ImageSource, specs: Iterable[EpisodeSpec]) -> str:
    """SHA-256 of a list's classes and images, by name and in order: two lists are the same where it is."""
    lines = (json.dumps(_entry(source, spec), sort_keys=True) for spec in specs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _entry(source: ImageSource, spec: EpisodeSpec) -> dict[str, Any]:
    classes = [source.classes[c - 1] for c in spec.classes]
    supports = [[source.key(i) for i in images] for images in spec.supports]
    one = len(classes) == 1  # the usual: as lists of one class have always been written
    return {
        "class": classes[0] if one else classes,
        "query": source.key(spec.query),
        "supports": supports[0] if one else supports,
    }


def _about(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    about = {name: content.get(name) for name in ABOUT}
    for name, value in about.items():
        if value is not None and type(value) is not ABOUT[name]:
            kind = "a name" if ABOUT[name] is str else "a whole number"
            raise DataError(f"episodes_file={path} says {name}={value!r}, expected {kind}: correct it")
    return about


def _spec(
    entry: Any, places: Mapping[str, int], ids: Mapping[str | int, int], source: ImageSource
) -> tuple[str, EpisodeSpec | None]:
    """What is wrong with an entry, or the episode."""
    if not isinstance(entry, dict) or not set(KEYS) <= set(entry) or not isinstance(entry["supports"], list):
        return f"is no object with {', '.join(KEYS)}", None
    several = isinstance(entry["class"], list)
    names = entry["class"] if several else [entry["class"]]
    supports = entry["supports"] if several else [entry["supports"]]
    if len(names) != len(supports) or not names or not all(isinstance(images, list) for images in supports):
        return "names several classes, expected in supports a list of images for each", None
    classes: list[int] = []
    for named in names:
        class_id = ids.get(named) if type(named) in (str, int) else None  # True would be 1, and a list has no hash
        if class_id is None:
            return f"names the class '{named}', which {source.name} does not have", None
        classes.append(class_id)
    if len(set(classes)) < len(classes) or len({len(images) for images in supports}) > 1:
        return "names one class twice, or has more supports of one class than of another", None
    for images in supports:
        keys = [str(key) for key in (entry["query"], *images)]
        unknown = [key for key in keys if key not in places]
        if unknown:
            return f"names the image '{unknown[0]}', which the {source.split} images of {source.name} do not have", None
        if len(keys) < 2 or len(set(keys)) < len(keys):
            return "has no support, or one image twice", None
    placed = tuple(tuple(places[str(key)] for key in images) for images in supports)
    return "", EpisodeSpec(tuple(classes), places[str(entry["query"])], placed)
