"""What the benchmarks' folders are made of: links to what is there, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sd_aanet.data.sources.listing import files_below, plain
from sd_aanet.errors import DataError
from sd_aanet.files import written_whole
from sd_aanet.images import Array8


def link(target: Path, path: Path) -> None:
    """Make `path` a link to a file or a folder. A link elsewhere is replaced, files and folders never are.

    Raises:
        OSError: something else is there, or the system has no links.
    """
    target = target.resolve()
    if path.resolve() != target:
        if path.is_symlink():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target, target_is_directory=target.is_dir())


def check_complete(what: str, names: Sequence[str], folder: Path, fix: str) -> None:
    """Raise DataError, with `fix` as the way out, where a folder lacks some of the files, named as in `sub/x.jpg`."""
    present = files_below(folder)  # which is faster than to ask for each
    if lacking := [name for name in names if plain(name) not in present]:
        raise DataError(
            f"{what}: {len(lacking):,} of {len(names):,} are not in {folder}, the first is {lacking[0]}: {fix}"
        )


def write_mask(label: Array8, path: Path) -> None:
    """Write class indices (H, W) as a PNG with VOC's colours."""
    picture = Image.fromarray(label)
    picture.putpalette(voc_palette())
    with written_whole(path) as temporary:
        picture.save(temporary)


def voc_palette() -> bytes:
    """VOC's colours of the indices 0 to 255, from whose bits red, green and blue take theirs in turn."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colours[:, bit % 3] |= (index >> bit & 1) << 7 - bit // 3
    return colours.astype(np.uint8).tobytes()
