"""Features that the heads of PFENet's kind share: mid ones for the head, high ones for the prior mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Rows
from sd_aanet.models.base import FewShotMethod, P, Q, S, T
from sd_aanet.models.parts.functional import resize, wide


@dataclass(frozen=True)
class Maps(Rows):
    """Feature maps of N images: (N, C, h, w)."""

    maps: Tensor

    @classmethod
    def joined(cls, outputs: Sequence[Tensor], normalise: bool = False) -> Maps:
        """Outputs of a backbone one behind another, on the first one's grid.

        Args:
            outputs: (N, C, h, w) each.
            normalise: give each position of each output unit length first.
        """
        grid = (outputs[0].shape[-2], outputs[0].shape[-1])
        resized = [resize(output, grid) for output in outputs]
        return cls(torch.cat([F.normalize(x.to(wide(x)), dim=1) for x in resized] if normalise else resized, 1))


class Mapped(FewShotMethod[Maps, Any, Maps, S, T, Any], Generic[S, T]):
    """A method that looks at one feature map of a picture.

    Args:
        backbone: see there.
        features: the outputs that make the map, one behind another; None for the backbone's mid ones.
        normalise: give each position of each output unit length before they are joined.

    Raises:
        ConfigError: an output that the backbone does not have.
    """

    def __init__(
        self, backbone: Backbone, features: Sequence[str] | str | None = None, normalise: bool = False
    ) -> None:
        super().__init__(backbone)
        self.features = backbone.named(features or backbone.mid, "model.features")
        self.normalise = normalise
        backbone.keep(self.features)

    @property
    def finest(self) -> str:
        return self.features[0]

    def image_features(self, images: Tensor) -> Maps:
        outputs = self.backbone(images, self.features)
        with self.backbone.no_gradient():
            return Maps.joined([outputs[name] for name in self.features], self.normalise)  # (N, C, h, w)

    def encode_query(self, features: Maps, masked: Any) -> Maps:
        return features


@dataclass(frozen=True)
class Mid(Rows):
    """Mid features of N images.

    Attributes:
        mid: (N, C, h, w), the outputs that the head takes, one behind another, on the first one's grid.
        high: (N, C', h', w') where they come in the same pass; None where they are made of `mid`, or not wanted.
    """

    mid: Tensor
    high: Tensor | None = None


@dataclass(frozen=True)
class High(Rows):
    """High features of N images: N times (C, h, w), for they are compared one by one and never stacked."""

    high: tuple[Tensor, ...]


class MidHigh(FewShotMethod[Mid, High, Q, S, T, P], Generic[Q, S, T, P]):
    """A method whose head takes mid features, and whose prior mask, where there is one, high features.

    Args:
        backbone: see there.
        prior: whether there is a prior mask; without it nothing high is made.

    Attributes:
        mid: names of the outputs.
        mid_channels: of all of them together.
        high: name of the output; None without a prior mask.
    """

    takes = frozenset({"mid", "high"})

    def __init__(self, backbone: Backbone, prior: bool = True) -> None:
        super().__init__(backbone)
        self.mid = backbone.mid
        self.high = backbone.high if prior else None
        self.masks_features = prior
        self._channels = [backbone.outputs[name].channels for name in self.mid]
        self.mid_channels = sum(self._channels)
        before = backbone.before_high
        self._resumed = before if before in self.mid else None  # the output that a mask multiplies before it goes on
        backbone.keep([*self.mid, *([] if self.high is None else [self.high])])

    def image_features(self, images: Tensor) -> Mid:
        beside = self.high is not None and self._resumed is None and self.high not in self.mid
        outputs = self.backbone(images, [*self.mid, *([str(self.high)] if beside else [])])
        with self.backbone.no_gradient():
            mid = Maps.joined([outputs[name] for name in self.mid])  # (N, C, h, w)
        return Mid(mid.maps, outputs[str(self.high)] if beside else None)

    def masked_features(self, features: Mid, mask: Tensor | None) -> High | None:
        """See `FewShotMethod.masked_features`; made from the masked output before, where the backbone can (PFENet)."""
        return None if self.high is None else High(self._high_maps(features, mask).unbind())  # (C', h', w') each

    def _high_maps(self, features: Mid, mask: Tensor | None) -> Tensor:
        """The high features of N images, (N, C', h', w')."""
        assert self.high is not None
        if features.high is not None:
            return features.high
        with self.backbone.no_gradient():
            parts: dict[str, Tensor] = dict(zip(self.mid, features.mid.split(self._channels, 1), strict=True))
            if self._resumed is None:
                return parts[self.high]
            before = parts[self._resumed]  # (N, C, h, w)
            if mask is not None:
                grid = (before.shape[-2], before.shape[-1])
                before = before * resize((mask == 1)[:, None].to(before.dtype), grid)
            return self.backbone.resume(self._resumed, before, [self.high])[self.high]
