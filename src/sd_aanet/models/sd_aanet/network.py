"""SD-AANet: the whole network, from images to logits.

Read `encode_query`, `encode_support`, `pair` and `compare` as the paper's figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Episode, Prediction, Rows
from sd_aanet.errors import ConfigError
from sd_aanet.models.parts.decoder import Decoder
from sd_aanet.models.parts.features import High, Mid, MidHigh
from sd_aanet.models.parts.functional import masked_average_pool, resize, share_of
from sd_aanet.models.parts.prior import Columns, Sought, foreground_columns, prior_mask, prior_masks, sought
from sd_aanet.models.sd_aanet.losses import TEACHERS, SDAANetLoss
from sd_aanet.models.sd_aanet.saam import SAAM
from sd_aanet.models.sd_aanet.sdpm import SDPM, VARIANTS
from sd_aanet.rules import SWITCH, number, numbers, one_of, or_null, text, whole


@dataclass(frozen=True)
class Queries(Rows):
    """N query pictures.

    Attributes:
        features: (N, C, h, w), projected.
        affinity: (N, 4 C, h, w), the share of `features` in SAAM's first convolution; None without SAAM.
        high: for each its high features; None where the prior is off.
    """

    features: Tensor
    affinity: Tensor | None
    high: tuple[Sought, ...] | None


@dataclass(frozen=True)
class Supports(Rows):
    """N labelled pictures, or B support sets.

    Attributes:
        prototypes: (N, C), or (B, K, C).
        columns: for each picture the high features of its foreground; None where the prior is off, and of sets.
        maps: (N, C, h, w), or (B, K, C, h, w), projected; only in training, whose losses look at them again.
    """

    prototypes: Tensor
    columns: tuple[Columns, ...] | None
    maps: Tensor | None


@dataclass(frozen=True)
class Priors(Rows):
    """N prior masks, (N, h, w) in [0, 1]."""

    masks: Tensor


@dataclass(frozen=True)
class SDAANetPrediction(Prediction):
    """What the losses need beside the logits. h, w: the side of the feature maps.

    Attributes:
        auxiliary_logits: one (B, 2, S, S) a scale of the decoder; empty outside training.
        support_logits: (B, K, 2, S, S), SAAM's segmentation of the supports; None outside training or without SAAM.
        support_prototypes: (B, K, C), one a shot, reweighted where SDPM is on.
        reweighting: (B, K, C) in [0.5, 1], SDPM's channel weights u_k = (v_k + 1) / 2; None without SDPM.
        query_features: (B, C, h, w), the projected query before any reweighting.
    """

    auxiliary_logits: tuple[Tensor, ...] = ()
    support_logits: Tensor | None = None
    support_prototypes: Tensor | None = None
    reweighting: Tensor | None = None
    query_features: Tensor | None = None


class SDAANet(MidHigh[Queries, Supports, Supports, Priors]):
    """Few-shot segmentation of a query from K supports (arXiv 2108.06600).

    Args:
        backbone: see there.
        channels: of the head; 256 in the paper.
        variant: "published" (the authors' network) or "paper" (the method as written).
        query_reweighting: overrides the variant's, see `SDPM`.
        sdpm, saam, prior: the parts, each of which can be left out. Without SDPM and SAAM the network is the paper's
            baseline (PFENet's head).
        bins: the decoder's scales, see `Decoder`.
        init: of the head's convolutions: "default" (torch's, as published), or "lecun" (normal, of variance 1 / fan-in:
            three times torch's), for a head without pretrained features before it. Classifiers keep torch's.
        bounded_attention: a sigmoid on SAAM's attention, which both variants leave out.
        dropout: scales every dropout rate; 0 turns dropout off.
        loss: arguments of `SDAANetLoss` but `variant`.

    Raises:
        ConfigError: a name or value that is not one of those.
    """

    name = "sd_aanet"
    rules: ClassVar = {
        "channels": whole(1, 64),
        **dict.fromkeys(("sdpm", "saam", "prior", "bounded_attention"), SWITCH),
        "bins": numbers("[1.0,0.5,0.25,0.125]", most=1000),
        "dropout": number(1.0, most=2),
        "init": text("default"),
        "variant": text("published"),
        "query_reweighting": or_null(text("mean")),
        **{f"loss.{term}": number(1.0) for term in ("alpha", "beta", "auxiliary")},
        "loss.temperature": or_null(number(1.0, zero=False)),
        "loss.detach_teacher": or_null(SWITCH),
        "loss.teacher": one_of(*TEACHERS),
    }
    ways = 1
    """N of `SDAANetMulti`, which compares N classes at once."""

    def __init__(
        self,
        backbone: Backbone,
        channels: int = 256,
        variant: str = "published",
        query_reweighting: str | None = None,
        sdpm: bool = True,
        saam: bool = True,
        prior: bool = True,
        bins: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
        init: str = "default",
        bounded_attention: bool = False,
        dropout: float = 1.0,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, prior)
        if variant not in VARIANTS:
            raise ConfigError(f"variant '{variant}' is unknown: choose one of {', '.join(VARIANTS)}")
        if init not in ("default", "lecun"):
            raise ConfigError(f"init '{init}' is unknown: choose default or lecun")
        self.variant = variant
        self.project_query = nn.Conv2d(self.mid_channels, channels, 1, bias=False)
        self.project_support = nn.Conv2d(self.mid_channels, channels, 1, bias=False)
        self.dropout = nn.Dropout2d(0.5 * dropout)
        self.sdpm = SDPM(channels, query_reweighting or VARIANTS[variant]) if sdpm else None
        self.saam = SAAM(channels, 0.1 * dropout, bounded_attention) if saam else None
        guides = self.ways * (int(prior) + int(saam))
        self.decoder = Decoder(channels, guides, tuple(bins), 0.1 * dropout, self.ways + 1)
        self.loss = SDAANetLoss(variant=variant, **(loss or {}))
        self.loss_weights = self.loss.weights
        # SAAM's first pool is a single cell: its batch norm needs two of them.
        self.least_batch = 2 if saam else 1
        if init == "lecun":
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d) and not name.startswith("backbone.") and module.out_channels > 2:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")

    @property
    def label(self) -> str:
        parts = {(True, True): "SD-AANet", (False, False): "baseline", (False, True): "without SDPM"}
        name = parts.get((self.sdpm is not None, self.saam is not None), "without SAAM")
        return f"{name} ({self.variant}){'' if self.high is not None else ', no prior'}"

    def encode_query(self, features: Mid, masked: High | None) -> Queries:
        """See `FewShotMethod.encode_query` (method: Head, steps 1 and 4)."""
        q = self.dropout(F.relu(self.project_query(features.mid)))  # (N, C, h, w)
        affinity = None if self.saam is None else self.saam.extractor.on_feature(q)  # (N, 4C, h, w)
        return Queries(q, affinity, None if masked is None else sought(masked.high))

    def encode_support(self, features: Mid, masked: High | None, mask: Tensor) -> Supports:
        """See `FewShotMethod.encode_support` (method: Head, steps 1 and 2)."""
        s = self.dropout(F.relu(self.project_support(features.mid)))  # (N, C, h, w)
        p = masked_average_pool(s, share_of(mask, 1, s))  # (N, C)
        columns = None if masked is None else foreground_columns(masked.high, share_of(mask, 1, masked.high[0][None]))
        return Supports(p, columns, s if self.training else None)

    def support_set(self, supports: Supports, shots: int) -> Supports:
        """See `FewShotMethod.support_set`; the shots stay apart, since SDPM reweights each."""
        maps = None if supports.maps is None else supports.maps.unflatten(0, (-1, shots))
        return Supports(supports.prototypes.unflatten(0, (-1, shots)), None, maps)

    def pair(self, queries: Queries, rows: Sequence[int], supports: Supports) -> Priors | None:
        """See `FewShotMethod.pair` (method: Head, step 5)."""
        if queries.high is None or supports.columns is None:
            return None
        with self.backbone.no_gradient():
            both = zip((queries.high[row] for row in rows), supports.columns, strict=True)
            return Priors(torch.stack([prior_mask(query, columns) for query, columns in both]))  # (N, h, w)

    def graph_pairs(self, queries: Mid, supports: Mid, mask: Tensor, shots: int) -> Priors | None:
        if self.high is None:
            return None
        q, s = self._high_maps(queries, None), self._high_maps(supports, mask)  # (B, C, h, w), (BK, C, h, w)
        each = q[:, None].expand(-1, shots, -1, -1, -1).flatten(0, 1)  # (BK, C, h, w)
        return Priors(prior_masks(each, s, share_of(mask, 1, s)))

    def compare(
        self, queries: Queries, sets: Supports, pairs: Priors | None, size: tuple[int, int]
    ) -> SDAANetPrediction:
        """See `FewShotMethod.compare` (method: Head, steps 3 to 7). N = 1 but for `SDAANetMulti`."""
        q, p = queries.features, sets.prototypes  # (B, C, h, w), (BN, K, C)
        maps: dict[str, Tensor] = {}
        if pairs is not None:
            maps["prior"] = self._side_by_side(pairs.masks.unflatten(0, (p.shape[0], -1)).mean(1))  # (B, N, h, w)
        support_logits = None
        if self.saam is not None:
            assert queries.affinity is not None
            if sets.maps is not None:
                # One shot at a time, then the query: the extractor's batch norms see the batches of the method.
                each = [self.saam.segment_support(s, p[:, k]) for k, s in enumerate(sets.maps.unbind(1))]
                support_logits = torch.stack([resize(logits, size) for logits in each], 1)  # (BN, K, 2, S, S)
            attention = self.saam.attend(self._for_each_way(queries.affinity), p.mean(1))  # (BN, 1, h, w)
            maps["attention"] = self._side_by_side(attention[:, 0])  # (B, N, h, w)

        reweighting, support_prototypes, decoded = None, p, q
        if self.sdpm is not None:
            reweighting = self.sdpm.reweighting(p)  # (BN, K, C)
            support_prototypes = reweighting * p  # (BN, K, C)
            weights = self._side_by_side(self.sdpm.of_query(reweighting)).mean(1)  # (B, C)
            decoded = q * weights.to(q.dtype)[:, :, None, None]  # (B, C, h, w)
        prototype = self.merge(self._side_by_side(support_prototypes.mean(1)))  # (B, C)
        logits, auxiliary = self.decoder(decoded, prototype, list(maps.values()), size)

        return SDAANetPrediction(
            logits=logits,
            maps=maps,
            embedding=prototype,
            auxiliary_logits=auxiliary,
            support_logits=support_logits,
            support_prototypes=support_prototypes,
            reweighting=reweighting,
            query_features=self._for_each_way(q),
        )

    def merge(self, prototypes: Tensor) -> Tensor:
        """The one prototype that the decoder gets of N: (B, N, C) -> (B, C)."""
        return prototypes[:, 0]

    def _for_each_way(self, x: Tensor) -> Tensor:
        """What belongs to a query, for each of its N classes: (B, ...) -> (BN, ...)."""
        return x if self.ways == 1 else x.repeat_interleave(self.ways, 0)

    def _side_by_side(self, x: Tensor) -> Tensor:
        """What belongs to N classes, beside one another: (BN, ...) -> (B, N, ...)."""
        return torch.unflatten(x, 0, (-1, self.ways))

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        assert isinstance(prediction, SDAANetPrediction)
        single = episode.one_way()  # the modules look at one class at a time
        terms: dict[str, Tensor] = self.loss(
            prediction, episode.query_mask, single.query_mask, single.support_mask[:, 0]
        )
        return terms


class SDAANetMulti(SDAANet):
    """SD-AANet for N classes at once (paper, Algorithm 1: its multi-class extension).

    Each class's examples go through SDPM and SAAM on their own; an MLP makes one prototype of the N, the N attention
    maps (and priors) stand beside the query's features, and the decoder has an output for each class.

    The paper is silent on some of it; chosen here: the MLP is N * C -> C -> C with a ReLU; the background has an
    output, too, so there are N + 1; the query is reweighted by the mean of what each class's examples ask for; K shots
    are averaged within a class; the order of the classes is drawn anew for each episode (`EpisodeSampler`).

    Args:
        ways: N, in training and whenever it is used.
        arguments: of `SDAANet`.
    """

    name = "sd_aanet_multi"
    rules = SDAANet.rules | {"ways": whole(1)}
    joint = True

    def __init__(self, backbone: Backbone, channels: int = 256, ways: int = 2, **arguments: Any) -> None:
        self.ways = ways
        super().__init__(backbone, channels, **arguments)
        self.merger = nn.Sequential(nn.Linear(ways * channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    @property
    def label(self) -> str:
        return f"{super().label}, {self.ways} classes at once"

    def compare(
        self, queries: Queries, sets: Supports, pairs: Priors | None, size: tuple[int, int]
    ) -> SDAANetPrediction:
        found = len(sets.prototypes) // len(queries)
        if found != self.ways:
            raise ConfigError(f"way={found}, but this network was made for {self.ways} classes: set way={self.ways}")
        return super().compare(queries, sets, pairs, size)

    def merge(self, prototypes: Tensor) -> Tensor:
        merged: Tensor = self.merger(prototypes.flatten(1))  # (B, C)
        return merged
