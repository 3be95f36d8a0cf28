"""Kept backbone features: a frozen backbone runs once per picture instead of once per episode.

All is kept by names of exact pixels, so that no other picture and no other mask is ever answered for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_aanet.backbones.weights import safe_save
from sd_aanet.episode import Rows
from sd_aanet.errors import ConfigError
from sd_aanet.files import remove_partial
from sd_aanet.models.base import Method

GIGABYTE = 1024**3
KINDS = ("image", "masked")
"""What features there are: of a picture, and of one under a mask (or, for queries, under none)."""
Key = tuple[str, str]
"""One of `KINDS`, and the picture's name, or that of picture and mask."""


class FeatureCache:
    """Features by key: in memory, the least recently used dropped first, or in a folder of memory-mapped files.

    Args:
        method: whose backbone makes the features; frozen, batch norms too, unless it is in eval mode to stay there.
        budget: bytes to keep in memory at most; one batch is always served, whatever the budget.
        folder: where features are kept on disk, without a limit, for this run and others; None for memory.
        kinds: what is kept, others being computed whenever asked for.

    Raises:
        ConfigError: the backbone trains, so its features change.
    """

    def __init__(
        self,
        method: Method,
        budget: float,
        folder: Path | None = None,
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
        if folder is not None:
            remove_partial(folder, seconds=600)
        self.kinds = kinds
        self.bytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Key, Rows] = OrderedDict()
        self._fingerprints: dict[torch.dtype, str] = {}
        self._types: dict[str, type[Rows]] = {}

    def image(self, names: Sequence[str], images: Tensor) -> Rows:
        """`FewShotMethod.image_features` of N images (N, 3, S, S), each with its name."""
        keys = [("image", name) for name in names]
        return self._all(keys, lambda rows: self.method.image_features(images[rows]))

    def masked(self, names: Sequence[str], features: Rows, mask: Tensor | None) -> Rows:
        """`FewShotMethod.masked_features` of N images, where the method has such, by names of image and mask."""
        keys = [("masked", name) for name in names]

        def compute(rows: list[int]) -> Rows:
            made: Rows | None = self.method.masked_features(features.select(rows), None if mask is None else mask[rows])
            assert made is not None  # asked only where the method has such
            return made

        return self._all(keys, compute)

    def _all(self, keys: Sequence[Key], compute: Callable[[list[int]], Rows]) -> Rows:
        """A row a key: what is kept, and the rest computed, each key once.

        On a CPU each picture on its own: products round otherwise in other company, and what is kept would depend on
        what else was missing, so that a training that goes on after a break would be another one.
        """
        rows = {key: row for key in dict.fromkeys(keys) if (row := self._recall(key)) is not None}
        missing = {key: index for index, key in enumerate(keys) if key not in rows}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            places = list(missing.values())
            if len(missing) == len(keys) and keys[0][0] not in self.kinds:
                return compute(places)
            alone = next(self.method.parameters()).device.type == "cpu"
            groups = [[place] for place in places] if alone else [places]
            for key, row in zip(missing, (row for group in groups for row in compute(group).unbind()), strict=True):
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
            name, checksum, values = torch.load(path, mmap=True, weights_only=True)
            row = made(**values)
            return row if (name, checksum) == (key[1], _checksum(row)) else None
        except Exception:  # a damaged file is made anew; torch raises nearly anything for one
            return None

    def _keep(self, key: Key, row: Rows) -> None:
        if self.folder is not None:
            row = row.to("cpu")
            try:
                safe_save((key[1], _checksum(row), vars(row)), self._path(key), synced=False)
            except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
                raise ConfigError(
                    f"cache_dir='{self.folder}' can be no folder ({error.strerror}): choose another one"
                ) from None
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
            # TF32 rounds what a GPU computes in float32. The printed backbone tells strides and dilations, which no
            # weight does; its plain settings what becomes of outputs, and the method's which of them it takes.
            backbone = self.method.backbone
            settings = (
                dtype,
                torch.backends.cudnn.allow_tf32,
                *map(_plain_settings, (self.method, backbone)),
                backbone,
            )
            digest = hashlib.sha256(" ".join(str(setting) for setting in settings).encode())
            for name, value in backbone.state_dict().items():
                raw = value.cpu().flatten().view(torch.uint8)  # flat, for a counter has no dimension
                digest.update(name.encode() + raw.numpy().tobytes())
            self._fingerprints[dtype] = digest.hexdigest()[:16]
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
        return self.folder / self._fingerprints[dtype] / key[0] / f"{name}.pt"


def _checksum(row: Rows) -> int:
    """Of shapes, and of the bytes as they lie in memory; a sum, which takes no time beside that of reading them."""
    total = zlib.crc32(repr([(tensor.dtype, tensor.shape, tensor.stride()) for tensor in row.tensors()]).encode())
    for tensor in row.tensors():
        raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        whole = raw[: len(raw) // 8 * 8]
        total += int(whole.view(torch.int64).sum()) + int(raw[len(whole) :].sum())
    return total


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
