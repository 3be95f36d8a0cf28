"""What a method may ask of a backbone: named outputs, the sizes that it takes, and its picture statistics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sd_aanet.episode import IMAGENET_MEAN, IMAGENET_STD, RGB
from sd_aanet.errors import ConfigError
from sd_aanet.rules import Rule, one_of, or_null, text, texts

CPU_POSITIONS = 4096
"""Positions at stride 8 that go through a backbone together on a CPU: no activation then exceeds the 32 MB from which
on the C library takes every tensor's memory from the system anew, which zeroes it first."""


@dataclass(frozen=True)
class Output:
    """One of the maps that a backbone gives.

    Attributes:
        channels: C.
        stride: pixels a cell; an input of side S has ceil(S / stride) cells a side.
    """

    channels: int
    stride: int

    def cells(self, size: int) -> int:
        """Cells a side, for an input of this side."""
        return math.ceil(size / self.stride)


@dataclass(frozen=True)
class Grid:
    """The sides of input that a backbone takes: `step` * n + `offset`, from `least` on."""

    step: int
    offset: int
    least: int

    def nearest(self, size: float) -> int:
        """The nearest side that fits."""
        n = round((size - self.offset) / self.step)
        return max(self.least, self.step * n + self.offset)

    def check(self, size: int, name: str = "size") -> None:
        """Raise `ConfigError` unless the side fits; name the nearest that does."""
        if size < self.least or (size - self.offset) % self.step:
            form = f"{self.step}n" + (f" + {self.offset}" if self.offset else "")
            expected = f"at least {self.least}" if self.step == 1 else form
            raise ConfigError(f"{name}={size}, expected {expected}: the nearest good size is {self.nearest(size)}")


def stage_of(name: str) -> int:
    """The number of an output `stage3`, or of one within that stage, `stage3.0`."""
    return int(name.removeprefix("stage").partition(".")[0])


