"""EfficientNet-Lite, in the layout of names of its published PyTorch weights."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone, Grid, Output, stage_of
from sd_aanet.episode import RGB
from sd_aanet.errors import ConfigError

EPS = 1e-3
"""Of the batch norms."""
WIDE = 4
"""Zeros beside a row that the CPU's depthwise kernels add by themselves. With more of them, as at dilation 4, a slower
kernel takes the convolution, 6 times as long in float32 and 12 times in bf16 (torch 2.13, AVX-512)."""


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after a row, as TensorFlow's "same": ceil(size / stride) cells, an odd zero behind the row."""
    cells = -(-size // stride)
    total = max(0, (cells - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded by `same_padding`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        x, inside = self.padded(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, inside, self.dilation, self.groups)

    def padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The input with as much padding around it as the convolution itself cannot do, and what is left for it."""
        rows, columns = (
            same_padding(size, kernel, stride, dilation)
            for size, kernel, stride, dilation in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        # As many zeros on both sides, which is so for a stride of 1 and for odd sizes, cost no copy.
        inside = [rows[0] if rows[0] == rows[1] else 0, columns[0] if columns[0] == columns[1] <= WIDE else 0]
        outside = [columns[0] - inside[1], columns[1] - inside[1], rows[0] - inside[0], rows[1] - inside[0]]
        if any(outside):
            x = F.pad(x, outside)
        return x, inside


def clipped(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU6 behind a batch norm behind a convolution, the same numbers in one pass through memory where that goes.

    On a CPU these layers wait for memory: to clip afterwards takes a fifth of the network's time in float32, and more
    in bf16. oneDNN clips what it has just computed, by the operator that PyTorch's own compiler calls.
    """
    if not (isinstance(norm, nn.Identity) and _fuses(x)):
        return F.relu6(norm(conv(x)), inplace=True)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    x, inside = conv.padded(x) if isinstance(conv, SameConv2d) else (x, [0, 0])
    bias = None if conv.bias is None else conv.bias.to(dtype)
    where = (inside, [*conv.stride], [*conv.dilation], conv.groups)
    made: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x.to(dtype), conv.weight.to(dtype), bias, *where, "hardtanh", [0.0, 6.0], ""
    )
    return made


def _fuses(x: Tensor) -> bool:
    """Whether oneDNN's fused convolution is here, for this input, and nobody records what is done."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


class Block(nn.Module):
    """1x1 convolution to more channels (unless they stay as many), depthwise convolution, linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.expands = expansion > 1
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, EPS)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, dilation, groups=width)
        self._bn1 = nn.BatchNorm2d(width, EPS)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride), rounded up."""
        y = clipped(self._expand_conv, self._bn0, x) if self.expands else x
        y = clipped(self._depthwise_conv, self._bn1, y)
        out: Tensor = self._bn2(self._project_conv(y))
        return out.add_(x) if self.adds else out


class EfficientNetLite(Backbone):
    """EfficientNet-Lite0, 1 or 2. At output stride 8, stages 3 to 7 have h = (S - 1) / 8 + 1.

    Outputs are `stage1` to `stage7`, linear, each divided by its constant of `SCALES`. Where a stride is turned into
    dilation, the block that had it looks as far as before and all behind it twice as far: each map is the one at output
    stride 32 with further cells in between, which prototypes on frozen features gain from; a ResNet here dilates that
    block, too.

    Args:
        depth: 0, 1 or 2.
        output_stride: 8, 16 or 32, see the class.

    Raises:
        ConfigError: another output stride.
    """

    LAYOUT: ClassVar = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))
    """Of stages 1 to 7: expansion, kernel, stride of the first block."""
    CHANNELS: ClassVar = {
        0: (16, 24, 40, 80, 112, 192, 320),
        1: (16, 24, 40, 80, 112, 192, 320),
        2: (16, 24, 48, 88, 120, 208, 352),
    }
    BLOCKS: ClassVar = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
    SCALES: ClassVar = {
        0: (5.4, 8.0, 6.9, 6.1, 5.5, 5.6, 2.5),
        1: (5.1, 9.3, 8.1, 6.5, 5.9, 6.2, 2.5),
        2: (5.1, 9.1, 7.8, 6.3, 5.8, 6.2, 2.3),
    }
    """Standard deviations of the stages' outputs with the published weights: over all channels and cells of 100
    photographs of PASCAL VOC, squashed to 473 px, at output stride 8. A head's first steps are finite behind a standard
    deviation near 1, not behind these."""
    mid = ("stage5", "stage6")
    high = "stage7"
    before_high = "stage6"
    mean: ClassVar[RGB] = (127 / 255,) * 3
    std: ClassVar[RGB] = (128 / 255,) * 3

    def __init__(self, depth: int, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride}, expected 8, 16 or 32: choose one")
        self.label = f"EfficientNet-Lite{depth}"
        self.depth, self.output_stride = depth, output_stride
        self.grid = Grid(1, 0, 32) if output_stride == 32 else Grid(8, 1, 17)  # as of a ResNet
        self.scales = self.SCALES[depth]
        self.ends = (0, *accumulate(self.BLOCKS[depth]))
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, EPS)
        self._blocks = nn.Sequential()
        inputs, total, dilation, outputs = 32, 2, 1, {}
        stages = zip(self.CHANNELS[depth], self.BLOCKS[depth], self.LAYOUT, strict=True)
        for stage, (width, count, (expansion, kernel, stride)) in enumerate(stages, start=1):
            turned = total * stride > output_stride
            total *= 1 if turned else stride
            for index in range(count):
                strides = stride if index == 0 and not turned else 1
                self._blocks.append(Block(inputs, width, expansion, kernel, strides, dilation))
                inputs = width
                if index == 0 and turned:
                    dilation *= stride
            outputs[f"stage{stage}"] = Output(width, total)
        self.outputs = outputs
        self.draw().freeze()

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x = clipped(self._conv_stem, self._bn0, images)  # (N, 32, S/2, S/2)
        return self._stages(1, x, wanted)

    def run_on(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        stage = stage_of(after)
        return self._stages(stage + 1, x * self.scales[stage - 1], wanted)

    def keep(self, wanted: Collection[str]) -> None:
        last = max(map(stage_of, wanted), default=0)
        del self._blocks[self.ends[last] :]
        self.outputs = {name: output for name, output in self.outputs.items() if stage_of(name) <= last}

    def _stages(self, first: int, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for stage in range(first, 1 + max(map(stage_of, wanted), default=0)):
            x = self._blocks[self.ends[stage - 1] : self.ends[stage]](x)  # (N, C, h, w)
            if f"stage{stage}" in wanted:
                found[f"stage{stage}"] = x / self.scales[stage - 1]
        return found
