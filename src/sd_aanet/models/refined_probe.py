"""A linear probe whose answer is sharpened by a small network that comes with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.efficientnet import EfficientNetLite
from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.models.parts.features import Maps
from sd_aanet.models.parts.functional import resize, wide
from sd_aanet.models.parts.refiner import Refiner
from sd_aanet.models.probe import Classifiers, Probe

WEIGHTS = "weights/refiner_lite2.safetensors"
"""In this package; weights/README.md is its card."""
LEARNT_FROM = {
    "pascal5i": (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
        *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    "coco20i": (
        *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
        *("horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
        *("book", "oven", "refrigerator", "sink", "toilet"),
    ),
}
"""The classes in the pictures from which the shipped refiner has learnt."""


@dataclass(frozen=True)
class Pyramid(Maps):
    """Feature maps of N images at an eighth of their side, and finer ones.

    Attributes:
        quarter: (N, C', 2h - 1, 2w - 1).
        half: (N, C'', 4h - 3, 4w - 3), the normalised picture's three channels behind the others.
    """

    quarter: Tensor
    half: Tensor


class RefinedProbe(Probe):
    """A `Probe` on four stages of EfficientNet-Lite2, and behind it a `Refiner` that ships with the package.

    The probe alone knows nothing but the supports; its map is coarse, has holes, and spills over. The refiner has
    learnt from photographs what maps of probes get wrong: its classes were drawn anew in each step, so it follows what
    the probe has found, whatever that is. docs/results.md tells what it is worth on classes it has never seen.

    Args:
        backbone: EfficientNet-Lite2 at output stride 8, with the weights that a plain installation brings.
        balance, l2, cells: see `Probe`.

    Raises:
        ConfigError: another backbone.
    """

    name = "refined_probe"
    label = "refined probe"
    rules: ClassVar = {name: rule for name, rule in Probe.rules.items() if name not in ("features", "normalise")}
    takes = frozenset()
    shipped = LEARNT_FROM
    backbone_name: ClassVar = "efficientnet_lite2"
    probed: ClassVar = ("stage3", "stage5", "stage6", "stage7")
    refining: ClassVar = 2
    """So many of these, from the first one on, the refiner reads."""

    def __init__(self, backbone: Backbone, balance: float = 0.75, l2: float = 0.3, cells: int = 20_000) -> None:
        if not (isinstance(backbone, EfficientNetLite) and backbone.depth == 2 and backbone.output_stride == 8):
            raise ConfigError(
                f"model=refined_probe on {backbone.label}, but its refiner has learnt the features of "
                "EfficientNet-Lite2: set backbone=efficientnet_lite2, or model=probe"
            )
        super().__init__(backbone, ("stage1", "stage2", *self.probed), balance=balance, l2=l2, cells=cells)
        width = {name: output.channels for name, output in backbone.outputs.items()}
        self.coarse = sum(width[name] for name in self.probed[: self.refining])
        self.refiner = Refiner(self.coarse, width["stage2"], width["stage1"] + 3)
        with as_file(files(__package__) / WEIGHTS) as path:
            weights = {name: tensor.float() for name, tensor in load_file(path).items()}  # in half the bytes on disk
        self.refiner.load_state_dict(weights, assign=True)
        self.refiner.requires_grad_(False)

    @property
    def finest(self) -> str:
        return self.probed[0]

    def image_features(self, images: Tensor) -> Pyramid:
        outputs = self.backbone(images, self.features)
        with self.backbone.no_gradient():
            maps = Maps.joined([outputs[name] for name in self.probed]).maps  # (N, C, h, w)
            colours = images[..., ::2, ::2].to(outputs["stage1"].dtype)  # (N, 3, 4h - 3, 4w - 3)
            return Pyramid(maps, outputs["stage2"], torch.cat([outputs["stage1"], colours], 1))

    def compare(self, queries: Maps, sets: Classifiers, pairs: Any, size: tuple[int, int]) -> Prediction:
        """See `Probe.compare`; what it found is the map "similarity", the logits are refined."""
        assert isinstance(queries, Pyramid)
        z = self.similarity(queries, sets)  # (B, 1, h, w)
        maps = (queries.maps[:, : self.coarse], queries.quarter, queries.half)
        finer = self.refiner(z, *(x.contiguous(memory_format=torch.channels_last) for x in maps))
        logits = resize(finer.to(wide(finer)), size)  # (B, 1, H, W)
        return Prediction(torch.cat([torch.zeros_like(logits), logits], 1), {"similarity": z}, sets.weight)
