"""Backbones: ResNet at output stride 8 and VGG-16 with batch norm, in torchvision's layout of names.

A backbone maps images to the outputs of its stages 2 and 3, and stage 3 to stage 4. Stage 4 is a call of its own
because the support's stage 4 is computed from a *masked* stage 3 (see `prior.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sd_aanet.errors import ConfigError

Stride = Literal["3x3", "1x1"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18, ResNet-34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, stride_on: Stride = "3x3") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (ResNet-50, ResNet-101).

    Args:
        stride_on: which convolution carries the stride: "3x3" as in torchvision, "1x1" (the first) as in the
            original weights of the ResNet paper's authors.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, stride_on: Stride = "3x3") -> None:
        super().__init__()
        first, second = (1, stride) if stride_on == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(shortcut), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Backbone(nn.Module, ABC):
    """What the head needs to know of a backbone.

    Attributes:
        channels: of the outputs of stages 2, 3 and 4.
    """

    channels: tuple[int, int, int]

    @abstractmethod
    def stages23(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Stages 2 and 3 of images (N, 3, S, S), on one grid: (N, C2, h, w) and (N, C3, h, w)."""

    @abstractmethod
    def stage4(self, stage3: Tensor) -> Tensor:
        """Stage 4 of a stage 3 (masked or not): (N, C3, h, w) -> (N, C4, h, w)."""

    @abstractmethod
    def drop_stage4(self) -> None:
        """Forget stage 4, for networks that never ask for it."""


class ResNet(Backbone):
    """ResNet with dilated stages 3 and 4: h = (S - 1) / 8 + 1 for all of them (method: Backbone).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of stages 1 to 4.
        stride_on: see `Bottleneck`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        stride_on: Stride = "3x3",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64

        def stage(width: int, depth: int, stride: int, dilation: int) -> nn.Sequential:
            nonlocal inputs
            blocks = nn.Sequential()
            for index in range(depth):
                blocks.append(block(inputs, width, stride if index == 0 else 1, dilation, stride_on))
                inputs = width * block.expansion
            return blocks

        # Every block of stages 3 and 4 is dilated, also the first of each, which is where torchvision's own dilated
        # ResNets differ.
        self.layer1 = stage(64, depths[0], stride=1, dilation=1)
        self.layer2 = stage(128, depths[1], stride=2, dilation=1)
        self.layer3 = stage(256, depths[2], stride=1, dilation=2)
        self.layer4 = stage(512, depths[3], stride=1, dilation=4)
        self.channels = (128 * block.expansion, 256 * block.expansion, 512 * block.expansion)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages23(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.stages23`."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)  # (N, 64, (S+1)/2, (S+1)/2)
        x = F.max_pool2d(x, 3, 2, 1)  # (N, 64, (S-1)/4+1, (S-1)/4+1)
        stage2 = self.layer2(self.layer1(x))  # (N, C2, h, w)
        return stage2, self.layer3(stage2)  # (N, C3, h, w)

    def stage4(self, stage3: Tensor) -> Tensor:
        """See `Backbone.stage4`."""
        stage4: Tensor = self.layer4(stage3)
        return stage4

    def drop_stage4(self) -> None:
        """See `Backbone.drop_stage4`."""
        self.layer4 = nn.Sequential()


class VGG(Backbone):
    """VGG-16 with batch norm, without its last pool: stages 3 and 4 at stride 16, on whose grid stage 2 is resized.

    `features` holds torchvision's layers in torchvision's order, so its weights load unchanged.
    """

    STAGES = (0, 7, 14, 24, 34, 43)
    """Where each stage begins in `features`; stages 0 to 3 end with their pool."""
    channels = (256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for index, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            for _ in range(depth):
                self.features += nn.Sequential(
                    nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
                inputs = width
            if index < 4:
                self.features.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages23(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.stages23`."""
        stage2 = self.features[: self.STAGES[3]](image)  # (N, 256, S/8, S/8)
        stage3 = self.features[self.STAGES[3] : self.STAGES[4]](stage2)  # (N, 512, h, w)
        return F.interpolate(stage2, stage3.shape[-2:], mode="bilinear", align_corners=True), stage3

    def stage4(self, stage3: Tensor) -> Tensor:
        """See `Backbone.stage4`."""
        stage4: Tensor = self.features[self.STAGES[4] :](stage3)
        return stage4

    def drop_stage4(self) -> None:
        """See `Backbone.drop_stage4`."""
        del self.features[self.STAGES[4] :]


BACKBONES: dict[str, Callable[[Stride], Backbone]] = {
    "resnet18": lambda stride_on: ResNet(BasicBlock, (2, 2, 2, 2), stride_on),
    "resnet34": lambda stride_on: ResNet(BasicBlock, (3, 4, 6, 3), stride_on),
    "resnet50": lambda stride_on: ResNet(Bottleneck, (3, 4, 6, 3), stride_on),
    "resnet101": lambda stride_on: ResNet(Bottleneck, (3, 4, 23, 3), stride_on),
    "vgg16_bn": lambda stride_on: VGG(),
}


def build_backbone(name: str, stride_on: Stride = "3x3") -> Backbone:
    """A backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        stride_on: which convolution of a bottleneck carries the stride; without effect for the others.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone '{name}' is unknown: choose one of {', '.join(BACKBONES)}")
    if stride_on not in ("3x3", "1x1"):
        raise ConfigError(f"stride_on '{stride_on}' is unknown: choose 3x3 (torchvision's) or 1x1 (the original's)")
    return BACKBONES[name](stride_on)


def folded(backbone: Backbone) -> Backbone:
    """A copy for inference, exact to rounding: each batch norm is part of the convolution before it.

    Args:
        backbone: in eval mode, so that its batch norms are products and sums with constants.
    """
    copy = deepcopy(backbone)
    for module in list(copy.modules()):
        # Everywhere here a batch norm is registered right after the convolution whose output it takes.
        for (before, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, name, nn.Identity())
    return copy.requires_grad_(False)
