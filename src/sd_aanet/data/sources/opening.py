"""Which data sets there are, and how one is opened from its settings: by a table, whatever a file names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sd_aanet.data.sources.base import ImageSource, Split
from sd_aanet.data.sources.coco20i import Coco20i
from sd_aanet.data.sources.folder import Folder
from sd_aanet.data.sources.fss1000 import Fss1000
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.sources.shapes import Shapes
from sd_aanet.errors import ConfigError
from sd_aanet.rules import check

SOURCES: Mapping[str, type[ImageSource]] = {
    f"{kind.__module__}.{kind.__name__}": kind for kind in (Shapes, Pascal5i, Coco20i, Fss1000, Folder)
}
"""`_target_` of conf/dataset/*.yaml -> the class. A `_target_` stands in run folders, which may be a stranger's: what
is not in here is not imported, let alone called."""


def open_source(config: Mapping[str, Any], split: Split) -> ImageSource:
    """The images of a split.

    Args:
        config: `_target_`, a key of `SOURCES`, and the arguments of its class but `split`.
        split: which one.

    Raises:
        ConfigError: another `_target_`, or an argument that the class does not have or that breaks its rule.
        DataError: what the data set itself raises.
    """
    target = config.get("_target_")
    if not isinstance(target, str) or target not in SOURCES:
        raise ConfigError(
            f"dataset _target_={target!r}, expected a class under sd_aanet.data.sources: choose dataset=shapes, "
            "pascal5i, coco20i, fss1000 or folder"
        )
    kind: Any = SOURCES[target]
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    takes = inspect.signature(kind).parameters
    check(arguments, kind.rules, "dataset.source.", takes.keys() - {"split"})
    for name in takes.keys() - arguments.keys() - {"split"}:
        if takes[name].default is inspect.Parameter.empty:
            raise ConfigError(f"dataset.source.{name} is not set: give dataset.source.{name}=...")
    source: ImageSource = kind(split=split, **arguments)
    return source
