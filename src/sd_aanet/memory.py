"""Remembered backbone features: a frozen backbone runs once per picture instead of once per episode.

What depends on the picture alone (stages 2 and 3, the query's high features) is kept by the picture's key; what
depends on the support's mask too (the masked high features) by key and class.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.files import written_whole
from sd_aanet.models.base import Features, FewShotNetwork

GIGABYTE = 1024**3
KINDS = ("mid", "high", "masked")
"""What features there are: mid ones, a query's high ones, a support's."""
LAYOUT = "channels last"
"""Of a file; names the folder, so that files of another layout are not read."""
Key = tuple[str, ...]
"""One of `KINDS`, the picture's key, and for "masked" the class."""


class FeatureMemory:
    """Features by key: in memory, the least recently used forgotten first, or in a folder of memory-mapped files.

    Args:
        network: whose backbone makes the features; frozen, batch norms too, unless it is in eval mode to stay there.
        budget: bytes to keep in memory at most; one batch is always served, whatever the budget.
        folder: where features are kept on disk, without a limit, for this run and others; None for memory.
        preparation: whatever else, beside keys and weights, the pixels depend on (size, resizing); names the files.
        kinds: what is kept, others being computed whenever asked for.

    Raises:
        ConfigError: the backbone trains, so its features change.
    """

    def __init__(
        self,
        network: FewShotNetwork,
        budget: float,
        folder: Path | None = None,
        preparation: str = "",
        kinds: Collection[str] = KINDS,
    ) -> None:
        if network.training and (network.backbone_trainable or network.backbone_norm != "frozen"):
            raise ConfigError(
                "features=remember needs a backbone that stands still: set backbone.trainable=false and "
                "backbone.norm=frozen, or features=compute"
            )
        self.network = network
        self.budget = budget
        self.folder = folder
        self.preparation = preparation
        self.kinds = kinds
        self.bytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._fingerprints: dict[torch.dtype, str] = {}

    def features(self, episode: Episode, foreground: Tensor) -> tuple[Features, Features]:
        """The features of a batch, as `FewShotNetwork.extract` gives them.

        Args:
            episode: a batch whose views all have keys.
            foreground: (B, K, S, S) in {0, 1}.

        Raises:
            ConfigError: a view was augmented at random and so has no key.
        """
        shots = [key for keys in episode.support_key for key in keys]
        if not all(shots) or not all(episode.query_key):
            raise ConfigError("features=remember needs pictures that recur: set augment=none or augment=flip")
        images = torch.cat([episode.query, episode.support.flatten(0, 1)])
        mid = self.mid([*episode.query_key, *shots], images)
        of_query, of_support = mid.split([len(episode.query_key), len(shots)])
        classes = episode.class_id.repeat_interleave(foreground.shape[1]).tolist()
        return (
            Features(of_query, self.high(episode.query_key, of_query)),
            Features(of_support, self.masked(shots, classes, of_support, foreground.flatten(0, 1))),
        )

    def mid(self, names: Sequence[str], images: Tensor) -> Tensor:
        """The mid features of N images (N, 3, S, S), see `FewShotNetwork.mid`; `names` are their keys."""
        rows = self._all([("mid", name) for name in names], lambda rows: self.network.mid(images[rows]).unbind())
        # Channels last in memory, as rows are kept and as convolutions like them.
        return torch.stack([row.permute(1, 2, 0) for row in rows]).permute(0, 3, 1, 2)

    def high(self, names: Sequence[str], mid: Tensor) -> tuple[Tensor, ...] | None:
        """The high features of N queries, see `FewShotNetwork.high`."""
        if self.network.prior_stage is None:
            return None
        return self._all([("high", name) for name in names], lambda rows: self._high(mid[rows]))

    def masked(
        self, names: Sequence[str], classes: Sequence[int], mid: Tensor, foreground: Tensor
    ) -> tuple[Tensor, ...] | None:
        """The high features of N supports of these classes, see `FewShotNetwork.high`."""
        if self.network.prior_stage is None:
            return None
        keys = [("masked", name, str(c)) for name, c in zip(names, classes, strict=True)]
        return self._all(keys, lambda rows: self._high(mid[rows], foreground[rows]))

    def _high(self, mid: Tensor, foreground: Tensor | None = None) -> tuple[Tensor, ...]:
        high = self.network.high(mid, foreground)
        assert high is not None  # asked for only where the prior is on
        return high

    def _all(self, keys: Sequence[Key], compute: Callable[[list[int]], Iterable[Tensor]]) -> tuple[Tensor, ...]:
        """One row a key: what is kept, and the rest computed in one batch, each key once."""
        rows = {key: row for key in dict.fromkeys(keys) if (row := self._recall(key)) is not None}
        missing = {key: index for index, key in enumerate(keys) if key not in rows}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            for key, row in zip(missing, compute(list(missing.values())), strict=True):
                rows[key] = row
                if key[0] in self.kinds:
                    self._keep(key, row)
        device = next(self.network.parameters()).device
        return tuple(rows[key].to(device) for key in keys)

    def _recall(self, key: Key) -> Tensor | None:
        if self.folder is None:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)
        path = self._path(key)
        if not path.is_file():
            return None
        bits = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))  # (h, w, C)
        return bits.view(_dtype(self.network)).permute(2, 0, 1)

    def _keep(self, key: Key, row: Tensor) -> None:
        if self.folder is not None:
            with written_whole(self._path(key)) as path:
                # NumPy knows no bfloat16: files hold its bits.
                last = row.cpu().permute(1, 2, 0).contiguous()  # (h, w, C)
                np.save(path, last.view(torch.int16 if row.element_size() == 2 else row.dtype).numpy())
            return
        row = row.clone()  # not a view that would keep its whole batch alive
        self._kept[key] = row
        self.bytes += row.nbytes
        while self.bytes > self.budget and self._kept:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def _path(self, key: Key) -> Path:
        """A file for a key, under a folder named by all that the features depend on beside the picture."""
        assert self.folder is not None
        dtype = _dtype(self.network)
        if dtype not in self._fingerprints:
            # The printed backbone tells strides and dilations, which no weight does.
            settings = (LAYOUT, dtype, self.preparation, self.network.prior_stage, self.network.backbone)
            digest = hashlib.sha256(" ".join(str(setting) for setting in settings).encode())
            for name, value in self.network.backbone.state_dict().items():
                digest.update(name.encode() + value.cpu().numpy().tobytes())
            self._fingerprints[dtype] = digest.hexdigest()[:16]
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
        return self.folder / self._fingerprints[dtype] / key[0] / f"{name}.npy"


def _dtype(network: FewShotNetwork) -> torch.dtype:
    """What the backbone's features are made in: autocast's dtype where that is on, else the weights'."""
    parameter = next(network.parameters())
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
