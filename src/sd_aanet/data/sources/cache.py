"""Where what was read once is kept: indexes of classes, annotations split by image."""

from __future__ import annotations

import os
from pathlib import Path

from sd_aanet.errors import ConfigError


def cache_folder() -> Path:
    """$SD_AANET_CACHE, else sd_aanet in the user's cache folder; not made here.

    Raises:
        ConfigError: the user has no home folder, as in some containers.
    """
    if own := os.environ.get("SD_AANET_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):
        raise ConfigError("no home folder is known, in which to keep what was read: set SD_AANET_CACHE to a folder")
    return Path(caches) / "sd_aanet"
