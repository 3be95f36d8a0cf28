"""What every method here shares: a backbone, how its features are made, and the way from an episode to a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from sd_aanet.episode import Prediction, check_size
from sd_aanet.errors import ConfigError
from sd_aanet.models.backbone import Backbone, Stride, build_backbone, folded
from sd_aanet.models.functional import resize
from sd_aanet.models.prior import Columns, prior_masks

CPU_POSITIONS = 4096
"""Of the feature maps that go through the backbone together on a CPU: no activation then exceeds the 32 MB from which
on the C library takes every tensor's memory from the system anew, which zeroes it first."""


@dataclass(frozen=True)
class Features:
    """What the backbone says of N images.

    Attributes:
        mid: (N, C3 + C2, h, w), stages 3 and 2, for the head.
        high: for each, (C, h, w), for the prior mask; None where that is off.
    """

    mid: Tensor
    high: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Queries:
    """N query pictures as `FewShotNetwork.compare` takes them: whatever depends on the picture alone.

    Attributes:
        features: (N, C, h, w), projected.
        high: for each, (C4, h, w), for the prior mask; None where that is off.
        affinity: (N, 4 C, h, w), the share of `features` in SAAM's first convolution; None without SAAM.
    """

    features: Tensor
    high: tuple[Tensor, ...] | None = None
    affinity: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Queries:
        """What `FewShotNetwork.compare` needs of some of the pictures, each any number of times."""
        chosen = list(rows)
        return Queries(self.features[chosen], None, None if self.affinity is None else self.affinity[chosen])


@dataclass(frozen=True)
class Supports:
    """N labelled pictures as `FewShotNetwork.compare` takes them: whatever depends on picture and mask.

    Attributes:
        prototypes: (N, C); (N, 2, C) where there is one of the background, too.
        columns: for each picture, the high features of its foreground, for the prior mask; empty where that is off.
        maps: (N, C, h, w), projected; only in training, whose losses look at them again.
    """

    prototypes: Tensor
    columns: tuple[Columns, ...] = ()
    maps: Tensor | None = None

    def __iter__(self) -> Iterator[Supports]:
        """Each picture on its own."""
        for i, prototype in enumerate(self.prototypes):
            # A clone, since a view would keep the whole batch alive.
            yield Supports(prototype[None].clone(), self.columns[i : i + 1])


