"""Backbones: torchvision's layout of names, and grids at output stride 8 (ResNet) or 16 (VGG)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import rough
from sd_aanet.errors import ConfigError
from sd_aanet.models.backbone import BACKBONES, ResNet, build_backbone, folded

# Of torchvision's state dicts, without the classifier: tensors, parameters.
TORCHVISION = {
    "resnet18": (120, 11_176_512),
    "resnet34": (216, 21_284_672),
    "resnet50": (318, 23_508_032),
    "resnet101": (624, 42_500_160),
    "vgg16_bn": (91, 14_723_136),
}
SHAPES = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "layer4.1.bn2.running_var": (512,),
    },
    "resnet34": {"layer3.5.conv2.weight": (256, 256, 3, 3), "layer4.2.bn1.bias": (512,)},
    "resnet50": {
        "bn1.num_batches_tracked": (),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv1.weight": (128, 256, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.0.downsample.1.running_mean": (2048,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    },
    "resnet101": {"layer3.22.conv3.weight": (1024, 256, 1, 1), "layer4.2.bn3.weight": (2048,)},
    "vgg16_bn": {
        "features.0.weight": (64, 3, 3, 3),
        "features.0.bias": (64,),
        "features.1.running_mean": (64,),
        "features.7.weight": (128, 64, 3, 3),
        "features.14.weight": (256, 128, 3, 3),
        "features.24.weight": (512, 256, 3, 3),
        "features.34.weight": (512, 512, 3, 3),
        "features.40.weight": (512, 512, 3, 3),
        "features.41.num_batches_tracked": (),
    },
}
CHANNELS = {
    "resnet18": (128, 256, 512),
    "resnet34": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet101": (512, 1024, 2048),
    "vgg16_bn": (256, 512, 512),
}


def outline(name: str, stride_on: str = "3x3") -> nn.Module:
    """Shapes without numbers, at once."""
    with torch.device("meta"):
        return build_backbone(name, stride_on)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_layout_is_torchvisions(name: str) -> None:
    backbone = outline(name)
    state = backbone.state_dict()
    assert (len(state), sum(p.numel() for p in backbone.parameters())) == TORCHVISION[name]
    assert SHAPES[name].items() <= {key: tuple(value.shape) for key, value in state.items()}.items()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [17, 473])
def test_channels_and_grids(name: str, size: int) -> None:
    backbone = outline(name)
    side = (size - 1) // 8 + 1
    if name == "vgg16_bn":
        side = -(-side // 2)  # one more pool, in ceil mode
    stage2, stage3 = backbone.stages23(torch.empty(2, 3, size, size, device="meta"))
    stage4 = backbone.stage4(stage3)
    assert backbone.channels == CHANNELS[name]
    for feature, channels in zip((stage2, stage3, stage4), CHANNELS[name], strict=True):
        assert feature.shape == (2, channels, side, side)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
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
        {key: m.stride for key, m in outline(name, on).named_modules() if isinstance(m, nn.Conv2d)}
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
    block = build_backbone("resnet50", stride_on).layer2[0].double().eval()  # type: ignore[arg-type]
    rough(block)
    x = torch.randn(2, 256, 9, 9, dtype=torch.float64)

    def norm(m: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, m.running_mean, m.running_var, m.weight, m.bias)

    first = x[:, :, ::2, ::2] if stride_on == "1x1" else x  # a 1x1 convolution with a stride skips positions
    y = F.relu(norm(block.bn1, F.conv2d(first, block.conv1.weight)))
    y = F.relu(norm(block.bn2, F.conv2d(y, block.conv2.weight, stride=1 if stride_on == "1x1" else 2, padding=1)))
    y = norm(block.bn3, F.conv2d(y, block.conv3.weight))
    shortcut = norm(block.downsample[1], F.conv2d(x[:, :, ::2, ::2], block.downsample[0].weight))
    torch.testing.assert_close(block(x), F.relu(y + shortcut), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BACKBONES)
def test_stage_4_can_be_dropped(name: str) -> None:
    backbone = outline(name)
    before = set(backbone.state_dict())
    backbone.drop_stage4()
    gone = before - set(backbone.state_dict())
    if isinstance(backbone, ResNet):
        assert gone == {key for key in before if key.startswith("layer4.")}
    else:
        assert gone == {key for key in before if int(key.split(".")[1]) >= 34}
    assert backbone.stages23(torch.empty(1, 3, 33, 33, device="meta"))[1].shape[1] == CHANNELS[name][1]


def test_a_vgg_ends_each_stage_with_its_pool() -> None:
    torch.manual_seed(0)
    vgg = build_backbone("vgg16_bn").eval()
    x = torch.rand(1, 3, 33, 33)
    by_hand = []
    for layer in vgg.features:
        x = F.max_pool2d(x, 2, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(x)
        if isinstance(layer, nn.MaxPool2d):
            by_hand.append(x)
    stage2, stage3 = vgg.stages23(torch.rand(1, 3, 33, 33, generator=torch.Generator().manual_seed(0)))
    assert [m.shape[-1] for m in by_hand] == [17, 9, 5, 3]
    assert stage2.shape[-2:] == stage3.shape[-2:] == (3, 3)


def test_unknown_names_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^backbone 'resnet51' is unknown: choose one of resnet18, .*vgg16_bn$"):
        build_backbone("resnet51")
    with pytest.raises(ConfigError, match=r"^stride_on '2x2' is unknown: choose 3x3 .* or 1x1"):
        build_backbone("resnet50", "2x2")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKBONES)
def test_folding_takes_every_batch_norm_away_and_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).double().eval()
    rough(backbone)
    inference = folded(backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in inference.modules())
    image = torch.randn(2, 3, 33, 33).double()
    for ours, expected in zip(inference.stages23(image), backbone.stages23(image), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    stage3 = backbone.stages23(image)[1]
    torch.testing.assert_close(inference.stage4(stage3), backbone.stage4(stage3), rtol=1e-9, atol=1e-9)
