"""ResNets: dilation instead of strides, where the stride stands, and what a block gives before its last ReLU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import rough
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.resnet import ResNet

RESNETS = [f"resnet{depth}" for depth in ResNet.DEPTHS]


def outline(name: str, **options: Any) -> Backbone:
    """Shapes without numbers, at once."""
    with torch.device("meta"):
        return build_backbone(name, **options)


@pytest.mark.parametrize("name", RESNETS)
def test_every_block_of_stages_3_and_4_is_dilated(name: str) -> None:
    backbone = outline(name)
    for stage, dilation in enumerate((1, 1, 2, 4), start=1):
        for block in getattr(backbone, f"layer{stage}"):
            wide = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            assert {m.dilation for m in wide} == {(dilation, dilation)}
            assert {m.padding for m in wide} == {(dilation, dilation)}


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_the_stride_can_move_to_the_first_convolution(name: str) -> None:
    """And then nothing else is different: stages 3 and 4 have no stride, stage 1 never had one."""
    usual, original = (
        {key: m.stride for key, m in outline(name, stride_on=on).named_modules() if isinstance(m, nn.Conv2d)}
        for on in ("3x3", "1x1")
    )
    assert {key: (usual[key], original[key]) for key in usual if usual[key] != original[key]} == {
        "layer2.0.conv1": ((1, 1), (2, 2)),
        "layer2.0.conv2": ((2, 2), (1, 1)),
    }
    assert {key for key, stride in original.items() if stride == (2, 2)} == {
        "conv1",
        "layer2.0.conv1",
        "layer2.0.downsample.0",
    }


@pytest.mark.parametrize("stride_on", ["3x3", "1x1"])
def test_a_bottleneck_with_a_stride(stride_on: str) -> None:
    torch.manual_seed(0)
    block = build_backbone("resnet50", stride_on=stride_on).layer2[0].double().eval()  # type: ignore[index]
    rough(block)
    x = torch.randn(2, 256, 9, 9, dtype=torch.float64)

    def norm(m: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, m.running_mean, m.running_var, m.weight, m.bias)

    first = x[:, :, ::2, ::2] if stride_on == "1x1" else x  # a 1x1 convolution with a stride skips positions
    y = F.relu(norm(block.bn1, F.conv2d(first, block.conv1.weight)))
    y = F.relu(norm(block.bn2, F.conv2d(y, block.conv2.weight, stride=1 if stride_on == "1x1" else 2, padding=1)))
    y = norm(block.bn3, F.conv2d(y, block.conv3.weight))
    shortcut = norm(block.downsample[1], F.conv2d(x[:, :, ::2, ::2], block.downsample[0].weight))
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-10, atol=1e-10)  # the stage's ReLU comes behind it


DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}
GRIDS = {8: (9, 5, 5, 5), 16: (9, 5, 3, 3), 32: (9, 5, 3, 2)}
"""Of stages 1 to 4 for pictures of 33 pixels."""


@pytest.mark.parametrize("output_stride", DILATIONS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_what_may_not_stride_is_dilated(name: str, output_stride: int) -> None:
    backbone = outline(name, output_stride=output_stride)
    stages = [f"stage{number}" for number in range(1, 5)]
    found = backbone(torch.empty(1, 3, 33, 33, device="meta"), stages)
    assert tuple(found[stage].shape[-1] for stage in stages) == GRIDS[output_stride]
    assert tuple(backbone.outputs[stage].cells(33) for stage in stages) == GRIDS[output_stride]
    for number, dilation in enumerate(DILATIONS[output_stride], start=1):
        layer = backbone.get_submodule(f"layer{number}")
        wide = [m for m in layer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in wide} == {(dilation, dilation)}
    assert [backbone.grid.nearest(64), backbone.grid.nearest(20)] == ([64, 32] if output_stride == 32 else [65, 17])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_taps_are_before_the_relu(name: str) -> None:
    """As HSNet takes them; and asking for them changes no other output."""
    torch.manual_seed(0)
    backbone = build_backbone(name, output_stride=16).double().eval()
    rough(backbone)
    taps = [name for name in backbone.outputs if "." in name]
    assert len(taps) == sum(ResNet.DEPTHS[int(name.removeprefix("resnet"))])
    image = torch.randn(2, 3, 33, 33).double()
    for gradient in (False, True):  # folded, and not
        with torch.set_grad_enabled(gradient):
            found, alone = backbone(image, [*taps, "stage3", "stage4"]), backbone(image, ["stage3", "stage4"])
        for stage in ("stage3", "stage4"):
            last = max(tap for tap in taps if tap.startswith(f"{stage}."))
            assert (found[last] < 0).any()
            assert torch.equal(F.relu(found[last]), found[stage])
            torch.testing.assert_close(found[stage], alone[stage], rtol=1e-12, atol=1e-12)
        first = backbone.get_submodule("layer3.0")
        torch.testing.assert_close(
            found["stage3.0"],
            first(F.relu(found[max(t for t in taps if t.startswith("stage2."))])),
            rtol=1e-9,
            atol=1e-9,
        )


def test_taps_behind_a_resumed_output() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18").double().eval()
    whole = backbone(torch.randn(1, 3, 33, 33).double(), ["stage3", "stage4.0", "stage4.1"])
    again = backbone.resume("stage3", whole["stage3"], ["stage4.0", "stage4.1"])
    for tap, value in again.items():
        torch.testing.assert_close(value, whole[tap], rtol=1e-12, atol=1e-12)
    assert again.keys() == {"stage4.0", "stage4.1"}
