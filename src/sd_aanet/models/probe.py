"""A linear probe: a logistic regression fitted to the cells of the supports. Nothing is learnt before there are any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Prediction, Rows
from sd_aanet.models.base import surest
from sd_aanet.models.parts.features import Mapped, Maps
from sd_aanet.models.parts.functional import looped, resize, share_of
from sd_aanet.rules import SWITCH, check, number, or_null, texts, whole

BIAS = 3.0
"""The constant beside the features, whose weight makes the bias: so it is held back nine times less than the weights.
Free, it sees too little of an object that looks otherwise in the query; held back as they are, too much."""
TOLERANCE = 1e-6
"""A fit ends where the gradient's norm is this much of what it was at the start."""
NEWTON_STEPS = 50
"""At most; about ten are enough."""
CONJUGATE_STEPS = 500
"""At most, within a Newton step; about ten are enough."""
HALVINGS = 20
"""At most, of a Newton step that gains nothing; full steps are the rule."""
Search = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The state of a loop of the fit."""


@dataclass(frozen=True)
class Cells(Rows):
    """The cells of N examples that are not wholly ignored: n of them, a different number in each.

    Attributes:
        features: N times (n, C).
        shares: N times (n, 2), how much of the cell is the object and how much is something else; the rest is ignored.
    """

    features: tuple[Tensor, ...]
    shares: tuple[Tensor, ...]


@dataclass(frozen=True)
class Classifiers(Rows):
    """Of B support sets, for features that are not standardised: (B, C) and (B,), float32 or wider."""

    weight: Tensor
    bias: Tensor


class Probe(Mapped[Cells, Classifiers]):
    """Logistic regression on the cells of a support set, applied to those of the query.

    A cell of which a part is the object counts as that much of an object's cell and as that much less of another one;
    what is ignored counts as neither. Features are standardised by the support set's own mean and deviation. The fit
    is convex and goes to its optimum, so it depends neither on a start nor, but for rounding, on the order of shots.

    Args:
        backbone: see there.
        features: the outputs that it fits to, on the first one's grid; None for the backbone's mid ones.
        normalise: give each position of each output unit length before they are joined.
        balance: the object's cells are weighted by (cells of everything else / the object's) to this power: at 0 all
            cells weigh the same, at 1 both kinds do.
        l2: beside the weighted mean of the cells' losses, half the squared norm of the weights times l2 / K, K being
            the shots that show anything: the more of them, the more the cells are believed. The bias is held back,
            too (see `BIAS`), so that a set which shows but one kind has an optimum.
        cells: fitted to at most; of more, every so-manieth of each shot.

    Raises:
        ConfigError: an output that the backbone does not have, or a number out of its range.
    """

    name = "probe"
    label = "probe"
    rules: ClassVar = {
        "features": or_null(texts("[stage3,stage2]")),
        "normalise": SWITCH,
        "balance": number(0.75, most=1),
        "cells": whole(1, 20000),
        "l2": number(1.0, zero=False),  # without it, what can be separated has no optimum
    }
    trains = False
    adapts = True

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str] | str | None = None,
        normalise: bool = False,
        balance: float = 0.75,
        l2: float = 1.0,
        cells: int = 20_000,
    ) -> None:
        super().__init__(backbone, features, normalise)
        check({"balance": balance, "l2": l2, "cells": cells}, self.rules, "model.")
        self.balance = balance
        self.l2 = l2
        self.cells = cells

    def encode_support(self, features: Maps, masked: Any, mask: Tensor) -> Cells:
        shares = _shares(features, mask)  # (N, 2, h, w)
        counted = shares.sum(1) > 0  # (N, h, w)
        rows = zip(features.maps.permute(0, 2, 3, 1), shares.permute(0, 2, 3, 1), counted, strict=True)
        cells = [(feature[inside], share[inside]) for feature, share, inside in rows]  # (n, C), (n, 2) each
        return Cells(tuple(feature for feature, _ in cells), tuple(share for _, share in cells))

    def thinned(self, supports: Cells, shots: int) -> Cells:
        """Every so-manieth cell, where `cells` allows no more: a hundred examples take no more memory than a few."""
        rows = [_every(len(share), self.cells // shots, share.device) for share in supports.shares]
        features = tuple(one[some] for one, some in zip(supports.features, rows, strict=True))
        return Cells(features, tuple(one[some] for one, some in zip(supports.shares, rows, strict=True)))

    @torch.no_grad()
    def support_set(self, supports: Cells, shots: int) -> Classifiers:
        """See `FewShotMethod.support_set`; one fit a set."""
        weights, biases = [], []
        for first in range(0, len(supports), shots):
            weight, bias = self._fit(supports.select(range(first, first + shots)))
            weights.append(weight)
            biases.append(bias)
        return Classifiers(torch.stack(weights), torch.stack(biases))  # (B, C), (B,)

    def graph_set(self, supports: Maps, mask: Tensor, shots: int) -> Classifiers:
        """See `FewShotMethod.graph_set`; cells that the fit leaves out weigh nothing."""
        shares = _shares(supports, mask).permute(0, 2, 3, 1).flatten(1, 2)  # (K, hw, 2)
        counted = shares.sum(2) > 0  # (K, hw)
        count = counted.sum(1, keepdim=True)  # (K, 1)
        shown = (count > 0).sum().clamp(min=1)
        taken = counted & _is_every(counted.cumsum(1) - 1, count, torch.full_like(shown, self.cells) // shown)
        cells = supports.maps.permute(0, 2, 3, 1).flatten(0, 2).to(shares.dtype)  # (n, C)
        x = torch.cat([cells, torch.full_like(cells[:, :1], BIAS)], 1)  # (n, C + 1)
        weight, bias = self._solve(x, (shares * taken[:, :, None]).flatten(0, 1), shown)
        return Classifiers(weight[None], bias[None])

    def compare(self, queries: Maps, sets: Classifiers, pairs: Any, size: tuple[int, int]) -> Prediction:
        """See `FewShotMethod.compare`; the logits are 0 and z, whose softmax is the probability."""
        z = self.similarity(queries, sets)  # (B, 1, h, w)
        logits = resize(z, size)  # (B, 1, H, W)
        return Prediction(torch.cat([torch.zeros_like(logits), logits], 1), {"similarity": z}, sets.weight)

    def presence(self, prediction: Prediction) -> Tensor:
        """See `FewShotMethod.presence`: the probe's own, which falls where nothing looks like the supports."""
        return surest(prediction.maps["similarity"].float().sigmoid(), 0.03)

    def least_presence(self, left_out: Sequence[float]) -> float:
        """See `FewShotMethod.least_presence`; what is hard to find in its own supports is given more leave.

        Chosen on voc924 so that of a hundred pictures with the class about five fall below it (docs/results.md).
        """
        if not left_out:
            return 0.7
        mean = min(max(sum(left_out) / len(left_out), 1e-4), 1 - 1e-4)
        return 1 / (1 + math.exp(0.4 - 0.5 * math.log(mean / (1 - mean))))

    @staticmethod
    def similarity(queries: Maps, sets: Classifiers) -> Tensor:
        """The logit z of the object in each cell, (B, 1, h, w) float32 or wider."""
        with torch.autocast(queries.maps.device.type, enabled=False):
            maps = queries.maps.to(sets.weight.dtype)  # (B, C, h, w)
            z = torch.einsum("bchw,bc->bhw", maps, sets.weight) + sets.bias[:, None, None]  # (B, h, w)
        return z[:, None]  # (B, 1, h, w)

    def _fit(self, shots: Cells) -> tuple[Tensor, Tensor]:
        """The weights (C,) and the bias of one support set."""
        with torch.autocast(shots.features[0].device.type, enabled=False):
            shown = max(1, sum(len(share) > 0 for share in shots.shares))
            taken = [_every(len(share), self.cells // shown, share.device) for share in shots.shares]
            shares = torch.cat([share[rows] for share, rows in zip(shots.shares, taken, strict=True)])  # (n, 2)
            x = shares.new_full((len(shares), shots.features[0].shape[1] + 1), BIAS)  # (n, C + 1)
            torch.cat([f[rows].to(x.dtype) for f, rows in zip(shots.features, taken, strict=True)], out=x[:, :-1])
            return self._solve(x, shares, shown)

    def _solve(self, x: Tensor, shares: Tensor, shown: int | Tensor) -> tuple[Tensor, Tensor]:
        """The same, of cells (n, C + 1), the last column `BIAS`, which change in place, and their shares (n, 2)."""
        mean, deviation = _standardise(x[:, :-1], shares.sum(1))  # (C,) each
        positive, negative = self._weighted(shares)  # (n,) each
        solution = fit_logistic(x, positive, negative, self.l2 / shown)  # (C + 1,)
        weight = solution[:-1] / deviation  # (C,)
        return weight, BIAS * solution[-1] - weight @ mean

    def _weighted(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """What each cell weighs as the object and as everything else, (n,) each; all of it together is 1."""
        positive, negative = shares.unbind(1)
        both = positive.sum() * negative.sum() > 0
        ratio = torch.where(both, negative.sum() / positive.sum(), 1.0)
        positive = positive * ratio**self.balance
        total = (positive.sum() + negative.sum()).clamp(min=torch.finfo(shares.dtype).tiny)
        return positive / total, negative / total


def fit_logistic(x: Tensor, positive: Tensor, negative: Tensor, l2: float | Tensor) -> Tensor:
    """Logistic regression, the w that minimises sum(positive log(1 + e^-xw) + negative log(1 + e^xw)) + l2 / 2 |w|^2.

    Newton's method, its steps by conjugate gradients and only as exact as the progress asks for. The cells enter as
    two products with vectors a step, which no Hessian, made whole, is worth, be there more cells than features or less.

    Args:
        x: (n, D) float32 or float64.
        positive, negative: (n,), not below 0.
        l2: above 0.

    Returns:
        (D,).
    """
    weight, rounding = positive + negative, 4 * torch.finfo(x.dtype).eps

    def slope(w: Tensor, z: Tensor) -> Tensor:
        gradient: Tensor = (weight * z.sigmoid() - positive) @ x + l2 * w  # (D,)
        return gradient

    w, z = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[0])
    gradient = slope(w, z)
    first: Tensor = gradient.norm()

    def goes_on(w: Tensor, z: Tensor, value: Tensor, gradient: Tensor, gains: Tensor) -> Tensor:
        steep: Tensor = gradient.norm() > TOLERANCE * first
        return gains & steep

    def newton(w: Tensor, z: Tensor, value: Tensor, gradient: Tensor, gains: Tensor) -> Search:
        p, norm = z.sigmoid(), gradient.norm()  # (n,)
        exact = (norm / first).sqrt().clamp(max=0.25) * norm
        s, xs = _newton_step(x, weight * p * (1 - p), gradient, l2, exact)
        gain = gradient @ s

        def value_at(length: Tensor) -> Tensor:
            return _objective(w - length * s, z - length * xs, positive, negative, l2)

        def too_long(length: Tensor, found: Tensor) -> Tensor:
            return ~(found <= value - 1e-4 * length * gain + rounding * value.abs())

        def halved(length: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
            return length / 2, value_at(length / 2)

        whole = torch.ones_like(value)
        length, value = looped(too_long, halved, (whole, value_at(whole)), HALVINGS)
        w, z = w - length * s, z - length * xs
        return w, z, value, slope(w, z), gain > rounding * value.abs()  # or this dtype can tell no more

    value = _objective(w, z, positive, negative, l2)
    return looped(goes_on, newton, (w, z, value, gradient, first >= 0), NEWTON_STEPS)[0]


def _newton_step(
    x: Tensor, curvature: Tensor, gradient: Tensor, l2: float | Tensor, exact: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve for s: (x^T curvature x + l2) s = gradient, but for a norm of `exact`; s and x s: (D,), (n,)."""
    enough = exact.square()

    def goes_on(s: Tensor, xs: Tensor, left: Tensor, direction: Tensor, square: Tensor) -> Tensor:
        return square > enough

    def conjugate(s: Tensor, xs: Tensor, left: Tensor, direction: Tensor, square: Tensor) -> Search:
        xd = x @ direction  # (n,)
        product = (curvature * xd) @ x + l2 * direction  # (D,)
        length = square / (direction @ product)
        left = left - length * product
        new_square = left @ left
        further = left + new_square / square * direction
        return s + length * direction, xs + length * xd, left, further, new_square

    nothing = torch.zeros_like(gradient), torch.zeros_like(curvature)
    state = (*nothing, gradient.clone(), gradient.clone(), gradient @ gradient)
    s, xs, *_ = looped(goes_on, conjugate, state, CONJUGATE_STEPS)
    return s, xs


def _objective(w: Tensor, z: Tensor, positive: Tensor, negative: Tensor, l2: float | Tensor) -> Tensor:
    return positive @ F.softplus(-z) + negative @ F.softplus(z) + l2 / 2 * (w @ w)


def _every(count: int, at_most: int, device: torch.device) -> Tensor | slice:
    """Places of `at_most` things, or of all, at an even stride; always at least one."""
    at_most = max(1, at_most)
    return slice(None) if count <= at_most else torch.arange(at_most, device=device) * count // at_most


def _is_every(place: Tensor, count: Tensor, at_most: Tensor) -> Tensor:
    """Whether each place from 0 to `count` is one of those of `_every`: place = count * i // at_most for an i."""
    at_most = at_most.clamp(min=1)
    i = (place * at_most + count - 1) // count.clamp(min=1)  # the only one that it can be
    return (count <= at_most) | (count * i // at_most == place)


def _shares(features: Maps, mask: Tensor) -> Tensor:
    """How much of each cell is the object and how much is something else: (N, 2, h, w)."""
    return torch.cat([share_of(mask, value, features.maps) for value in (1, 0)], 1)


def _standardise(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Take mean and deviation (C,) from columns (n, C), in place, each row counting by its weight; return the two.

    A column of rounding errors around a constant is constant, and becomes 0: its deviation is infinite.
    """
    weight = weight / weight.sum().clamp(min=torch.finfo(x.dtype).tiny)
    mean = weight @ x
    x -= mean
    deviation = (weight @ x.square()).sqrt()
    deviation = torch.where(deviation > 1e-5 * mean.abs(), deviation, torch.inf)
    x /= deviation
    return mean, deviation
