"""The linear fit to the supports: against SciPy, and what it must not depend on."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from sd_aanet.backbones.base import Backbone, Grid, Output
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.models import find_method
from sd_aanet.models.probe import BIAS, Cells, Probe, fit_logistic

SIZE = 41
SIDE = 6
"""Cells of 8 pixels a side, aligned at the corners."""


class Pixels(Backbone):
    """Two outputs without a parameter that matters: colours at every eighth pixel, and fixed mixtures of them."""

    label = "pixels"
    mid = ("colours", "mixtures")
    high = "mixtures"
    grid = Grid(8, 1, 17)

    def __init__(self, mixtures: int = 5, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.outputs = {"colours": Output(3, 8), "mixtures": Output(mixtures, 8)}
        generator = torch.Generator().manual_seed(1)
        self.mixing = torch.nn.Parameter(torch.randn(mixtures, 3, generator=generator, dtype=torch.float64))
        self.scale, self.shift, self.pictures = scale, shift, 0
        self.freeze()

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        self.pictures += len(images)
        colours = images[..., ::8, ::8]
        mixed = torch.einsum("mc,nchw->nmhw", self.mixing.to(colours.dtype), colours).tanh()
        both = {"colours": colours, "mixtures": mixed}
        return {name: both[name] * self.scale + self.shift for name in wanted}

    def keep(self, wanted: Collection[str]) -> None:
        self.outputs = {name: self.outputs[name] for name in self.outputs if name in wanted}


class Counting(Probe):
    """Counts the support sets that were made."""

    sets = 0

    def support_set(self, supports: Cells, shots: int) -> Any:
        self.sets += 1
        return super().support_set(supports, shots)


def probe(backbone: Backbone | None = None, **settings: Any) -> Probe:
    return Probe(backbone or Pixels(), **settings).double().eval()


def pictures(count: int, seed: int = 0, object_colour: tuple[float, ...] = (1.0, -1.0, 0.5)) -> tuple[Tensor, Tensor]:
    """Noise with a brighter disc somewhere, (N, 3, S, S) float64, and its mask, a ring around it ignored."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    centres = rng.uniform(0.3, 0.7, (count, 2, 1, 1))
    radius = np.hypot(y - centres[:, 0], x - centres[:, 1]) / rng.uniform(0.15, 0.3, (count, 1, 1))
    masks = torch.from_numpy(np.select([radius < 1, radius < 1.2], [1, 255], 0))
    colour = torch.tensor(object_colour, dtype=torch.float64)[:, None, None]
    return torch.from_numpy(rng.normal(0, 1, (count, 3, SIZE, SIZE))) + colour * (masks == 1)[:, None], masks


def episode(shots: int = 1, ways: int = 1, batch: int = 1, seed: int = 0) -> Episode:
    query, query_mask = pictures(batch, seed)
    images, masks = pictures(batch * ways * shots, seed + 1)
    return Episode(
        query=query,
        query_mask=query_mask,
        support=images.unflatten(0, (batch, ways, shots)),
        support_mask=masks.unflatten(0, (batch, ways, shots)),
        class_id=torch.arange(1, ways + 1).repeat(batch, 1),
        index=torch.arange(batch),
        query_key=(),
        support_key=(),
    )


def answer(method: Probe, e: Episode) -> Tensor:
    with torch.inference_mode():
        return Comparer(method)(e).logits


