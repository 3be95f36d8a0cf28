"""The untrained reference: masked-average prototypes of the supports, compared with the query by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.models.backbone import Stride
from sd_aanet.models.base import Features, FewShotNetwork, Queries, Supports
from sd_aanet.models.functional import masked_average_pool, resize


class CosinePrototype(FewShotNetwork):
    """Foreground and background prototypes; each position of the query takes the nearer one. Nothing is learnt.

    Args:
        backbone, stride_on, backbone_trainable, backbone_norm: see `FewShotNetwork`.
        stage: whose features are compared, 2 or 3.

    Raises:
        ConfigError: another stage, or what `FewShotNetwork` raises.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        stride_on: Stride = "3x3",
        stage: int = 3,
        backbone_trainable: bool = False,
        backbone_norm: str = "frozen",
    ) -> None:
        if stage not in (2, 3):
            raise ConfigError(f"stage {stage} has no features to compare: choose 2 or 3")
        super().__init__(backbone, stride_on, None, backbone_trainable, backbone_norm)
        first = self.backbone.channels[1]  # the mid features are stage 3, then stage 2
        self.channels = slice(0, first) if stage == 3 else slice(first, None)

    def encode_queries(self, features: Features) -> Queries:
        """See `FewShotNetwork.encode_queries`."""
        return Queries(features.mid[:, self.channels])  # (N, C, h, w)

    def encode_supports(self, features: Features, foreground: Tensor) -> Supports:
        """See `FewShotNetwork.encode_supports`; a prototype of the background, then one of the class."""
        s = features.mid[:, self.channels]  # (N, C, h, w)
        mask = resize(foreground[:, None], (s.shape[-2], s.shape[-1]))  # (N, 1, h, w)
        return Supports(torch.stack([masked_average_pool(s, 1 - mask), masked_average_pool(s, mask)], 1))  # (N, 2, C)

    def compare(
        self,
        queries: Queries,
        prototypes: Tensor,
        prior: Tensor | None,
        size: tuple[int, int],
        maps: Tensor | None = None,
    ) -> Prediction:
        """See `FewShotNetwork.compare`; the logits are cosines."""
        both = F.normalize(prototypes.mean(1), dim=-1)  # (B, 2, C)
        q = F.normalize(queries.features.to(both.dtype), dim=1)  # (B, C, h, w)
        cosine = torch.einsum("bchw,bpc->bphw", q, both)  # (B, 2, h, w)
        return Prediction(
            logits=resize(cosine, size),
            auxiliary_logits=(),
            support_logits=None,
            attention=None,
            prior=None,
            prototype=both[:, 1],
            support_prototypes=prototypes[:, :, 1],
            reweighting=None,
            query_features=queries.features,
        )
