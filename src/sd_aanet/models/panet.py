"""PANet: prototypes of background and classes, compared by cosine; in training also the other way round (ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import IGNORE, Episode, Prediction, Rows
from sd_aanet.models.parts.features import Mapped, Maps
from sd_aanet.models.parts.functional import cross_entropy, resize, wide
from sd_aanet.rules import SWITCH, number, whole

SCALE = 20.0
"""Of the cosines, as logits (PANet)."""
EPS = 1e-5
"""Added to a mask's area before dividing by it (PANet)."""
LEAST = 1e-8
"""Length that a vector has at least when a cosine divides by it, as torch's has."""


@dataclass(frozen=True)
class Prototypes(Rows):
    """Of N examples, or of support sets.

    Attributes:
        both: (N, 2, C), prototypes of the background and of the class.
        maps: (N, C, h, w), of support sets (B, K, C, h, w); only in training, whose alignment segments them.
    """

    both: Tensor
    maps: Tensor | None


@dataclass(frozen=True)
class PANetPrediction(Prediction):
    """What the losses need beside the logits, for N classes of K shots; None outside training.

    Attributes:
        support_logits: (B, N, K, 2, h, w), each example segmented by prototypes of the query as it was predicted.
        found: (B, N), whether the query was predicted to hold the class anywhere.
    """

    support_logits: Tensor | None = None
    found: Tensor | None = None


