"""The losses of SD-AANet: segmentation, self-distillation, and supervised attention (method: steps 6 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.errors import ConfigError
from sd_aanet.models.parts.functional import cross_entropy, masked_average_pool, wide
from sd_aanet.models.sd_aanet.sdpm import VARIANTS

if TYPE_CHECKING:
    from sd_aanet.models.sd_aanet.network import SDAANetPrediction

TEACHERS = ("separate", "integral")
PUBLISHED_FACTOR = 0.9
"""The published distillation's own factor, beside T^2 and alpha."""


class Distillation(nn.Module):
    """Self-distillation of the support's prototypes from one that has seen the query's mask (paper, SDPM).

    The published loss: teacher softmax((p_q + p~_k) / 2T) with p_q pooled from the un-reweighted query, student
    log-softmax(p~_k / T), times 0.9 T^2. The paper's: teacher the mean of softmax p~_k and softmax p~_q, with p~_q
    pooled from the reweighted query, student softmax p~_k, T = 1. Both are KL divergences summed over batch and
    channels and divided by B * C, so that alpha means one thing, and averaged over the K shots.

    Args:
        variant: "published" or "paper".
        temperature: T; None takes the variant's own (5 or 1).
        detach_teacher: stop the gradient at the teacher; None takes the variant's own (no, yes).
        teacher: for the paper's variant at K > 1. "separate": each shot reweights the query on its own, K teachers.
            "integral": their mean does, and one teacher, with the mean of the shots' softmax, serves all.

    Raises:
        ConfigError: an unknown variant or teacher.
    """

    def __init__(
        self,
        variant: str = "published",
        temperature: float | None = None,
        detach_teacher: bool | None = None,
        teacher: str = "separate",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(f"variant '{variant}' is unknown: choose one of {', '.join(VARIANTS)}")
        if teacher not in TEACHERS:
            raise ConfigError(f"teacher '{teacher}' is unknown: choose one of {', '.join(TEACHERS)}")
        self.published = variant == "published"
        default = 5.0 if self.published else 1.0
        self.temperature = default if temperature is None else temperature
        self.detach_teacher = (not self.published) if detach_teacher is None else detach_teacher
        self.teacher = teacher

    def forward(self, q: Tensor, prototypes: Tensor, reweighting: Tensor, query_mask: Tensor) -> Tensor:
        """A scalar.

        Args:
            q: (B, C, h, w), the projected query before any reweighting.
            prototypes: (B, K, C), the supports' reweighted prototypes.
            reweighting: (B, K, C), SDPM's weights u_k.
            query_mask: (B, S, S) of 0, 1 and 255.
        """
        students = prototypes.to(wide(q))  # (B, K, C)
        u = reweighting.to(wide(q))  # (B, K, C)
        mask = F.interpolate((query_mask == 1)[:, None].to(wide(q)), q.shape[-2:], mode="nearest")  # (B, 1, h, w)
        p_q = masked_average_pool(q, mask)[:, None]  # (B, 1, C)
        t = self.temperature
        # Logarithms throughout: a share that underflows to 0 has a gradient that is no number.
        if self.published:
            teacher = F.log_softmax((p_q + students) / (2 * t), -1)  # (B, K, C)
        elif self.teacher == "separate":
            # Pooling is linear in each channel: the pooled reweighted query is the reweighted pooled query.
            teacher = torch.logaddexp(F.log_softmax(students / t, -1), F.log_softmax(u * p_q / t, -1))  # (B, K, C)
            teacher = teacher - math.log(2)
        else:
            of_supports = F.log_softmax(students / t, -1).logsumexp(1, keepdim=True)  # (B, 1, C)
            of_query = F.log_softmax(u.mean(1, keepdim=True) * p_q / t, -1)  # (B, 1, C)
            teacher = torch.logaddexp(of_supports - math.log(students.shape[1]), of_query) - math.log(2)
        if self.detach_teacher:
            teacher = teacher.detach()
        teacher = teacher.expand_as(students)
        student = F.log_softmax(students / t, -1)  # (B, K, C)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).mean()  # over B, K and C
        return divergence * t**2 * (PUBLISHED_FACTOR if self.published else 1.0)


class SDAANetLoss(nn.Module):
    """CE(main) + mean over scales CE(auxiliary) + alpha * distillation + beta * support; CE ignores 255.

    Args:
        alpha: weight of the distillation (paper: 50).
        beta: weight of the supports' segmentation (paper: 0.5).
        auxiliary: weight of the auxiliary logits' mean (1).
        distillation: arguments of `Distillation`.

    Attributes:
        weights: of the terms, by name.
    """

    def __init__(self, alpha: float = 50.0, beta: float = 0.5, auxiliary: float = 1.0, **distillation: Any) -> None:
        super().__init__()
        self.weights: Mapping[str, float] = {"auxiliary": auxiliary, "distillation": alpha, "support": beta}
        self.distillation = Distillation(**distillation)

    def forward(
        self, prediction: SDAANetPrediction, query_mask: Tensor, way_mask: Tensor, support_mask: Tensor
    ) -> dict[str, Tensor]:
        """The terms before their weights, without those of parts that the network does not have.

        Args:
            prediction: of the network in train mode.
            query_mask: (B, S, S) int64 in 0..N and 255.
            way_mask: (BN, S, S) int64 in {0, 1, 255}, of each class on its own.
            support_mask: (BN, K, S, S) int64 in {0, 1, 255}.
        """
        terms = {"main": cross_entropy(prediction.logits, query_mask)}
        if prediction.auxiliary_logits:
            each = [cross_entropy(logits, query_mask) for logits in prediction.auxiliary_logits]
            terms["auxiliary"] = torch.stack(each).mean()
        if prediction.reweighting is not None:
            q, prototypes = prediction.query_features, prediction.support_prototypes
            assert q is not None
            assert prototypes is not None
            terms["distillation"] = self.distillation(q, prototypes, prediction.reweighting, way_mask)
        if prediction.support_logits is not None:
            shots = zip(prediction.support_logits.unbind(1), support_mask.unbind(1), strict=True)
            terms["support"] = torch.stack([cross_entropy(logits, mask) for logits, mask in shots]).mean()
        return terms
