"""From a composed configuration, as plain values, to a method, its weights and its sizes."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Grid
from sd_aanet.building import build_network, network_arguments, sizes
from sd_aanet.errors import CheckpointError, ConfigError
from sd_aanet.models import build_method
from sd_aanet.models.sd_aanet import SDAANet

BACKBONE: dict[str, Any] = {
    "name": "resnet18",
    "weights": None,
    "stride_on": "auto",
    "trainable": "auto",
    "norm": "auto",
    "mid": None,
    "high": "stage3",
}
MODEL: dict[str, Any] = {"method": "sd_aanet", "variant": "paper", "channels": 8, "saam": False, "loss": {"alpha": 2.0}}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({}, ("3x3", True, "batch")),  # random weights train
        ({"weights": "x.pth"}, ("3x3", False, "frozen")),
        ({"weights": "x.npz"}, ("1x1", False, "frozen")),
        ({"weights": "torchvision://resnet18"}, ("3x3", False, "frozen")),
        ({"weights": "x.npz", "stride_on": "3x3"}, ("3x3", False, "frozen")),
        ({"weights": "x.pth", "trainable": True}, ("3x3", True, "batch")),
        ({"weights": "x.pth", "trainable": True, "norm": "frozen"}, ("3x3", True, "frozen")),
        ({"weights": "x.pth", "norm": "batch"}, ("3x3", False, "batch")),  # as published
        ({"trainable": False}, ("3x3", False, "frozen")),
    ],
)
def test_auto_is_resolved(backbone: dict[str, Any], expected: tuple[str, bool, str]) -> None:
    arguments = network_arguments(BACKBONE | backbone, MODEL)
    stride_on, trainable, norm = expected
    assert arguments == {
        **MODEL,
        "backbone": {"name": "resnet18", "stride_on": stride_on, "trainable": trainable, "norm": norm, "mid": None,
                     "high": "stage3"},
    }  # fmt: skip
    assert BACKBONE["trainable"] == "auto"


def test_a_backbone_without_strides_to_move() -> None:
    vgg = {name: value for name, value in BACKBONE.items() if name not in ("stride_on", "high")} | {"name": "vgg16_bn"}
    arguments = network_arguments(vgg, MODEL)
    assert "stride_on" not in arguments["backbone"]
    with torch.device("meta"):
        assert build_method(**arguments).backbone.label == "VGG-16"


def test_random_weights_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    method, arguments = build_network({"backbone": BACKBONE, "model": MODEL})
    assert caplog.messages == ["backbone resnet18 starts from random weights and trains with the head"]
    assert isinstance(method, SDAANet)
    assert (method.loss_weights["distillation"], method.saam, method.high) == (2.0, None, "stage3")
    assert method.backbone.trainable
    again = build_method(**arguments)
    again.load_state_dict(method.state_dict())
    caplog.clear()
    build_network({"backbone": BACKBONE | {"trainable": False}, "model": MODEL})
    assert caplog.messages == ["backbone resnet18 starts from random weights and does NOT train: it stays random"]


def test_weights_from_a_file_are_reported(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    backbone = build_backbone("resnet18")
    path = tmp_path / "x.pth"
    torch.save(backbone.state_dict(), path)
    method, arguments = build_network({"backbone": BACKBONE | {"weights": str(path)}, "model": MODEL})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"backbone weights from {path}: 90 tensors, none missing; 30 not needed")
    assert "weights" not in arguments["backbone"]
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name])
    with pytest.raises(CheckpointError, match="does not exist"):
        build_network({"backbone": BACKBONE | {"weights": "missing.pth"}, "model": MODEL})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (321, 473)),  # the recipe's
        ({"size": 97}, (97, 97)),  # everywhere
        ({"test_size": 97}, (321, 97)),
        ({"size": 65, "test_size": 97}, (65, 97)),
        ({"size": None, "test_size": None, "recipe": {"size": 320, "test_size": 480}}, (321, 481)),  # the nearest
    ],
)
def test_sizes(given: dict[str, Any], expected: tuple[int, int]) -> None:
    assert sizes({"recipe": {"size": 321, "test_size": 473}} | given, Grid(8, 1, 17)) == expected


def test_recipes_fit_other_backbones_and_given_sizes_must() -> None:
    recipe = {"recipe": {"size": 321, "test_size": 473}}
    assert sizes(recipe, Grid(14, 0, 28)) == (322, 476)
    for name in ("size", "test_size"):
        with pytest.raises(ConfigError, match=rf"^{name}=321, expected 14n: the nearest good size is 322$"):
            sizes(recipe | {name: 321}, Grid(14, 0, 28))