def expected_weights(method: Probe, images: Tensor, masks: Tensor) -> tuple[np.ndarray, float]:
    """The same objective, written out in NumPy and left to SciPy."""
    outputs = method.backbone(images, method.features)
    features = [outputs[name].numpy() for name in method.features]
    if method.normalise:
        features = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in features]
    x = np.concatenate(features, 1).transpose(0, 2, 3, 1).reshape(-1, sum(f.shape[1] for f in features))
    a = (masks == 1).numpy()[:, ::8, ::8].ravel().astype(float)  # aligned corners of 8n + 1: every eighth pixel
    b = (masks == 0).numpy()[:, ::8, ::8].ravel().astype(float)
    x, a, b = (v[a + b > 0] for v in (x, a, b))
    mean = np.average(x, axis=0, weights=a + b)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=a + b))
    x = np.concatenate([(x - mean) / deviation, np.full((len(x), 1), BIAS)], 1)
    a = a * (b.sum() / a.sum()) ** method.balance
    l2 = method.l2 / len(images)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        z, total = x @ w, (a + b).sum()
        loss = (a @ np.logaddexp(0, -z) + b @ np.logaddexp(0, z)) / total + l2 / 2 * w @ w
        return loss, x.T @ ((a + b) / (1 + np.exp(-z)) - a) / total + l2 * w

    start = np.zeros(x.shape[1])
    w = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "gtol": 1e-10, "ftol": 0}).x
    return w[:-1] / deviation, BIAS * w[-1] - w[:-1] / deviation @ mean


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"normalise": True, "balance": 0.5, "l2": 0.3}, {"balance": 0.0, "l2": 0.001, "features": "mixtures"}],
)
def test_the_fit_is_the_optimum(shots: int, settings: dict[str, Any]) -> None:
    method = probe(**settings)
    images, masks = pictures(shots)
    features = method.image_features(images)
    fitted = method.support_set(method.encode_support(features, None, masks), shots)
    weight, bias = expected_weights(method, images, masks)
    np.testing.assert_allclose(fitted.weight[0].numpy(), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.bias[0].numpy(), bias, rtol=1e-4, atol=1e-5)
    z = np.tensordot(weight, features.maps[0].numpy(), 1) + bias
    prediction = method.compare(features.select([0]), fitted, None, (SIDE, SIDE))
    np.testing.assert_allclose(prediction.maps["similarity"][0, 0].numpy(), z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prediction.logits.softmax(1)[0, 1].numpy(), 1 / (1 + np.exp(-z)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cells", "channels"), [(40, 200), (1000, 30)])
@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_no_gradient_is_left(dtype: torch.dtype, cells: int, channels: int, l2: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(cells, channels, generator=generator, dtype=torch.float64)
    share = torch.rand(cells, generator=generator, dtype=torch.float64).round(decimals=1)  # soft and hard labels
    positive, negative = share * 7 / cells, (1 - share) / cells
    w = fit_logistic(*(v.to(dtype) for v in (x, positive, negative)), l2).double()
    gradient = x.T @ ((positive + negative) * (x @ w).sigmoid() - positive) + l2 * w
    at_zero = x.T @ ((positive + negative) / 2 - positive)
    assert gradient.norm() <= (2e-6 if dtype == torch.float64 else 1e-5) * at_zero.norm()


def test_what_is_ignored_has_no_part() -> None:
    method, e = probe(), episode(shots=2)
    ignored = e.support_mask == 255
    assert ignored.any()
    changed = torch.where(ignored[:, :, :, None], 100.0, e.support)
    other = replace(e, support=changed)
    torch.testing.assert_close(answer(method, other), answer(method, e), rtol=0, atol=0)
    # A shot that is ignored as a whole, as padding is, is as none.
    nothing = replace(e, support_mask=torch.cat([e.support_mask[:, :, :1], e.support_mask[:, :, 1:] * 0 + 255], 2))
    alone = replace(e, support=e.support[:, :, :1], support_mask=e.support_mask[:, :, :1])
    torch.testing.assert_close(answer(method, nothing), answer(method, alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [0, 1, 255])
def test_a_set_of_one_kind_has_an_answer(mask: int) -> None:
    e = episode(shots=2)
    logits = answer(probe(), replace(e, support_mask=torch.full_like(e.support_mask, mask)))
    z = logits[:, 1] - logits[:, 0]
    assert z.isfinite().all()
    assert {0: (z < 0).all(), 1: (z > 0).all(), 255: (z == 0).all()}[mask]


@pytest.mark.parametrize("cells", [20_000, 50])
def test_the_order_of_shots_does_not_matter(cells: int) -> None:
    method, e = probe(cells=cells), episode(shots=5, batch=2)
    order = [3, 0, 4, 2, 1]
    other = replace(e, support=e.support[:, :, order], support_mask=e.support_mask[:, :, order])
    torch.testing.assert_close(answer(method, other), answer(method, e), rtol=1e-4, atol=1e-4)


def test_a_shot_twice_is_believed_twice_as_much() -> None:
    e = episode()
    twice = replace(e, support=e.support.repeat(1, 1, 2, 1, 1, 1), support_mask=e.support_mask.repeat(1, 1, 2, 1, 1))
    torch.testing.assert_close(answer(probe(l2=1.0), twice), answer(probe(l2=0.5), e), rtol=1e-5, atol=1e-5)


def test_more_cells_than_allowed_are_taken_evenly() -> None:
    e = episode(shots=30)
    every, some = answer(probe(), e), answer(probe(cells=30 * SIDE * SIDE // 2), e)
    assert not torch.equal(every, some)
    assert ((every[:, 1] > 0) == (some[:, 1] > 0)).float().mean() > 0.9
    assert answer(probe(cells=1), e).isfinite().all()  # one of each shot at least


def test_each_set_of_a_batch_is_on_its_own() -> None:
    method, e = probe(), episode(shots=3, batch=3)
    together = answer(method, e)
    for b in range(3):
        torch.testing.assert_close(answer(method, e.select([b])), together[b : b + 1], rtol=1e-9, atol=1e-9)


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    e = episode(shots=3)
    plain = answer(probe(), e)
    other = answer(probe(Pixels(scale=1e4, shift=-3e3)), e)
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    # Each output is brought to unit length on its own.
    torch.testing.assert_close(
        answer(probe(Pixels(scale=1e4), normalise=True), e), answer(probe(normalise=True), e), rtol=1e-6, atol=1e-6
    )


def test_a_channel_that_stands_still_has_no_part() -> None:
    e = episode(shots=2)
    flat = replace(e, support=e.support.clone())
    flat.support[:, :, :, 2] = 0.1
    method = probe(features="colours")
    features = method.image_features(flat.support[0, 0])
    fitted = method.support_set(method.encode_support(features, None, flat.support_mask[0, 0]), 2)
    assert fitted.weight[0, 2] == 0
    assert fitted.weight[0, :2].abs().min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_red_disc_is_found(dtype: torch.dtype) -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    masks = torch.from_numpy(np.stack([np.hypot(y - 16, x - 16) < 12, np.hypot(y - 24, x - 24) < 9]).astype(np.int64))
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 3, SIZE, SIZE)))
    images = (noise + torch.tensor([[1.0, -1, -1], [-1, 1, -1]]).double()[(1 - masks)].permute(0, 3, 1, 2)).to(dtype)
    query, support = (images[:1], masks[:1]), (images[None, None, 1:], masks[None, None, 1:])
    e = Episode(*query, *support, torch.ones(1, 1), torch.zeros(1), (), ())
    logits = answer(Probe(Pixels(), l2=0.001).to(dtype).eval(), e)
    assert logits.shape == (1, 2, SIZE, SIZE)
    assert logits.dtype == dtype
    found = logits.argmax(1)
    cells = (slice(None), slice(None, None, 8), slice(None, None, 8))
    assert torch.equal(found[cells], masks[:1][cells])


@pytest.mark.parametrize("shots", [1, 30])
def test_examples_that_were_added_give_the_episodes_answer(shots: int) -> None:
    method, e = probe(), episode(shots=shots, ways=2, batch=2)
    with torch.inference_mode():
        at_once = Comparer(method)(e)
        comparer = Comparer(method)
        names = [[[(b, n, k) for k in range(shots)] for n in range(2)] for b in range(2)]
        flat = [name for ways in names for shots_ in ways for name in shots_]
        comparer.add_supports(flat, e.support.flatten(0, 2), e.support_mask.flatten(0, 2))
        encoded = comparer.encode_queries(e.query)
        added = comparer.compare(encoded, [(b, names[b]) for b in range(2)], (SIZE, SIZE))
    assert at_once.logits.shape == (4, 2, SIZE, SIZE)
    torch.testing.assert_close(added.logits, at_once.logits, rtol=1e-9, atol=1e-9)
    assert at_once.embedding is not None
    assert added.embedding is not None
    assert at_once.embedding.shape == (4, 8)
    torch.testing.assert_close(added.embedding, at_once.embedding, rtol=1e-9, atol=1e-9)
    assert added.maps["similarity"].shape == (4, 1, SIDE, SIDE)


def test_several_classes_are_compared_one_by_one() -> None:
    method, e = probe(), episode(shots=2, ways=3, batch=2)
    comparer = Comparer(method)
    with torch.inference_mode():
        scores = comparer.scores(comparer(e), 3)
        ways = [slice(n, n + 1) for n in range(3)]
        single = [replace(e, support=e.support[:, n], support_mask=e.support_mask[:, n]) for n in ways]
        alone = [comparer.scores(comparer(one), 1) for one in single]
    assert scores.shape == (2, 4, SIZE, SIZE)
    torch.testing.assert_close(scores[:, 1:], torch.cat([one[:, 1:] for one in alone], 1))
    torch.testing.assert_close(scores[:, 0], 1 - scores[:, 1:].amax(1))


def test_a_support_set_is_fitted_once_whatever_the_queries() -> None:
    backbone = Pixels()
    method = Counting(backbone).double().eval()
    images, masks = pictures(4)
    comparer = Comparer(method)
    with torch.inference_mode():
        comparer.add_supports("abcd", images, masks)
        for seed in range(3):
            encoded = comparer.encode_queries(pictures(2, seed)[0])
            comparer.compare(encoded, [(0, ["ab"]), (1, ["ab"]), (1, ["cd"])], (SIZE, SIZE))
    assert method.sets == 2
    assert backbone.pictures == 4 + 3 * 2


def test_half_precision_is_for_the_backbone_alone() -> None:
    method, exact = Probe(Pixels(), features="colours").eval(), episode(shots=2)
    e = replace(exact, query=exact.query.float(), support=exact.support.float())
    with torch.autocast("cpu", torch.bfloat16):
        half = answer(method, e)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), answer(method, exact), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": 1.5}, "model.balance=1.5, expected a number of at least 0 and at most 1: set"),
        ({"l2": 0.0}, "model.l2=0.0, expected a number above 0: set"),
        ({"cells": 0}, "model.cells=0, expected a whole number of at least 1: set"),
        ({"features": "stage9"}, "model.features=stage9, but pixels has no such output"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        probe(**settings)


def test_it_can_be_chosen_and_has_nothing_to_train() -> None:
    method = find_method("probe")(Pixels())
    assert not method.trains
    assert not any(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("cells", [1, 7, 40, 1000])
def test_the_set_of_a_graph_is_the_set(cells: int) -> None:
    """Also where there are more cells than are fitted to, an example without any, and one whose cells are few."""
    method = probe(cells=cells)
    images, masks = pictures(4)
    masks[1] = 255
    masks[2, 9:] = 255
    features = method.image_features(images)
    expected = method.support_set(method.encode_support(features, None, masks), 4)
    found = method.graph_set(features, masks, 4)
    np.testing.assert_allclose(found.weight.numpy(), expected.weight.numpy(), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.bias.numpy(), expected.bias.numpy(), rtol=1e-7, atol=1e-9)


def test_of_many_examples_no_more_is_kept_than_a_fit_reads() -> None:
    images, masks = pictures(4)
    method = probe(cells=40)
    whole, thin = Comparer(method), Comparer(method)
    with torch.no_grad():
        whole.add_supports(range(4), images, masks)
        thin.add_supports(range(4), images, masks, shots=4)
        assert sum(x.nbytes for x in thin._supports.values()) < 0.5 * sum(x.nbytes for x in whole._supports.values())
        query = pictures(1, 9)[0]
        found = [c.compare(c.encode_queries(query), [(0, [range(4)])], (SIZE, SIZE)).logits for c in (whole, thin)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)