class Backbone(nn.Module, ABC):
    """Images in, named maps out.

    A subclass gives the attributes and `run`, `run_on` and `keep`; all else is here: a frozen backbone stays in eval
    mode and takes no gradient, inference folds batch norms, and a CPU gets few pictures at once.

    Attributes:
        label: what a table calls it.
        outputs: every map that can be asked for.
        mid: the outputs that heads take for their features unless told otherwise, the first one giving the grid.
        high: the output of the most meaning, which the prior mask compares.
        before_high: the output from which `resume` makes `high`; None where it cannot.
        grid: the sides of input that it takes.
        mean, std: of RGB in [0, 1], with which pictures are normalised.
        trainable: whether its weights train. Set by `freeze`.
        rules: of the settings of its configuration; a subclass adds those of its own.
    """

    label: str
    outputs: Mapping[str, Output]
    mid: tuple[str, ...]
    high: str
    before_high: str | None = None
    grid: Grid
    mean: ClassVar[RGB] = IMAGENET_MEAN
    std: ClassVar[RGB] = IMAGENET_STD
    rules: ClassVar[Mapping[str, Rule]] = {
        "weights": or_null(text("torchvision://resnet50")),
        "trainable": one_of("auto", True, False),
        "norm": text("frozen"),
        "mid": or_null(texts("[stage3,stage2]")),
        "high": or_null(text("stage4")),
    }

    def __init__(self) -> None:
        super().__init__()
        self.trainable = False
        self._frozen_norm = True
        self._whole: frozenset[str] = frozenset()
        self._folded: tuple[object, Backbone] | None = None  # within a tuple, it is no submodule with weights to save

    @abstractmethod
    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The outputs asked for, of images (N, 3, S, S): (N, C, h, w) each."""

    def run_on(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The outputs asked for, from what another output gave (masked, maybe), see `resume`."""
        raise ConfigError(
            f"{self.label} cannot go on from its {after}: choose one of its outputs {', '.join(self.outputs)}"
        )

    @abstractmethod
    def keep(self, wanted: Collection[str]) -> None:
        """Forget the layers that none of these outputs needs; they can be asked for no more."""

    def draw(self) -> Self:
        """Draw the convolutions' weights as those before ReLUs should be (He et al., 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return self

    def freeze(self, trainable: bool = False, norm: str = "frozen") -> Self:
        """Say what stands still.

        Args:
            trainable: train the weights.
            norm: "frozen" keeps batch norms on their running statistics (the field's way since), "batch" lets them run
                in train mode, as the published training did even with frozen weights.

        Raises:
            ConfigError: another `norm`.
        """
        if norm not in ("frozen", "batch"):
            raise ConfigError(f"backbone.norm={norm}, expected frozen or batch: choose one")
        self._whole |= frozenset(self.state_dict())  # a backbone that was just built comes here, before any `keep`
        self.trainable, self._frozen_norm = trainable, norm == "frozen"
        self.requires_grad_(trainable)
        return self.train(self.training)

    def choose(self, mid: Sequence[str] | None = None, high: str | None = None) -> Self:
        """Take other outputs for the heads than its own `mid` and `high`.

        Raises:
            ConfigError: it has no such output.
        """
        if mid is not None:
            self.mid = self.named(mid, "backbone.mid")
        if high is not None:
            (chosen,) = self.named([high], "backbone.high")
            self.before_high = self.before_high if chosen == self.high else None
            self.high = chosen
        return self

    def named(self, names: Sequence[str] | str, setting: str) -> tuple[str, ...]:
        """Names of outputs, all of which it has.

        Args:
            names: one or several.
            setting: that gives them, for the message.

        Raises:
            ConfigError: it has no such output.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.outputs:
                known = ", ".join(self.outputs)
                raise ConfigError(f"{setting}={name}, but {self.label} has no such output: choose one of {known}")
        return names

    @property
    def stands_still(self) -> bool:
        """Whether an image's outputs are the same at any time of a training."""
        return not self.trainable and self._frozen_norm

    def train(self, mode: bool = True) -> Self:
        """Switch modes; with frozen batch norms it stays in eval mode, so that its statistics stand still."""
        return super().train(mode and not self._frozen_norm)

    def forward(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Outputs of images.

        Args:
            images: (N, 3, S, S), normalised with `mean` and `std`, S on the `grid`.
            wanted: names of `outputs`.

        Returns:
            {name: (N, C, h, w)}.

        Raises:
            ConfigError: it has no such output, or no more since `keep`.
        """
        positions = images.shape[-1] * images.shape[-2] // 64
        return self._in_parts(images, positions, wanted, lambda backbone, part: backbone.run(part, wanted))

    def resume(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Outputs of the layers behind another output, such as stage 4 of a masked stage 3.

        Args:
            after: name of the output.
            x: (N, C, h, w), what it gave, changed or not.
            wanted: names of later outputs.

        Returns:
            {name: (N, C, h, w)}.
        """
        positions = x.shape[-1] * x.shape[-2]
        return self._in_parts(x, positions, wanted, lambda backbone, part: backbone.run_on(after, part, wanted))

    def no_gradient(self) -> AbstractContextManager[None]:
        """No gradient for what a frozen backbone makes; where it trains, through all of it."""
        return nullcontext() if self.trainable else torch.no_grad()

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of published weights under the names that they have here, whichever way they were published."""
        return dict(state)

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Names of weights that only another network of its kind has, a deeper one: beside its own, in a part of it.

        What `keep` forgot is its own, and a classifier is no part of it.
        """
        parts = {name.partition(".")[0] for name in self._whole}
        return [name for name in names if name not in self._whole and name.partition(".")[0] in parts]

    def fingerprint(self) -> object:
        """Equal as long as the weights stand still: whoever loads, moves or changes them changes this."""
        # Inference tensors cannot be changed.
        return tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in self.state_dict().values())

    def _in_parts(
        self,
        x: Tensor,
        positions: int,
        wanted: Collection[str],
        run: Callable[[Backbone, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        self.named(tuple(wanted), "output")
        with self.no_gradient():
            backbone, parts = self._fastest(), self._parts(x, positions)
            done = [run(backbone, part) for part in parts]
            return done[0] if len(done) == 1 else {name: torch.cat([d[name] for d in done]) for name in done[0]}

    def _fastest(self) -> Backbone:
        """This backbone, its batch norms folded where they stand still and no gradient is asked for."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self
        now = self.fingerprint()
        if self._folded is None or self._folded[0] != now:
            self._folded = now, folded(self)
        return self._folded[1]

    def _parts(self, x: Tensor, positions: int) -> Sequence[Tensor]:
        """N pictures in the parts that go through at once, where each picture is on its own; in a graph N is open."""
        if x.device.type != "cpu" or self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return (x,)
        parts: tuple[Tensor, ...] = x.split(max(1, CPU_POSITIONS // max(positions, 1)))
        return parts


def folded(backbone: Backbone) -> Backbone:
    """For inference, exact to rounding: each batch norm is part of the convolution before it.

    Args:
        backbone: in eval mode, so that its batch norms are products and sums with constants.

    Returns:
        A copy; the backbone itself where it has no batch norm.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        return backbone
    backbone._folded = None  # not to be copied
    copy = deepcopy(backbone)
    for module in list(copy.modules()):
        # Everywhere here a batch norm is registered right after the convolution whose output it takes.
        for (before, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, name, nn.Identity())
    return copy.requires_grad_(False)
