"""SD-AANet: the whole network, from images to logits.

Read `encode_queries`, `encode_supports` and `compare` as the paper's figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.models.backbone import Stride
from sd_aanet.models.base import Features, FewShotNetwork, Queries, Supports
from sd_aanet.models.decoder import Decoder
from sd_aanet.models.functional import masked_average_pool, resize
from sd_aanet.models.prior import foreground_columns
from sd_aanet.models.saam import SAAM
from sd_aanet.models.sdpm import SDPM

VARIANTS = {"paper": "mean", "published": "product"}
"""How the query is reweighted in each variant (see `SDPM`); their losses differ too (see `training.losses`)."""


class SDAANet(FewShotNetwork):
    """Few-shot segmentation of a query from K supports (arXiv 2108.06600).

    Args:
        backbone, stride_on, backbone_trainable, backbone_norm: see `FewShotNetwork`.
        channels: of the head; 256 in the paper.
        variant: "published" (the authors' network) or "paper" (the method as written).
        query_reweighting: overrides the variant's, see `SDPM`.
        sdpm, saam, prior: the parts, each of which can be left out. Without SDPM and SAAM the network is the paper's
            baseline (PFENet's head).
        prior_stage: the stage (2, 3, 4) whose features make the prior mask.
        bins: the decoder's scales, see `Decoder`.
        init: of the head's convolutions: "default" (torch's, as published), or "lecun" (normal, of variance 1 / fan-in:
            three times torch's), for a head without pretrained features before it. Classifiers keep torch's.
        bounded_attention: a sigmoid on SAAM's attention, which both variants leave out.
        dropout: scales every dropout rate; 0 turns dropout off.

    Raises:
        ConfigError: a name or value that is not one of those.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        stride_on: Stride = "3x3",
        channels: int = 256,
        variant: str = "published",
        query_reweighting: str | None = None,
        sdpm: bool = True,
        saam: bool = True,
        prior: bool = True,
        prior_stage: int = 4,
        bins: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
        init: str = "default",
        bounded_attention: bool = False,
        backbone_trainable: bool = False,
        backbone_norm: str = "frozen",
        dropout: float = 1.0,
    ) -> None:
        super().__init__(backbone, stride_on, prior_stage if prior else None, backbone_trainable, backbone_norm)
        if variant not in VARIANTS:
            raise ConfigError(f"variant '{variant}' is unknown: choose one of {', '.join(VARIANTS)}")
        if init not in ("default", "lecun"):
            raise ConfigError(f"init '{init}' is unknown: choose default or lecun")
        mid = self.backbone.channels[0] + self.backbone.channels[1]
        self.project_query = nn.Conv2d(mid, channels, 1, bias=False)
        self.project_support = nn.Conv2d(mid, channels, 1, bias=False)
        self.dropout = nn.Dropout2d(0.5 * dropout)
        self.sdpm = SDPM(channels, query_reweighting or VARIANTS[variant]) if sdpm else None
        self.saam = SAAM(channels, 0.1 * dropout, bounded_attention) if saam else None
        self.decoder = Decoder(channels, int(prior) + int(saam), tuple(bins), 0.1 * dropout)
        if init == "lecun":
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d) and not name.startswith("backbone.") and module.out_channels > 2:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")

    def encode_queries(self, features: Features) -> Queries:
        """See `FewShotNetwork.encode_queries` (method: Head, steps 1 and 4)."""
        q = self.dropout(F.relu(self.project_query(features.mid)))  # (N, C, h, w)
        affinity = None if self.saam is None else self.saam.extractor.on_feature(q)  # (N, 4C, h, w)
        return Queries(q, features.high, affinity)

    def encode_supports(self, features: Features, foreground: Tensor) -> Supports:
        """See `FewShotNetwork.encode_supports` (method: Head, steps 1 and 2)."""
        mask = resize(foreground[:, None], (features.mid.shape[-2], features.mid.shape[-1]))  # (N, 1, h, w)
        s = self.dropout(F.relu(self.project_support(features.mid)))  # (N, C, h, w)
        p = masked_average_pool(s, mask)  # (N, C)
        columns = () if features.high is None else foreground_columns(features.high, mask)
        return Supports(p, columns, s if self.training else None)

    def compare(
        self,
        queries: Queries,
        prototypes: Tensor,
        prior: Tensor | None,
        size: tuple[int, int],
        maps: Tensor | None = None,
    ) -> Prediction:
        """See `FewShotNetwork.compare` (method: Head, steps 3 to 7)."""
        q, p = queries.features, prototypes  # (B, C, h, w), (B, K, C)
        guides: list[Tensor] = [] if prior is None else [prior]
        attention = support_logits = None
        if self.saam is not None:
            assert queries.affinity is not None
            if maps is not None:
                # One shot at a time, then the query: the extractor's batch norms see the batches of the method.
                each = [self.saam.segment_support(s, p[:, k]) for k, s in enumerate(maps.unbind(1))]
                support_logits = torch.stack([resize(logits, size) for logits in each], 1)  # (B, K, 2, S, S)
            attention = self.saam.attend(queries.affinity, p.mean(1))  # (B, 1, h, w)
            guides.append(attention)

        reweighting, support_prototypes, decoded = None, p, q
        if self.sdpm is not None:
            reweighting = self.sdpm.reweighting(p)  # (B, K, C)
            support_prototypes = reweighting * p  # (B, K, C)
            decoded = q * self.sdpm.of_query(reweighting).to(q.dtype)[:, :, None, None]  # (B, C, h, w)
        prototype = support_prototypes.mean(1)  # (B, C)
        logits, auxiliary = self.decoder(decoded, prototype, guides, size)

        return Prediction(
            logits=logits,
            auxiliary_logits=auxiliary,
            support_logits=support_logits,
            attention=attention,
            prior=prior,
            prototype=prototype,
            support_prototypes=support_prototypes,
            reweighting=reweighting,
            query_features=q,
        )
