"""State dicts of the published checkpoints, to and from this project's names.

The published names are facts of 8 files that the paper's authors put on the web; the table below pairs each with the
module here that holds the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from sd_aanet.backbones.vgg import VGG
from sd_aanet.errors import CheckpointError

HEAD = {
    "down_query.0": "project_query",
    "down_supp.0": "project_support",
    "se_supp.0": "sdpm.squeeze",
    "se_supp.2": "sdpm.excite",
    "simple_mask.0": "saam.extractor.conv",
    **{f"simple_mask.2.stages.{i}.1": f"saam.extractor.pools.{i}" for i in range(4)},
    **{f"simple_mask.2.stages.{i}.2": f"saam.extractor.norms.{i}" for i in range(4)},
    "simple_mask.2.bottleneck.0": "saam.extractor.fuse",
    "simple_mask.2.bottleneck.1": "saam.extractor.norm",
    "s_cls": "saam.support_classifier",
    "q_maskgeneration": "saam.attention_classifier",
    **{f"init_merge.{i}.0": f"decoder.merge.{i}" for i in range(4)},
    **{f"alpha_conv.{i}.0": f"decoder.flow.{i}" for i in range(3)},
    **{f"beta_conv.{i}.{j}": f"decoder.refine.{i}.conv{1 + j // 2}" for i in range(4) for j in (0, 2)},
    **{f"inner_cls.{i}.{j}": f"decoder.auxiliary.{i}.{j}" for i in range(4) for j in (0, 3)},
    "res1.0": "decoder.join",
    "res2.0": "decoder.residual.conv1",
    "res2.2": "decoder.residual.conv2",
    "cls.0": "decoder.classifier.0",
    "cls.3": "decoder.classifier.3",
}
"""Published module -> ours, for everything after the backbone."""

_LINEAR = ("sdpm.squeeze.weight", "sdpm.excite.weight")
"""1x1 convolutions there, linear layers here."""


def backbone_of(names: Mapping[str, tuple[int, ...]]) -> str:
    """The backbone of a published state dict, from its names and shapes.

    Raises:
        CheckpointError: the names are of none of the published backbones.
    """
    depth = len({name.split(".")[1] for name in names if name.startswith("layer3.")})
    if names.get("layer0.0.weight") == (64, 3, 3, 3):
        return "vgg16_bn"
    if names.get("layer0.0.weight") == (64, 3, 7, 7) and depth in (6, 23):
        return {6: "resnet50", 23: "resnet101"}[depth]
    raise CheckpointError(
        "the backbone of this checkpoint is unknown: expected the published names (layer0.0.weight, ...) of a "
        f"ResNet-50, ResNet-101 or VGG-16, found {', '.join(sorted(names)[:3]) or 'no tensors'}"
    )


def our_name(name: str, backbone: str) -> str | None:
    """Our name of a published tensor; None where there is none."""
    module, _, tensor = name.rpartition(".")
    ours = _modules(backbone).get(module)
    if ours is None and backbone != "vgg16_bn" and re.match(r"layer[1-4]\.", module):
        ours = f"backbone.{module}"  # torchvision's name, there and here
    return None if ours is None else f"{ours}.{tensor}"


def published_names(ours: Iterable[str], backbone: str) -> dict[str, str]:
    """{our name: published name} for the tensors of a network of ours."""
    published = {here: there for there, here in _modules(backbone).items()}
    names = {}
    for name in ours:
        module, _, tensor = name.rpartition(".")
        if module in published or module.startswith("backbone."):
            names[name] = f"{published.get(module, module.removeprefix('backbone.'))}.{tensor}"
    return names


def _modules(backbone: str) -> dict[str, str]:
    """Published module -> ours, but for those of a ResNet's stages, which have one name."""
    if backbone != "vgg16_bn":
        return HEAD | {"layer0.0": "backbone.conv1", "layer0.1": "backbone.bn1"}
    stages = enumerate(pairwise(VGG.STAGES))
    return HEAD | {
        f"layer{k}.{i - first}": f"backbone.features.{i}" for k, (first, end) in stages for i in range(first, end)
    }


def from_published(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """A published state dict (with or without `module.`) as one of `SDAANet`.

    Returns:
        The backbone's name and the state dict.

    Raises:
        CheckpointError: an unknown backbone, or names that fit nowhere, listed.
    """
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    backbone = backbone_of({name: tuple(value.shape) for name, value in plain.items()})
    renamed, strange = {}, []
    for name, value in plain.items():
        ours = our_name(name, backbone)
        if ours is None:
            strange.append(name)
        else:
            renamed[ours] = value.flatten(1) if ours in _LINEAR and value.dim() > 1 else value
    if strange:
        raise CheckpointError(f"{len(strange)} names of this checkpoint fit nowhere in SD-AANet: {', '.join(strange)}")
    return backbone, renamed


def to_published(state: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """A state dict of `SDAANet` in the published names; the reverse of `from_published`.

    Raises:
        CheckpointError: tensors without a published name, listed.
    """
    names = published_names(state, backbone)
    strange = [name for name in state if name not in names]
    if strange:
        raise CheckpointError(f"{len(strange)} tensors have no published name: {', '.join(strange)}")
    return {
        names[name]: torch.clone(value[:, :, None, None] if name in _LINEAR else value) for name, value in state.items()
    }
