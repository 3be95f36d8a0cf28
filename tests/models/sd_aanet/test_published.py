"""The published checkpoints' names, to and from ours."""

import json
from pathlib import Path

import pytest
import torch

from plain import layout
from sd_aanet.backbones import build_backbone
from sd_aanet.errors import CheckpointError
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.models.sd_aanet.published import backbone_of, from_published, our_name, published_names, to_published

BACKBONES = ["resnet50", "resnet101", "vgg16_bn"]


def meta(backbone: str) -> SDAANet:
    with torch.device("meta"):
        return SDAANet(build_backbone(backbone))


def hollow(backbone: str) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout(backbone).items()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_published_tensor_has_one_place_here(backbone: str) -> None:
    shapes = layout(backbone)
    state = meta(backbone).state_dict()
    places = {name: our_name(name, backbone) for name in shapes}
    assert sorted(str(place) for place in places.values()) == sorted(state)
    assert published_names(state, backbone) == {place: name for name, place in places.items()}
    found, renamed = from_published(hollow(backbone))
    assert found == backbone
    assert {name: value.shape for name, value in renamed.items()} == {name: v.shape for name, v in state.items()}
    assert {name: list(value.shape) for name, value in to_published(renamed, backbone).items()} == shapes


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_recorded_names_are_these(backbone: str, shared: Path) -> None:
    keys = shared / "golden" / f"official_keys_{backbone.removesuffix('_bn')}.json"
    assert layout(backbone) == json.loads(keys.read_text())


def test_a_prefix_of_data_parallel_goes() -> None:
    state = {f"module.{name}": value for name, value in hollow("resnet50").items()}
    backbone, renamed = from_published(state)
    assert backbone == "resnet50"
    assert renamed.keys() == meta("resnet50").state_dict().keys()


def test_a_linear_layer_of_another_shape_is_left_to_whoever_loads_it() -> None:
    state = hollow("resnet50") | {"se_supp.0.weight": torch.zeros(3)}
    assert from_published(state)[1]["sdpm.squeeze.weight"].shape == (3,)


def test_values_stay_the_same() -> None:
    torch.manual_seed(0)
    network = SDAANet(build_backbone("vgg16_bn"), channels=8)
    state = network.state_dict()
    there = to_published(state, "vgg16_bn")
    assert there["se_supp.0.weight"].shape == (2, 8, 1, 1)  # a linear layer here, a 1x1 convolution there
    back = from_published(there)[1]
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value)
        assert torch.equal(there[published_names([name], "vgg16_bn")[name]].flatten(), value.flatten())


def test_strange_names_are_listed() -> None:
    state = hollow("resnet50") | {"extra.weight": torch.zeros(1), "layer5.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"^2 names .* fit nowhere in SD-AANet: extra.weight, layer5.0.conv1.wei"):
        from_published(state)
    with pytest.raises(CheckpointError, match=r"^1 tensors have no published name: decoder.gate.weight$"):
        to_published({"decoder.gate.weight": torch.zeros(1)}, "resnet50")


@pytest.mark.parametrize(
    "module", ["simple_mask.2.stages.4.1", "init_merge.4.0", "alpha_conv.3.0", "beta_conv.4.0", "inner_cls.4.0"]
)
def test_there_are_four_scales_and_no_fifth(module: str) -> None:
    assert our_name(f"{module}.weight", "resnet50") is None


@pytest.mark.parametrize("names", [{}, {"conv1.weight": (64, 3, 7, 7)}, {"layer0.0.weight": (64, 3, 7, 7)}])
def test_an_unknown_backbone(names: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError, match=r"^the backbone of this checkpoint is unknown: expected the published"):
        backbone_of(names)
