"""Support sets in one file: safetensors, which holds numbers and text and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import IGNORE
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.files import written_out
from sd_aanet.images import Array8

FORMAT = "sd_aanet supports 1"


@dataclass(frozen=True)
class Example:
    """A labelled picture, or a part of one, as the network sees it.

    Attributes:
        key: its own, by which what is computed of it is kept.
        called: the picture's name, or its place.
        image: uint8 (S, S, 3).
        mask: uint8 (S, S): 1 = the thing, 0 = anything else, 255 = ignore.
    """

    key: int
    called: str
    image: Array8
    mask: Array8


Supports = tuple[tuple[Example, ...], ...]
"""Of a thing, each of one part or more."""


def save_supports(
    path: Path, things: Mapping[str, Supports], rejected: Sequence[Example], preprocess: Preprocess
) -> None:
    """Write a support set whole, or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    tensors: dict[str, Array8] = {}

    def told(parts: Sequence[Example]) -> list[list[Any]]:
        for one in parts:
            tensors[f"{one.key}.image"], tensors[f"{one.key}.mask"] = one.image, one.mask
        return [[one.key, one.called] for one in parts]

    contents = {
        "size": preprocess.size,
        "resize": preprocess.resize,
        "things": [[name, [told(parts) for parts in supports]] for name, supports in things.items()],
        "rejected": told(rejected),
    }
    with written_out(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "contents": json.dumps(contents)})


def load_supports(
    path: Path, preprocess: Preprocess, keys: Iterator[int]
) -> tuple[dict[str, Supports], tuple[Example, ...]]:
    """What `save_supports` wrote: things and rejected pictures.

    Args:
        path: of the file.
        preprocess: as it was when they were saved.
        keys: new ones.

    Raises:
        DataError: the file is missing, or holds something else.
        ConfigError: it was made for another size, or another way of resizing.
    """
    wrong = DataError(f"supports '{path}' are no support set that was saved here: save it again")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = file.keys() if metadata.get("format") == FORMAT else ()
            tensors = {name: file.get_tensor(name) for name in names}
        contents = json.loads(metadata["contents"])
        made = (contents["size"], contents["resize"])
        things = [(name, supports) for name, supports in contents["things"]]
        rejected = contents["rejected"]
    except FileNotFoundError:
        raise DataError(f"supports '{path}' do not exist: check the path") from None
    except OSError as error:
        raise DataError(f"supports '{path}' cannot be read ({error.strerror}): check the path and its rights") from None
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        raise wrong from None
    if made != (preprocess.size, preprocess.resize):
        raise ConfigError(
            f"supports '{path}' were made for size={made[0]} and resize={made[1]}, and this segmenter has "
            f"size={preprocess.size} and resize={preprocess.resize}: use one that has theirs"
        )
    side = preprocess.size

    def read(parts: Any) -> tuple[Example, ...]:
        found = []
        for key, called in parts:
            image, mask = tensors[f"{key}.image"], tensors[f"{key}.mask"]
            fits = (
                image.dtype == mask.dtype == np.uint8 and image.shape == (side, side, 3) and mask.shape == (side, side)
            )
            if not fits or not isinstance(called, str) or not set(np.unique(mask).tolist()) <= {0, 1, IGNORE}:
                raise wrong
            found.append(Example(next(keys), called, image, mask))
        return tuple(found)

    try:
        read_things = {name: tuple(read(parts) for parts in supports) for name, supports in things}
        read_rejected = read(rejected)
    except (KeyError, ValueError, TypeError):
        raise wrong from None
    if not all(isinstance(name, str) and supports and all(supports) for name, supports in read_things.items()):
        raise wrong
    return read_things, read_rejected
