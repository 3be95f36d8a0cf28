"""ResNet, in torchvision's layout of names."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone, Grid, Output, stage_of
from sd_aanet.errors import ConfigError
from sd_aanet.rules import text

Stride = Literal["3x3", "1x1"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18, ResNet-34), without the ReLU behind them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, stride_on: Stride = "3x3") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride), before the block's last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out: Tensor = self.bn2(self.conv2(x)).add_(shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (ResNet-50, ResNet-101), without the ReLU behind them.

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
        """(N, inputs, H, W) -> (N, 4 width, H / stride, W / stride), before the block's last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        out: Tensor = self.bn3(self.conv3(x)).add_(shortcut)
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(Backbone):
    """ResNet (method: Backbone). At output stride 8, stages 3 and 4 are dilated and have h = (S - 1) / 8 + 1.

    Outputs are `stage1` to `stage4`, and `stage2.0` and the like: what a block gives *before* its last ReLU.

    Args:
        depth: 18, 34, 50 or 101.
        stride_on: see `Bottleneck`; without effect for the shallow ones.
        output_stride: of stage 4: 8 (as in the paper), 16, or 32 (not dilated, as in classification).
    """

    DEPTHS: ClassVar = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    rules: ClassVar = {**Backbone.rules, "stride_on": text("auto")}
    mid = ("stage3", "stage2")
    high = "stage4"
    before_high = "stage3"

    def __init__(self, depth: int, stride_on: Stride = "3x3", output_stride: int = 8) -> None:
        super().__init__()
        if stride_on not in ("3x3", "1x1"):
            raise ConfigError(f"stride_on '{stride_on}' is unknown: choose 3x3 (torchvision's) or 1x1 (the original's)")
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride}, expected 8, 16 or 32: choose one")
        self.label = f"ResNet-{depth}"
        # Aligned corners want one cell more than strides; without dilation nothing is aligned with anything.
        self.grid = Grid(1, 0, 32) if output_stride == 32 else Grid(8, 1, 17)
        block = Bottleneck if depth >= 50 else BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, total, dilation, outputs = 64, 4, 1, {}
        for stage, (count, stride) in enumerate(zip(self.DEPTHS[depth], (1, 2, 2, 2), strict=True), start=1):
            # What a stage may not stride it dilates, in every block, also the first, which is where torchvision's own
            # dilated ResNets differ.
            if total * stride > output_stride:
                stride, dilation = 1, dilation * stride
            total *= stride
            width, blocks = 32 * 2**stage, nn.Sequential()
            for index in range(count):
                blocks.append(block(inputs, width, stride if index == 0 else 1, dilation, stride_on))
                inputs = width * block.expansion
                outputs[f"stage{stage}.{index}"] = Output(inputs, total)
            outputs[f"stage{stage}"] = Output(inputs, total)
            setattr(self, f"layer{stage}", blocks)
        self.outputs = outputs
        self.draw().freeze()

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # (N, 64, (S+1)/2, (S+1)/2)
        x = F.max_pool2d(x, 3, 2, 1)  # (N, 64, (S-1)/4+1, (S-1)/4+1)
        return self._stages(1, x, wanted)

    def run_on(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return self._stages(int(after.removeprefix("stage")) + 1, x, wanted)

    def keep(self, wanted: Collection[str]) -> None:
        last = max(map(stage_of, wanted), default=0)
        for stage in range(last + 1, 5):
            setattr(self, f"layer{stage}", nn.Sequential())
        self.outputs = {name: output for name, output in self.outputs.items() if stage_of(name) <= last}

    def _stages(self, first: int, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for stage in range(first, 1 + max(map(stage_of, wanted), default=0)):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                tap = f"stage{stage}.{index}"
                if tap in wanted:
                    found[tap] = x
                x = F.relu(x, inplace=tap not in wanted)
            if f"stage{stage}" in wanted:
                found[f"stage{stage}"] = x
        return found
