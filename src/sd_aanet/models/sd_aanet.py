"""SD-AANet: the whole network, from images to logits. Read `head` as the paper's figure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.models.backbone import Stride, build_backbone
from sd_aanet.models.decoder import Decoder
from sd_aanet.models.functional import masked_average_pool, resize
from sd_aanet.models.prior import prior_mask
from sd_aanet.models.saam import SAAM
from sd_aanet.models.sdpm import SDPM

VARIANTS = {"paper": "mean", "published": "product"}
"""How the query is reweighted in each variant (see `SDPM`); their losses differ too (see `training.losses`)."""


@dataclass(frozen=True)
class Features:
    """What the backbone says of N images.

    Attributes:
        mid: (N, C3 + C2, h, w), stages 3 and 2, for the head.
        high: (N, C, h, w), for the prior mask; None where that is off.
    """

    mid: Tensor
    high: Tensor | None


def check_size(size: int) -> None:
    """Raise `ConfigError` unless `size` is 8n + 1, naming the nearest size that is."""
    if size % 8 != 1 or size < 17:
        nearest = max(17, 8 * round((size - 1) / 8) + 1)
        raise ConfigError(f"image size {size} is not 8n + 1: the nearest good size is {nearest}")


class SDAANet(nn.Module):
    """Few-shot segmentation of a query from K supports (arXiv 2108.06600).

    The query's mask is no input: it goes to the losses (`training.losses`) beside the `Prediction`.

    Args:
        backbone: a name of `models.backbone.BACKBONES`.
        stride_on: which convolution of a bottleneck carries the stride.
        channels: of the head; 256 in the paper.
        variant: "published" (the authors' network) or "paper" (the method as written).
        query_reweighting: overrides the variant's, see `SDPM`.
        sdpm, saam, prior: the parts, each of which can be left out. Without SDPM and SAAM the network is the paper's
            baseline (PFENet's head).
        prior_stage: the stage (2, 3, 4) whose features make the prior mask. Stage 4 exists only where this is 4.
        bins: the decoder's scales, see `Decoder`.
        bounded_attention: a sigmoid on SAAM's attention, which both variants leave out.
        backbone_trainable: train the backbone's weights.
        backbone_norm: "frozen" keeps the backbone's batch norms on their running statistics (the field's way since),
            "batch" lets them run in train mode, as the published training did even with frozen weights.
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
        bounded_attention: bool = False,
        backbone_trainable: bool = False,
        backbone_norm: str = "frozen",
        dropout: float = 1.0,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(f"variant '{variant}' is unknown: choose one of {', '.join(VARIANTS)}")
        if prior_stage not in (2, 3, 4):
            raise ConfigError(f"prior_stage {prior_stage} does not exist: choose 2, 3 or 4")
        if backbone_norm not in ("frozen", "batch"):
            raise ConfigError(f"backbone_norm '{backbone_norm}' is unknown: choose frozen or batch")
        self.backbone = build_backbone(backbone, stride_on)
        self.prior_stage = prior_stage if prior else None
        if self.prior_stage != 4:
            self.backbone.drop_stage4()
        self.backbone_trainable = backbone_trainable
        self.backbone_norm = backbone_norm
        self.backbone.requires_grad_(backbone_trainable)

        mid = self.backbone.channels[0] + self.backbone.channels[1]
        self.project_query = nn.Conv2d(mid, channels, 1, bias=False)
        self.project_support = nn.Conv2d(mid, channels, 1, bias=False)
        self.dropout = nn.Dropout2d(0.5 * dropout)
        self.sdpm = SDPM(channels, query_reweighting or VARIANTS[variant]) if sdpm else None
        self.saam = SAAM(channels, 0.1 * dropout, bounded_attention) if saam else None
        self.decoder = Decoder(channels, int(prior) + int(saam), tuple(bins), 0.1 * dropout)

    def train(self, mode: bool = True) -> Self:
        """Switch modes; a backbone with frozen batch norms stays in eval mode, so that its statistics stand still."""
        super().train(mode)
        if self.backbone_norm == "frozen":
            self.backbone.eval()
        return self

    # The backbone ----------------------------------------------------------------------------------------------------

    def mid(self, image: Tensor) -> Tensor:
        """Stages 3 and 2 of N images, all that depends on the picture alone: (N, 3, S, S) -> (N, C3 + C2, h, w)."""
        with nullcontext() if self.backbone_trainable else torch.no_grad():
            stage2, stage3 = self.backbone.stages23(image)  # (N, C2, h, w), (N, C3, h, w)
            return torch.cat([stage3, stage2], 1)

    def high(self, mid: Tensor, foreground: Tensor | None = None) -> Tensor | None:
        """The prior's features, made from the mid ones.

        Args:
            mid: (N, C3 + C2, h, w).
            foreground: (N, S, S) in {0, 1} for supports, whose stage 3 it multiplies; None for queries.

        Returns:
            (N, C, h, w) without a gradient, since the prior mask has none; None where the prior is off.
        """
        if self.prior_stage is None:
            return None
        with torch.no_grad():
            stage3, stage2 = mid.split([self.backbone.channels[1], self.backbone.channels[0]], 1)
            if self.prior_stage < 4:
                return (stage2 if self.prior_stage == 2 else stage3).detach()
            if foreground is not None:
                grid = (mid.shape[-2], mid.shape[-1])
                stage3 = stage3 * resize(foreground[:, None], grid).to(stage3.dtype)  # (N, C3, h, w)
            return self.backbone.stage4(stage3)

    def extract(self, query: Tensor, support: Tensor, foreground: Tensor) -> tuple[Features, Features]:
        """Backbone features of queries and supports.

        Args:
            query: (B, 3, S, S).
            support: (B, K, 3, S, S).
            foreground: (B, K, S, S) in {0, 1}.

        Returns:
            The features of B queries and of B * K supports, shots innermost.
        """
        batch, shot = support.shape[:2]
        if self.backbone.training:
            # Batch norms in train mode see their batch: the query alone, then each shot alone, as in the published
            # training. Anything else would be another network.
            mid = self.mid(query)
            of_query = Features(mid, self.high(mid))
            shots = []
            for k in range(shot):
                mid = self.mid(support[:, k])
                shots.append(Features(mid, self.high(mid, foreground[:, k])))
            highs = [f.high for f in shots if f.high is not None]
            mids = torch.stack([f.mid for f in shots], 1).flatten(0, 1)
            return of_query, Features(mids, torch.stack(highs, 1).flatten(0, 1) if highs else None)
        # Otherwise every image is on its own, and one pass serves all; the queries' stage 3 is multiplied by one.
        mid = self.mid(torch.cat([query, support.flatten(0, 1)]))  # (B + BK, C3 + C2, h, w)
        high = self.high(mid, torch.cat([torch.ones_like(query[:, 0]), foreground.flatten(0, 1)]))
        parts = [batch, batch * shot]
        of_queries, of_supports = mid.split(parts)
        high_queries, high_supports = (None, None) if high is None else high.split(parts)
        return Features(of_queries, high_queries), Features(of_supports, high_supports)

    # The head --------------------------------------------------------------------------------------------------------

    def head(self, query: Features, support: Features, foreground: Tensor) -> Prediction:
        """Everything after the backbone (method: Head, steps 1 to 7).

        Args:
            query: features of B queries.
            support: features of B * K supports, shots innermost.
            foreground: (B, K, S, S) in {0, 1}, the supports' masks.
        """
        batch, shot = foreground.shape[:2]
        size = (foreground.shape[-2], foreground.shape[-1])
        grid = (query.mid.shape[-2], query.mid.shape[-1])
        mask = resize(foreground, grid).flatten(0, 1)[:, None]  # (BK, 1, h, w)

        q = self.dropout(F.relu(self.project_query(query.mid)))  # (B, C, h, w)
        s = self.dropout(F.relu(self.project_support(support.mid)))  # (BK, C, h, w)
        p = masked_average_pool(s, mask).unflatten(0, (batch, shot))  # (B, K, C)

        guides: list[Tensor] = []
        prior = None
        if query.high is not None and support.high is not None:
            with torch.no_grad():
                shots = (batch, shot)
                prior = prior_mask(query.high, support.high.unflatten(0, shots), mask.unflatten(0, shots))
            guides.append(prior)  # (B, 1, h, w)

        attention = support_logits = None
        if self.saam is not None:
            if self.training:
                # One shot at a time, then the query: the extractor's batch norms see the batches of the method.
                by_shot = s.unflatten(0, (batch, shot))
                each = [self.saam.segment_support(by_shot[:, k], p[:, k]) for k in range(shot)]
                support_logits = torch.stack([resize(logits, size) for logits in each], 1)  # (B, K, 2, S, S)
            attention = self.saam.attend(q, p.mean(1))  # (B, 1, h, w)
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

    def forward(self, query: Tensor, support: Tensor, support_mask: Tensor) -> Prediction:
        """Segment B queries, each from its K supports.

        Args:
            query: (B, 3, S, S), ImageNet-normalised RGB, S = 8n + 1.
            support: (B, K, 3, S, S), any K.
            support_mask: (B, K, S, S), 1 = the class; 0 and 255 count as everything else.

        Raises:
            ConfigError: S is not 8n + 1.
        """
        check_size(query.shape[-1])
        foreground = (support_mask == 1).to(query.dtype)  # (B, K, S, S)
        return self.head(*self.extract(query, support, foreground), foreground)
