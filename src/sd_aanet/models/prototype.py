"""The untrained reference: masked-average prototypes of the supports, compared with the query by cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Prediction, Rows
from sd_aanet.models.parts.features import Mapped, Maps
from sd_aanet.models.parts.functional import masked_average_pool, resize, share_of
from sd_aanet.rules import SWITCH, or_null, texts


@dataclass(frozen=True)
class Prototypes(Rows):
    """Prototypes of the background and of the class: (N, 2, C), or of support sets (B, K, 2, C)."""

    both: Tensor


class CosinePrototype(Mapped[Prototypes, Prototypes]):
    """Foreground and background prototypes; each position of the query takes the nearer one. Nothing is learnt.

    Args:
        backbone: see there.
        features: the outputs that are compared, one behind another; None for the first of the backbone's mid ones.
        normalise: give each position of each output unit length before they are joined.

    Raises:
        ConfigError: an output that the backbone does not have.
    """

    name = "prototype"
    label = "prototype"
    trains = False
    rules: ClassVar = {"features": or_null(texts("[stage3,stage2]")), "normalise": SWITCH}

    def __init__(
        self, backbone: Backbone, features: Sequence[str] | str | None = None, normalise: bool = False
    ) -> None:
        super().__init__(backbone, features or backbone.mid[:1], normalise)

    def encode_support(self, features: Maps, masked: Any, mask: Tensor) -> Prototypes:
        """See `FewShotMethod.encode_support`; a prototype of the background, then one of the class."""
        both = [masked_average_pool(features.maps, share_of(mask, value, features.maps)) for value in (0, 1)]
        return Prototypes(torch.stack(both, 1))  # (N, 2, C)

    def support_set(self, supports: Prototypes, shots: int) -> Prototypes:
        return Prototypes(supports.both.unflatten(0, (-1, shots)).mean(1))  # (B, 2, C)

    def compare(self, queries: Maps, sets: Prototypes, pairs: Any, size: tuple[int, int]) -> Prediction:
        """See `FewShotMethod.compare`; the logits are cosines."""
        both = F.normalize(sets.both, dim=-1)  # (B, 2, C)
        q = F.normalize(queries.maps.to(both.dtype), dim=1)  # (B, C, h, w)
        with torch.autocast(q.device.type, enabled=False):  # in half precision the nearer one is often neither
            cosine = torch.einsum("bchw,bpc->bphw", q, both)  # (B, 2, h, w)
        return Prediction(resize(cosine, size), {"similarity": cosine[:, 1:] - cosine[:, :1]}, both[:, 1])
