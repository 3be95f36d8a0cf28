"""What is measured: a network, and episodes of one fold of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.int8 import stride_of
from sd_aanet.backbones.weights import load_backbone_weights
from sd_aanet.checkpoint import load_trained
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.models.sd_aanet import SDAANet


@dataclass(frozen=True)
class Workload:
    """Where episodes come from, and at which size.

    Attributes:
        size: side of an evaluation's pictures.
        train_size: side of a training's.
        data: a folder in VOC's layout; None draws pictures of shapes.
        weights: of the backbone; None leaves them random, which takes as long.
        checkpoint: a trained SD-AANet, instead of a new one on `weights`; its figures mean something.
        images: of shapes: as many as a fold of PASCAL-5i's tenth has.
    """

    size: int
    train_size: int
    data: Path | None = None
    weights: Path | None = None
    checkpoint: Path | None = None
    images: int = 200

    def method(self) -> SDAANet:
        """SD-AANet on ResNet-50, as published; or the checkpoint's."""
        if self.checkpoint is not None:
            trained = load_trained(self.checkpoint).method
            assert isinstance(trained, SDAANet)
            return trained
        torch.manual_seed(0)
        source = None if self.weights is None else str(self.weights)
        method = SDAANet(build_backbone("resnet50", stride_on=stride_of(source)))
        if source is not None:
            load_backbone_weights(method.backbone, source)
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return method

    def episodes(self, shot: int, count: int = 1000, augment: str = "none") -> EpisodeDataModule:
        """Fold 0."""
        least = self.size**2 // 25  # of shapes, see `Shapes`
        source: dict[str, object] = {
            "_target_": "sd_aanet.data.sources.shapes.Shapes",
            "images": self.images,
            "size": self.size,
        }
        if self.data is not None:
            least, source = 2048, {"_target_": "sd_aanet.data.sources.pascal5i.Pascal5i", "root": str(self.data)}
        return EpisodeDataModule(
            source,
            shot=shot,
            size=self.train_size,
            test_size=self.size,
            test_episodes=count,
            augment=augment,
            min_object_pixels=least,
        )
