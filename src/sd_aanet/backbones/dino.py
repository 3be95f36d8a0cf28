"""What the DINO backbones share: layers in a row, outputs by number, what may be done to them, names of weights."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone, Output
from sd_aanet.errors import ConfigError
from sd_aanet.rules import SWITCH, whole


class Dino(Backbone):
    """A row of layers, whose outputs are chosen by number, and what may be done to each output (method: Backbone).

    A subclass gives the class attributes, `start` and `as_map`.

    Attributes:
        renamed: patterns of names in published weights, and what they are here; "" drops what is of no use.

    Args:
        layers: each one takes what the one before gives.
        norm: of what the last one gives, which is the output `final`.
        outputs: of each layer, in order.
        mid: names of the outputs for `mid`.
        l2: each position of each output is of unit length.
        debias: how many directions, which tell places rather than things, are taken out of each output: the strongest
            of those in which the positions of a black picture, of unit length, differ (INSID3, positional debiasing).
    """

    renamed: ClassVar[Mapping[str, str]]
    rules: ClassVar = {**Backbone.rules, "l2": SWITCH, "debias": whole(0)}

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        outputs: Mapping[str, Output],
        mid: Sequence[str],
        l2: bool = False,
        debias: int = 0,
    ) -> None:
        super().__init__()
        self.layers, self.norm, self.l2, self.debias = layers, norm, l2, debias
        names = list(outputs)
        self.outputs = {**outputs, "final": outputs[names[-1]]}
        self._place = {name: place for place, name in enumerate(names)} | {"final": len(names) - 1}
        self.mid = tuple(mid)
        most = min(output.channels for output in self.outputs.values()) - 1
        if not 0 <= debias <= most:
            raise ConfigError(f"debias={debias}, expected 0 to {most}, the channels less one: choose fewer directions")
        self._directions: tuple[object, dict[tuple[str, torch.Size], Tensor]] = None, {}
        self.freeze()

    @abstractmethod
    def start(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What the first layer takes, and what every layer takes beside that."""

    @abstractmethod
    def as_map(self, name: str, x: Tensor, size: torch.Size) -> Tensor:
        """An output (N, C, h, w) from what its layer gave, for images of `size` (H, W)."""

    def normed(self, name: str) -> bool:
        """Whether an output has the final norm."""
        return name == "final"

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return {name: self._finish(name, x, images) for name, x in self._run(images, wanted).items()}

    def keep(self, wanted: Collection[str]) -> None:
        last = max((self._place[name] for name in wanted), default=-1)
        del self.layers[last + 1 :]
        names = [name for name in self.outputs if self._place[name] <= last]
        if not any(map(self.normed, wanted)):  # else a norm that nothing trains would stop several devices
            self.norm = nn.Identity()
            names = [name for name in names if not self.normed(name)]
        self.outputs = {name: self.outputs[name] for name in names}

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in self.renamed.items():
                name = re.sub(pattern, replacement, name)
            if ".qkv." in name:  # torch.hub's layers make queries, keys and values at once
                own |= {name.replace("qkv", f"{part}_proj"): x for part, x in zip("qkv", value.chunk(3), strict=True)}
            elif name:
                own[name] = value
        return own

    def _run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x, beside = self.start(images)
        return self._go_on(0, x, wanted, images.shape[-2:], beside)

    def _go_on(
        self, first: int, x: Tensor, wanted: Collection[str], size: torch.Size, beside: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place in range(first, 1 + max((self._place[name] for name in wanted), default=-1)):
            x = self.layers[place](x, **beside)
            found |= {name: self.as_map(name, x, size) for name in wanted if self._place[name] == place}
        return found

    def _finish(self, name: str, x: Tensor, images: Tensor) -> Tensor:
        if self.debias:
            with torch.autocast(x.device.type, enabled=False):
                directions = self._of_places(name, images)  # (C, D)
                along = torch.einsum("cd,nchw->ndhw", directions, x.float())
                x = x - torch.einsum("cd,ndhw->nchw", directions, along)
        return F.normalize(x, dim=1) if self.l2 else x

    @torch.no_grad()
    def _of_places(self, name: str, images: Tensor) -> Tensor:
        """The directions to take out of an output, (C, D), for images of this size; kept until the weights change."""
        if self._directions[0] != (weights := self.fingerprint()):
            self._directions = weights, {}
        known, key = self._directions[1], (name, images.shape[-2:])
        if key not in known:
            mean, std = images.new_tensor([self.mean, self.std])[..., None, None]  # (3, 1, 1) each
            black = (-mean / std).expand(1, 3, *images.shape[-2:])
            x = F.normalize(self._run(black, [name])[name][0].float(), dim=0).flatten(1)  # (C, h w)
            basis = torch.linalg.svd(x - x.mean(1, keepdim=True), full_matrices=False).U
            known[key] = basis[:, : min(self.debias, x.shape[1] - 1)]  # centred, h w positions span one direction less
        return known[key]