class PANet(Mapped[Prototypes, Prototypes]):
    """Non-parametric comparison with mean prototypes, of all classes at once.

    Args:
        backbone: see there; its mid features are compared.
        channels: of the projection.
        project: a 1x1 convolution behind the backbone. Without it the head has no parameters.
        loss: weights of the loss terms beside "main": "alignment", 1 as published.
    """

    name = "panet"
    rules: ClassVar = {"channels": whole(1, 512), "project": SWITCH, "loss.alignment": number(1.0)}
    joint = True

    def __init__(
        self, backbone: Backbone, channels: int = 512, project: bool = True, loss: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(backbone)
        inputs = sum(backbone.outputs[name].channels for name in self.features)
        self.project = nn.Conv2d(inputs, channels, 1, bias=False) if project else nn.Identity()
        self.trains = project or backbone.trainable
        self.loss_weights = {"alignment": 1.0} | dict(loss or {})

    @property
    def label(self) -> str:
        return "PANet" if isinstance(self.project, nn.Conv2d) else "PANet, not projected"

    def encode_query(self, features: Maps, masked: Any) -> Maps:
        return Maps(self.project(features.maps))

    def encode_support(self, features: Maps, masked: Any, mask: Tensor) -> Prototypes:
        """See `FewShotMethod.encode_support`; what is ignored belongs to neither prototype."""
        maps: Tensor = self.project(features.maps)  # (N, C, h, w)
        masks = torch.stack([mask == 0, mask == 1], 1).to(wide(maps))  # (N, 2, S, S)
        return Prototypes(pool(maps, masks), maps if self.training else None)

    def support_set(self, supports: Prototypes, shots: int) -> Prototypes:
        """See `FewShotMethod.support_set`; the mean of the shots."""
        maps = None if supports.maps is None else supports.maps.unflatten(0, (-1, shots))  # (B, K, C, h, w)
        return Prototypes(supports.both.unflatten(0, (-1, shots)).mean(1), maps)

    def compare(self, queries: Maps, sets: Prototypes, pairs: Any, size: tuple[int, int]) -> PANetPrediction:
        """See `FewShotMethod.compare`; the classes share a background, the mean of what each one's examples show."""
        q, batch = queries.maps, queries.maps.shape[0]
        both = sets.both.unflatten(0, (batch, -1))  # (B, N, 2, C)
        prototypes = torch.cat([both[:, :, 0].mean(1, keepdim=True), both[:, :, 1]], 1)  # (B, N + 1, C)
        logits = SCALE * cosines(q, prototypes)  # (B, N + 1, h, w)
        support_logits, found = None, None
        if self.training and sets.maps is not None:
            # The other way round: the query as predicted is the example, and its examples are to be segmented.
            chosen = F.one_hot(logits.argmax(1), logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
            of_query = pool(q, chosen)  # (B, N + 1, C)
            background = of_query[:, :1].expand_as(of_query[:, 1:])
            backwards = torch.stack([background, of_query[:, 1:]], 2)  # (B, N, 2, C)
            maps = sets.maps.unflatten(0, (batch, -1))  # (B, N, K, C, h, w)
            each = backwards[:, :, None].expand(*maps.shape[:3], -1, -1)  # (B, N, K, 2, C)
            support_logits = SCALE * cosines(maps.flatten(0, 2), each.flatten(0, 2))  # (B N K, 2, h, w)
            support_logits = support_logits.unflatten(0, maps.shape[:3])
            found = chosen[:, 1:].flatten(2).any(2)  # (B, N)
        return PANetPrediction(
            logits=resize(logits, size),
            maps={"similarity": (logits[:, 1:].amax(1, keepdim=True) - logits[:, :1]) / SCALE},
            embedding=prototypes[:, 1] if prototypes.shape[1] == 2 else None,
            support_logits=support_logits,
            found=found,
        )

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """See `FewShotMethod.losses`; the alignment is the examples' mean, where a class not found counts as 0."""
        assert isinstance(prediction, PANetPrediction)
        terms = {"main": cross_entropy(prediction.logits, episode.query_mask)}
        if prediction.support_logits is not None and prediction.found is not None:
            masks = episode.support_mask  # (B, N, K, S, S)
            logits = resize(prediction.support_logits.flatten(0, 2), (masks.shape[-2], masks.shape[-1]))
            pixels = F.cross_entropy(logits, masks.flatten(0, 2), ignore_index=IGNORE, reduction="none")
            counted = (masks != IGNORE).sum((3, 4)).clamp(min=1)  # (B, N, K)
            each = pixels.sum((1, 2)).view_as(counted) / counted  # (B, N, K)
            terms["alignment"] = (each * prediction.found[:, :, None]).mean()
        return terms


def pool(maps: Tensor, masks: Tensor) -> Tensor:
    """Means of maps under masks, as if the maps were resized to the masks' side (bilinear, aligned corners).

    A resized map is a sum of its cells, so each cell counts by what the mask holds of its share: the resizing's
    transpose makes the masks small instead of the maps large.

    Args:
        maps: (N, C, h, w).
        masks: (N, M, H, W) in [0, 1], float32 or wider.

    Returns:
        (N, M, C): sum(map * mask) / (sum(mask) + 1e-5), in the masks' dtype.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows, columns = (
            _shares(cells, side, masks) for cells, side in zip(maps.shape[2:], masks.shape[2:], strict=True)
        )
        weights = rows @ masks @ columns.T  # (N, M, h, w)
        total = weights.flatten(2) @ maps.to(masks.dtype).flatten(2).transpose(1, 2)  # (N, M, C)
        return total / (masks.sum((2, 3))[:, :, None] + EPS)


def cosines(maps: Tensor, prototypes: Tensor) -> Tensor:
    """Of each position of maps (N, C, h, w) with M prototypes (N, M, C): (N, M, h, w), in the prototypes' dtype."""
    with torch.autocast(maps.device.type, enabled=False):
        x = maps.flatten(2).to(prototypes.dtype)  # (N, C, h w)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=LEAST)  # (N, 1, h w)
        cosine: Tensor = F.normalize(prototypes, dim=2, eps=LEAST) @ x / length  # (N, M, h w)
        return cosine.view(*cosine.shape[:2], *maps.shape[2:])


def _shares(cells: int, side: int, like: Tensor) -> Tensor:
    """How much of each of `cells` is in each of `side` pixels when a line is resized: (cells, side)."""
    line = torch.eye(cells, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(line, side, mode="linear", align_corners=True)[0]
