"""What every backbone does: torchvision's layout of names, named outputs, sizes, what stands still, folding."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from networks import CountingResNet, inputs, predict, rough, small
from sd_aanet.backbones import base as backbone_base
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Backbone, Grid, folded
from sd_aanet.errors import ConfigError

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


STAGES = ("stage2", "stage3", "stage4")


def outline(name: str, **options: Any) -> Backbone:
    """Shapes without numbers, at once."""
    with torch.device("meta"):
        return build_backbone(name, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_layout_is_torchvisions(name: str) -> None:
    backbone = outline(name)
    state = backbone.state_dict()
    assert (len(state), sum(p.numel() for p in backbone.parameters())) == TORCHVISION[name]
    assert SHAPES[name].items() <= {key: tuple(value.shape) for key, value in state.items()}.items()


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("size", [17, 473])
def test_channels_and_grids(name: str, size: int) -> None:
    """Every output has the channels and the stride that it is said to have."""
    backbone = outline(name)
    side = (size - 1) // 8 + 1
    sides = {"stage2": side, "stage3": side, "stage4": side}
    if name == "vgg16_bn":  # one more pool, in ceil mode
        sides |= {"stage3": -(-side // 2), "stage4": -(-side // 2)}
    found = backbone(torch.empty(2, 3, size, size, device="meta"), list(backbone.outputs))
    assert found.keys() == backbone.outputs.keys()
    for stage, channels in zip(STAGES, CHANNELS[name], strict=True):
        assert found[stage].shape == (2, channels, sides[stage], sides[stage])
    for output, feature in found.items():
        said = backbone.outputs[output]
        assert feature.shape == (2, said.channels, said.cells(size), said.cells(size)), output


@pytest.mark.parametrize("name", TORCHVISION)
def test_what_no_output_needs_is_forgotten(name: str) -> None:
    backbone = outline(name)
    before = set(backbone.state_dict())
    backbone.keep(["stage2", "stage3"])
    gone = before - set(backbone.state_dict())
    if name == "vgg16_bn":
        assert gone == {key for key in before if int(key.split(".")[1]) >= 34}
    else:
        assert gone == {key for key in before if key.startswith("layer4.")}
    assert "stage4" not in backbone.outputs
    image = torch.empty(1, 3, 33, 33, device="meta")
    assert backbone(image, ["stage3"])["stage3"].shape[1] == CHANNELS[name][1]
    with pytest.raises(ConfigError, match="has no such output"):
        backbone.choose(high="stage4")
    with pytest.raises(ConfigError, match=r"^output=stage4, but .* has no such output"):
        backbone(image, ["stage3", "stage4"])
    with pytest.raises(ConfigError, match=r"^output=stage4, but .* has no such output"):
        backbone.resume("stage3", torch.empty(1, CHANNELS[name][1], 5, 5, device="meta"), ["stage4"])


@pytest.mark.parametrize("name", TORCHVISION)
def test_resuming_is_going_on(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).double().eval()
    rough(backbone)
    whole = backbone(torch.randn(2, 3, 33, 33).double(), STAGES)
    again = backbone.resume("stage3", whole["stage3"], ["stage4"])
    assert again.keys() == {"stage4"}
    torch.testing.assert_close(again["stage4"], whole["stage4"], rtol=1e-10, atol=1e-10)


def test_other_outputs_may_be_chosen() -> None:
    backbone = outline("resnet18", mid=["stage2", "stage1"], high="stage3")
    assert (backbone.mid, backbone.high, backbone.before_high) == (("stage2", "stage1"), "stage3", None)
    assert outline("resnet18", high="stage4").before_high == "stage3"
    assert outline("resnet18").mid == ("stage3", "stage2")
    for setting, message in {
        "mid": r"^backbone.mid=stage9, but ResNet-18 has no such output: choose one of stage1.0, .*, stage4$",
        "high": r"^backbone.high=stage9, but ResNet-18 has no such output: choose one of [^\n]*$",
    }.items():
        with pytest.raises(ConfigError, match=message):
            outline("resnet18", **{setting: ["stage9"] if setting == "mid" else "stage9"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, r"^backbone 'resnet51' is unknown: choose one of resnet18, .*vgg16_bn.*$"),
        ({"name": "resnet50", "stride_on": "2x2"}, r"^stride_on '2x2' is unknown: choose 3x3 .* or 1x1"),
        ({"name": "resnet18", "output_stride": 4}, r"^output_stride=4, expected 8, 16 or 32: choose one$"),
        ({"name": "resnet18", "norm": "group"}, r"^backbone.norm=group, expected frozen or batch: choose one$"),
        ({"name": "vgg16_bn", "stride_on": "1x1"}, r"^backbone vgg16_bn has no option '?stride_on'?: leave it out, or"),
    ],
)
def test_unknown_names_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(**options)


# Sizes -----------------------------------------------------------------------------------------------------------


@given(st.integers(-10, 2000))
def test_a_good_size_is_8n_plus_1(size: int) -> None:
    good, grid = [8 * n + 1 for n in range(2, 300)], Grid(8, 1, 17)
    if size in good:
        grid.check(size)
        assert grid.nearest(size) == size
        return
    with pytest.raises(ConfigError) as error:
        grid.check(size)
    message = str(error.value)
    assert message.startswith(f"size={size}, expected 8n + 1: the nearest good size is ")
    named = int(message.rsplit(" ", 1)[1])
    assert named in good
    assert abs(named - size) == min(abs(g - size) for g in good)


@pytest.mark.parametrize(
    ("grid", "size", "message"),
    [
        (Grid(14, 0, 28), 100, "test_size=100, expected 14n: the nearest good size is 98"),
        (Grid(1, 0, 32), 31, "test_size=31, expected at least 32: the nearest good size is 32"),
        (Grid(8, 1, 17), 9, "test_size=9, expected 8n + 1: the nearest good size is 17"),
    ],
)
def test_grids_of_other_backbones(grid: Grid, size: int, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid.check(size, "test_size")
    assert str(error.value) == message
    grid.check(grid.nearest(size))


# What stands still -----------------------------------------------------------------------------------------------


def buffers(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.named_buffers()}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_frozen_norms_stay_in_eval_mode_and_stand_still(norm: str, trainable: bool) -> None:
    backbone = build_backbone("resnet18", trainable, norm)
    rough(backbone)
    before, image = buffers(backbone), torch.randn(2, 3, 33, 33)
    assert backbone.train() is backbone
    assert {module.training for module in backbone.modules()} == {norm == "batch"}
    backbone(image, ["stage4"])
    moved = [name for name, value in backbone.named_buffers() if not torch.equal(value, before[name])]
    assert bool(moved) == (norm == "batch")
    before = buffers(backbone.eval())
    backbone(image, ["stage4"])
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert {p.requires_grad for p in backbone.parameters()} == {trainable}
    assert backbone(image, ["stage4"])["stage4"].requires_grad == trainable
    assert backbone.stands_still == (norm == "frozen" and not trainable)


# Folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION)
def test_folding_takes_every_batch_norm_away_and_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).double().eval()
    rough(backbone)
    inference = folded(backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in inference.modules())
    image = torch.randn(2, 3, 33, 33).double()
    ours, expected = inference.run(image, STAGES), backbone.run(image, STAGES)
    for stage in STAGES:
        torch.testing.assert_close(ours[stage], expected[stage], rtol=1e-9, atol=1e-9)
    stage3 = expected["stage3"]
    ours, expected = inference.run_on("stage3", stage3, ["stage4"]), backbone.run_on("stage3", stage3, ["stage4"])
    torch.testing.assert_close(ours["stage4"], expected["stage4"], rtol=1e-9, atol=1e-9)


def test_folded_weights_follow_every_change_and_are_no_part_of_the_network() -> None:
    network = small().eval()
    image = torch.randn(1, 3, 33, 33).double()
    names = set(network.state_dict())
    changes = {
        "none": lambda: None,
        "in place": lambda: rough(network.backbone),
        "loaded": lambda: network.load_state_dict(small(seed=1).state_dict()),
        "moved": lambda: network.float().double(),
        "a copy": lambda: copy.deepcopy(network),
    }
    for change in changes.values():
        change()
        with torch.no_grad():
            ours, expected = network.backbone(image, STAGES), network.backbone.run(image, STAGES)
        for stage in STAGES:
            torch.testing.assert_close(ours[stage], expected[stage], rtol=1e-9, atol=1e-9)
    assert set(network.state_dict()) == names
    assert len(list(network.backbone.modules())) == len(list(small().backbone.modules()))


def test_a_backbone_that_trains_is_not_folded() -> None:
    backbone = build_backbone("resnet18", trainable=True, norm="frozen")
    backbone(torch.randn(2, 3, 33, 33), ["stage3"])["stage3"].sum().backward()
    assert backbone.get_parameter("bn1.weight").grad is not None


# Pictures in parts -----------------------------------------------------------------------------------------------


def test_a_cpu_may_take_pictures_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = CountingResNet()
    network = small(backbone=backbone).eval()
    query, _, support, support_mask = inputs(batch=3, shot=2)
    with torch.no_grad():
        whole = predict(network, query, support, support_mask)
        monkeypatch.setattr(backbone_base, "CPU_POSITIONS", 72)  # two pictures'
        parts = predict(network, query, support, support_mask)
    assert backbone.seen == [9, 2, 2, 2, 2, 1]
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.maps["prior"], whole.maps["prior"], rtol=1e-12, atol=1e-12)