class FewShotNetwork(nn.Module, ABC):
    """A backbone, and a head that a subclass gives.

    The query's mask is no input: it goes to the losses (`training.losses`) beside the `Prediction`.

    The head comes in three parts, because a picture takes part in many episodes: `encode_queries` and
    `encode_supports` are done once a picture, `compare` once an episode. `head` does all three.

    Args:
        backbone: a name of `models.backbone.BACKBONES`.
        stride_on: which convolution of a bottleneck carries the stride.
        prior_stage: the stage (2, 3, 4) whose features make the prior mask; None where there is none. Stage 4 exists
            only where this is 4.
        backbone_trainable: train the backbone's weights.
        backbone_norm: "frozen" keeps the backbone's batch norms on their running statistics (the field's way since),
            "batch" lets them run in train mode, as the published training did even with frozen weights.

    Raises:
        ConfigError: a name or value that is not one of those.
    """

    def __init__(
        self,
        backbone: str,
        stride_on: Stride,
        prior_stage: int | None,
        backbone_trainable: bool = False,
        backbone_norm: str = "frozen",
    ) -> None:
        super().__init__()
        if prior_stage not in (2, 3, 4, None):
            raise ConfigError(f"prior_stage {prior_stage} does not exist: choose 2, 3 or 4")
        if backbone_norm not in ("frozen", "batch"):
            raise ConfigError(f"backbone_norm '{backbone_norm}' is unknown: choose frozen or batch")
        self.backbone = build_backbone(backbone, stride_on)
        self.prior_stage = prior_stage
        if prior_stage != 4:
            self.backbone.drop_stage4()
        self.backbone_trainable = backbone_trainable
        self.backbone_norm = backbone_norm
        self.backbone.requires_grad_(backbone_trainable)
        self._folded: tuple[object, Backbone] | None = None  # within a tuple, it is no submodule with weights to save
        self.train()  # a new module is in train mode without anybody having called `train`, which freezes the norms

    @abstractmethod
    def encode_queries(self, features: Features) -> Queries:
        """What the head makes of query pictures alone."""

    @abstractmethod
    def encode_supports(self, features: Features, foreground: Tensor) -> Supports:
        """What the head makes of labelled pictures alone.

        Args:
            features: of N supports; `high` made with the masks.
            foreground: (N, S, S) in {0, 1}, their masks.
        """

    def prior(self, queries: Queries, columns: Sequence[Sequence[Columns]]) -> Tensor | None:
        """The prior mask of B episodes: the mean of what each shot gives.

        Args:
            queries: B.
            columns: for each, those of its K supports.

        Returns:
            (B, 1, h, w) in [0, 1]; None where the prior is off.
        """
        if queries.high is None:
            return None
        with self.no_gradient_of_frozen():
            episodes = zip(queries.high, columns, strict=True)
            return torch.stack([prior_masks(high, shots).mean(0, keepdim=True) for high, shots in episodes])

    @abstractmethod
    def compare(
        self,
        queries: Queries,
        prototypes: Tensor,
        prior: Tensor | None,
        size: tuple[int, int],
        maps: Tensor | None = None,
    ) -> Prediction:
        """Segment the queries of B episodes.

        Args:
            queries: B; their high features are not looked at.
            prototypes: (B, K, C) or (B, K, 2, C), see `Supports`.
            prior: (B, 1, h, w), see there.
            size: (H, W) of the logits.
            maps: (B, K, C, h, w), see `Supports`.
        """

    def head(self, query: Features, support: Features, foreground: Tensor) -> Prediction:
        """Everything after the backbone.

        Args:
            query: features of B queries.
            support: features of B * K supports, shots innermost.
            foreground: (B, K, S, S) in {0, 1}, the supports' masks.
        """
        shots = (foreground.shape[0], foreground.shape[1])
        queries, supports = self.encode_queries(query), self.encode_supports(support, foreground.flatten(0, 1))
        columns = [supports.columns[i : i + shots[1]] for i in range(0, len(supports.columns), shots[1])]
        return self.compare(
            queries,
            supports.prototypes.unflatten(0, shots),
            self.prior(queries, columns),
            (foreground.shape[-2], foreground.shape[-1]),
            None if supports.maps is None else supports.maps.unflatten(0, shots),
        )

    def train(self, mode: bool = True) -> Self:
        """Switch modes; a backbone with frozen batch norms stays in eval mode, so that its statistics stand still."""
        super().train(mode)
        if self.backbone_norm == "frozen":
            self.backbone.eval()
        return self

    def no_gradient_of_frozen(self) -> AbstractContextManager[None]:
        """No gradient for what a frozen backbone makes, the prior mask with it; where it trains, through all of it."""
        return nullcontext() if self.backbone_trainable else torch.no_grad()

    def mid(self, image: Tensor) -> Tensor:
        """Stages 3 and 2 of N images, all that depends on the picture alone: (N, 3, S, S) -> (N, C3 + C2, h, w)."""
        with self.no_gradient_of_frozen():
            backbone, mids = self._fastest(), []
            for part in self._parts(image, image[0, 0].numel() // 64):
                stage2, stage3 = backbone.stages23(part)  # (n, C2, h, w), (n, C3, h, w)
                mids.append(torch.cat([stage3, stage2], 1))  # (n, C3 + C2, h, w)
            return torch.cat(mids)

    def high(self, mid: Tensor, foreground: Tensor | None = None) -> tuple[Tensor, ...] | None:
        """The prior's features, made from the mid ones.

        Args:
            mid: (N, C3 + C2, h, w).
            foreground: (N, S, S) in {0, 1} for supports, whose stage 3 it multiplies; None for queries.

        Returns:
            For each, (C, h, w); None where the prior is off.
        """
        if self.prior_stage is None:
            return None
        with self.no_gradient_of_frozen():
            stage3: Tensor = mid[:, : self.backbone.channels[1]]
            if self.prior_stage < 4:
                return (mid[:, self.backbone.channels[1] :] if self.prior_stage == 2 else stage3).unbind()
            if foreground is not None:
                grid = (mid.shape[-2], mid.shape[-1])
                stage3 = stage3 * resize(foreground[:, None], grid).to(stage3.dtype)  # (N, C3, h, w)
            backbone = self._fastest()
            parts = self._parts(stage3, stage3[0, 0].numel())
            return tuple(chain.from_iterable(backbone.stage4(part).unbind() for part in parts))  # (C4, h, w) each

    def _fastest(self) -> Backbone:
        """The backbone, its batch norms folded where they stand still and no gradient is asked for."""
        if self.backbone.training or torch.is_grad_enabled():
            return self.backbone
        # Whoever loads, moves or changes weights changes one of these; inference tensors cannot be changed.
        now = tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in self.backbone.state_dict().values())
        if self._folded is None or self._folded[0] != now:
            self._folded = now, folded(self.backbone)
        return self._folded[1]

    def _parts(self, x: Tensor, positions: int) -> Sequence[Tensor]:
        """N pictures in the parts that the backbone takes at once, where each picture is on its own.

        Args:
            x: (N, ...).
            positions: h * w of a feature map.
        """
        if x.device.type != "cpu" or self.backbone.training or torch.is_grad_enabled():
            return (x,)
        parts: tuple[Tensor, ...] = x.split(max(1, CPU_POSITIONS // positions))
        return parts

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
            mids = torch.stack([f.mid for f in shots], 1).flatten(0, 1)
            highs = zip(*(f.high for f in shots if f.high is not None), strict=True)  # by episode, the shots of each
            return of_query, Features(mids, None if of_query.high is None else tuple(chain.from_iterable(highs)))
        # Otherwise every image is on its own, and one pass serves all; the queries' stage 3 is multiplied by one.
        mid = self.mid(torch.cat([query, support.flatten(0, 1)]))  # (B + BK, C3 + C2, h, w)
        high = self.high(mid, torch.cat([torch.ones_like(query[:, 0]), foreground.flatten(0, 1)]))
        of_queries, of_supports = (None, None) if high is None else (high[:batch], high[batch:])
        return Features(mid[:batch], of_queries), Features(mid[batch:], of_supports)

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
