"""Which pictures a user means."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from sd_aanet.errors import DataError
from sd_aanet.images import SUFFIXES

OURS = ("_mask.png", "_overlay.png", "_attention.png")
"""Ends of names of what `sd-aanet predict` writes for a picture."""
SUPPORTS = "supports.png"
"""And once for all of them."""
_RESULT = re.compile(r"(_\d+)?_[a-z]+\.png$")
logger = logging.getLogger(__name__)


def pictures_of(entries: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders as the pictures in them, by name; our own results among these left out.

    Raises:
        DataError: a folder that cannot be read, or holds no picture.
    """
    queries: list[Path] = []
    for entry in map(Path, entries):
        if not entry.is_dir():
            queries.append(entry)
            continue
        try:
            found = sorted(path for path in entry.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        except OSError as error:
            raise DataError(f"query folder '{entry}' cannot be read ({error.strerror}): check its rights") from None
        pictures = [path for path in found if not path.name.endswith(OURS) and path.name != SUPPORTS]
        pictures = [path for path in pictures if not path.name.startswith(".")]
        stems = {path.stem for path in pictures}
        ours = [path for path in found if path not in pictures and not path.name.startswith(".")]
        alone = [path for path in ours if path.name != SUPPORTS and _RESULT.sub("", path.name) not in stems]
        if pictures and alone:
            logger.warning(
                "CAUTION: %d pictures of %s are left out, such as %s, being called as results are: give them by name",
                len(alone),
                entry,
                alone[0].name,
            )
        if not pictures:
            raise DataError(f"query folder '{entry}' holds no picture: expected files ending in {', '.join(SUFFIXES)}")
        queries += pictures
    return queries
