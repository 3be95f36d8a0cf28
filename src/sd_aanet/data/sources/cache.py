"""Where what was read once is kept: indexes of classes, annotations split by image."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SD_AANET_CACHE, else sd_aanet in the user's cache folder; not made here."""
    if own := os.environ.get("SD_AANET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd_aanet"
