"""Backbones: pure torch, images in, named maps out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.efficientnet import EfficientNetLite
from sd_aanet.backbones.resnet import ResNet
from sd_aanet.backbones.transformers import ConvNeXt, DINOv2, DINOv3
from sd_aanet.backbones.vgg import VGG
from sd_aanet.errors import ConfigError
from sd_aanet.rules import Rule

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in ResNet.DEPTHS},
    "vgg16_bn": VGG,
    **{f"dinov2_{size}": partial(DINOv2, size) for size in DINOv2.SIZES},
    **{f"dinov2_{size}_reg": partial(DINOv2, size, registers=True) for size in DINOv2.SIZES},
    **{f"dinov3_{size}": partial(DINOv3, size) for size in DINOv3.SIZES},
    **{f"dinov3_convnext_{size}": partial(ConvNeXt, size) for size in ConvNeXt.SIZES},
    **{f"efficientnet_lite{depth}": partial(EfficientNetLite, depth) for depth in EfficientNetLite.BLOCKS},
}
"""Name -> what makes it, with random weights, from the options of its own kind."""


def backbone_rules(name: str) -> Mapping[str, Rule]:
    """See `Backbone.rules`; those that all have, where there is no such backbone."""
    maker = BACKBONES.get(name, Backbone)
    kind = maker.func if isinstance(maker, partial) else maker
    return getattr(kind, "rules", Backbone.rules)


def takes(name: str, option: str) -> bool:
    """Whether a backbone has an option of construction; False for an unknown one."""
    return name in BACKBONES and option in inspect.signature(BACKBONES[name]).parameters


def build_backbone(
    name: str,
    trainable: bool = False,
    norm: str = "frozen",
    mid: Sequence[str] | None = None,
    high: str | None = None,
    **options: object,
) -> Backbone:
    """A backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        trainable, norm: see `Backbone.freeze`.
        mid, high: see `Backbone.choose`.
        options: of its own kind, such as `stride_on` of a ResNet.

    Raises:
        ConfigError: an unknown name, or an option that it does not have.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone '{name}' is unknown: choose one of {', '.join(BACKBONES)}")
    try:
        backbone = BACKBONES[name](**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rpartition("argument ")[2]
        raise ConfigError(f"backbone {name} has no option {option}: leave it out, or choose another backbone") from None
    return backbone.choose(mid, high).freeze(trainable, norm)
