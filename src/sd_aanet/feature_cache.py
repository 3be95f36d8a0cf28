"""Kept backbone features: a frozen backbone runs once per picture instead of once per episode.

What depends on the picture alone is kept by the picture's key; what depends on an example's mask by key and class.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_aanet.episode import Rows
from sd_aanet.errors import ConfigError
from sd_aanet.files import written_whole
from sd_aanet.models.base import Method

GIGABYTE = 1024**3
KINDS = ("image", "masked")
"""What features there are: of a picture, and of one under a mask (or, for queries, under none)."""
Key = tuple[str, ...]
"""One of `KINDS`, the picture's key, and for "masked" the class; "" for queries."""


class FeatureCache:
    """Features by key: in memory, the least recently used dropped first, or in a folder of memory-mapped files.

    Args:
        method: whose backbone makes the features; frozen, batch norms too, unless it is in eval mode to stay there.
        budget: bytes to keep in memory at most; one batch is always served, whatever the budget.
        folder: where features are kept on disk, without a limit, for this run and others; None for memory.
        preparation: whatever else, beside keys and weights, the pixels depend on (size, resizing); names the files.
        kinds: what is kept, others being computed whenever asked for.

    Raises:
        ConfigError: the backbone trains, so its features change.
    """

    def __init__(
        self,
        method: Method,
        budget: float,
        folder: Path | None = None,
        preparation: str = "",
        kinds: Collection[str] = KINDS,
    ) -> None:
        if method.training and not method.backbone.stands_still:
            raise ConfigError(
                "features=cache needs a backbone that stands still: set backbone.trainable=false and "
                "backbone.norm=frozen, or features=compute"
            )
        self.method = method
        self.budget = budget
        self.folder = folder
        self.preparation = preparation
        self.kinds = kinds
        self.bytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Key, Rows] = OrderedDict()
        self._fingerprints: dict[torch.dtype, str] = {}
        self._types: dict[str, type[Rows]] = {}

    def image(self, names: Sequence[str], images: Tensor) -> Rows:
        """`FewShotMethod.image_features` of N images (N, 3, S, S); `names` are their keys."""
        keys = [("image", name) for name in names]
        return self._all(keys, lambda rows: self.method.image_features(images[rows]))

    def masked(self, names: Sequence[str], classes: Sequence[int] | None, features: Rows, mask: Tensor | None) -> Rows:
        """`FewShotMethod.masked_features` of N images, where the method has such; `classes` of examples only."""
        labels = [""] * len(names) if classes is None else list(map(str, classes))
        keys = [("masked", *key) for key in zip(names, labels, strict=True)]

        def compute(rows: list[int]) -> Rows:
            made: Rows | None = self.method.masked_features(features.select(rows), None if mask is None else mask[rows])
            assert made is not None  # asked only where the method has such
            return made

        return self._all(keys, compute)

    def _all(self, keys: Sequence[Key], compute: Callable[[list[int]], Rows]) -> Rows:
        """A row a key: what is kept, and the rest computed in one batch, each key once."""
        rows = {key: row for key in dict.fromkeys(keys) if (row := self._recall(key)) is not None}
        missing = {key: index for index, key in enumerate(keys) if key not in rows}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            made = compute(list(missing.values()))
            if len(missing) == len(keys) and keys[0][0] not in self.kinds:
                return made
            for key, row in zip(missing, made.unbind(), strict=True):
                rows[key] = row
                if key[0] in self.kinds:
                    self._keep(key, row)
        device = next(self.method.parameters()).device
        first = next(iter(rows.values()))
        return type(first).cat([rows[key].to(device) for key in keys])

    def _recall(self, key: Key) -> Rows | None:
        if self.folder is None:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)
        path = self._path(key)
        if not path.is_file():
            return None
        made = self._type(key[0])
        try:
            return made(**torch.load(path, mmap=True, weights_only=True))
        except Exception:  # a damaged file is made anew; torch raises nearly anything for one
            return None

    def _keep(self, key: Key, row: Rows) -> None:
        if self.folder is not None:
            with written_whole(self._path(key)) as path:
                torch.save(vars(row), path)
            return
        self._kept[key] = row
        self.bytes += row.nbytes
        while self.bytes > self.budget and self._kept:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def _type(self, kind: str) -> type[Rows]:
        """The method's own type of features, which no file tells: that of the smallest picture's."""
        if kind not in self._types:
            weight = next(self.method.parameters())
            side = self.method.backbone.grid.least
            features = self.method.image_features(weight.new_zeros(1, 3, side, side))
            masked: Any = self.method.masked_features(features, None)
            self._types |= {"image": type(features), "masked": type(masked)}
        return self._types[kind]

    def _path(self, key: Key) -> Path:
        """A file for a key, under a folder named by all that the features depend on beside the picture."""
        assert self.folder is not None
        dtype = _dtype(self.method)
        if dtype not in self._fingerprints:
            # The printed backbone tells strides and dilations, which no weight does; its plain settings what becomes of
            # outputs, and the method's which of them it takes.
            backbone = self.method.backbone
            settings = (dtype, self.preparation, *map(_plain_settings, (self.method, backbone)), backbone)
            digest = hashlib.sha256(" ".join(str(setting) for setting in settings).encode())
            for name, value in backbone.state_dict().items():
                raw = value.cpu().flatten().view(torch.uint8)  # flat, for a counter has no dimension
                digest.update(name.encode() + raw.numpy().tobytes())
            self._fingerprints[dtype] = digest.hexdigest()[:16]
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
        return self.folder / self._fingerprints[dtype] / key[0] / f"{name}.pt"


def _plain_settings(module: nn.Module) -> dict[str, Any]:
    """A module's class and those of its attributes that are plain values."""
    plain = (str, int, float, bool, tuple, list, type(None))
    own = {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_") and k != "training"}
    return {"class": type(module).__name__, **own}


def _dtype(method: Method) -> torch.dtype:
    """What the backbone's features are made in: autocast's dtype where that is on, else the weights'."""
    parameter = next(method.parameters())
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
