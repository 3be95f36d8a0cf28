"""Every loss against NumPy, written from the formulas."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.errors import ConfigError
from sd_aanet.models.sd_aanet.losses import Distillation, SDAANetLoss
from sd_aanet.models.sd_aanet.network import SDAANetPrediction

Array = NDArray[Any]
B, C, S, H = 2, 6, 17, 3


def prediction(shot: int = 1, seed: int = 0, batch: int = B) -> SDAANetPrediction:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    return SDAANetPrediction(
        logits=draw(batch, 2, S, S),
        auxiliary_logits=tuple(draw(batch, 2, S, S) for _ in range(3)),
        embedding=draw(batch, C),
        support_logits=draw(batch, shot, 2, S, S),
        support_prototypes=draw(batch, shot, C),
        reweighting=(draw(batch, shot, C).sigmoid() / 2 + 0.5).detach().requires_grad_(),
        query_features=draw(batch, C, H, H),
    )


def masks(seed: int = 0, shot: int = 1, batch: int = B) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.choice([0, 1, 1, 255], (batch, shot + 1, S, S)))
    return values[:, 0], values[:, 1:]


def distilled(loss: Distillation, p: SDAANetPrediction, query_mask: Tensor) -> Tensor:
    assert p.query_features is not None
    assert p.support_prototypes is not None
    assert p.reweighting is not None
    value: Tensor = loss(p.query_features, p.support_prototypes, p.reweighting, query_mask)
    return value


def summed(loss: SDAANetLoss, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss.weights.get(name, 1.0) * term for name, term in terms.items()]).sum()


def cross_entropy(logits: Array, mask: Array) -> float:
    total, counted = 0.0, 0
    for x, m in zip(logits, mask, strict=True):
        for y, z in np.ndindex(m.shape):
            if m[y, z] != 255:
                total -= x[m[y, z], y, z] - np.logaddexp(x[0, y, z], x[1, y, z])
                counted += 1
    return total / counted if counted else 0.0


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def nearest(mask: Tensor) -> Array:
    """The query's foreground on the features' grid."""
    rows = [int(np.floor(i * S / H)) for i in range(H)]
    return (mask.numpy() == 1).astype(float)[:, rows][:, :, rows]


def divergence(p: SDAANetPrediction, mask: Tensor, variant: str, teacher: str, temperature: float) -> float:
    """The mean over batch, shots and channels of t (log t - log s), times T^2, and 0.9 where published."""
    q, s, u = (x.detach().numpy() for x in (p.query_features, p.support_prototypes, p.reweighting) if x is not None)
    m, total, shots = nearest(mask), 0.0, s.shape[1]
    for b in range(len(q)):
        for k in range(shots):
            student = softmax(s[b, k] / temperature)
            if variant == "published":
                p_q = (q[b] * m[b]).sum((1, 2)) / (m[b].sum() + 0.0005)
                t = softmax((p_q + s[b, k]) / 2 / temperature)
            else:
                mine = [k] if teacher == "separate" else range(shots)
                weight = np.mean([u[b, j] for j in mine], axis=0)
                reweighted = weight[:, None, None] * q[b]
                p_q = (reweighted * m[b]).sum((1, 2)) / (m[b].sum() + 0.0005)
                of_supports = np.mean([softmax(s[b, j] / temperature) for j in mine], axis=0)
                t = (of_supports + softmax(p_q / temperature)) / 2
            total += float((t * (np.log(t) - np.log(student))).sum())
    return total / (len(q) * C * shots) * temperature**2 * (0.9 if variant == "published" else 1)


@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("variant", ["published", "paper"])
@pytest.mark.parametrize("teacher", ["separate", "integral"])
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_distillation(shot: int, variant: str, teacher: str, temperature: float | None) -> None:
    p, (mask, _) = prediction(shot), masks()
    read = "".join(teacher)  # as from a file: equal to the name in the code, and not the same object
    ours = distilled(Distillation(variant, temperature, teacher=read), p, mask)
    used = temperature or {"published": 5.0, "paper": 1.0}[variant]
    assert ours.item() == pytest.approx(divergence(p, mask, variant, teacher, used), rel=1e-10)
    assert ours.item() > 0


@given(st.integers(0, 1000), st.integers(1, 4))
def test_published_distillation_of_any_input(seed: int, shot: int) -> None:
    p, (mask, _) = prediction(shot, seed), masks(seed)
    expected = divergence(p, mask, "published", "separate", 5.0)
    assert distilled(Distillation(), p, mask).item() == pytest.approx(expected, rel=1e-9)


def test_one_shot_has_one_teacher() -> None:
    p, (mask, _) = prediction(shot=1), masks()
    values = [distilled(Distillation("paper", teacher=teacher), p, mask).item() for teacher in ("separate", "integral")]
    assert values[0] == values[1]
    p = prediction(shot=3)
    values = [distilled(Distillation("paper", teacher=teacher), p, mask).item() for teacher in ("separate", "integral")]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("variant", ["published", "paper"])
def test_a_detached_teacher_changes_gradients_alone(variant: str) -> None:
    mask = masks()[0]
    values, gradients = [], []
    for detach in (True, False):
        p = prediction(shot=2)
        value = distilled(Distillation(variant, detach_teacher=detach), p, mask)
        value.backward()
        values.append(value.item())
        gradients.append((p.query_features.grad, p.support_prototypes.grad))
    assert values[0] == values[1]
    assert gradients[0][0] is None  # the query is in the teacher alone
    assert gradients[1][0] is not None
    assert gradients[1][0].any()
    assert not torch.allclose(gradients[0][1], gradients[1][1])


def test_who_detaches_by_itself() -> None:
    """Distillation usually stops the gradient at its teacher; the published network did not."""
    for variant, reaches in (("paper", False), ("published", True)):
        p = prediction()
        distilled(Distillation(variant), p, masks()[0]).backward()
        assert (p.query_features.grad is not None) == reaches


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("teacher", ["separate", "integral"])
@pytest.mark.parametrize("variant", ["paper", "published"])
def test_features_far_apart_have_gradients(variant: str, teacher: str, detach: bool) -> None:
    """Shares of 0, of channels that are thousands apart, and their logarithms."""
    q = torch.zeros(1, 4, 3, 3).index_fill(1, torch.tensor([0]), 1e5).requires_grad_()  # (B, C, h, w)
    p = torch.tensor([[[0.0, 2e5, 1e3, 0], [1e5, 0, 0, 7]]]).requires_grad_()  # (B, K, C)
    u = torch.full((1, 2, 4), 0.75).requires_grad_()
    loss = Distillation(variant, detach_teacher=detach, teacher=teacher)(q, p, u, torch.ones(1, 9, 9).long())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in (q, p, u))


def test_distillation_of_an_unseen_class_is_finite() -> None:
    """The squashed or cropped query may show nothing of it, or nothing on the small grid."""
    for value in (0, 255):
        loss = distilled(Distillation(), prediction(), torch.full((B, S, S), value))
        assert loss.isfinite()


@given(st.integers(0, 1000), st.integers(1, 3))
def test_terms_and_their_sum(seed: int, shot: int) -> None:
    p, (query_mask, support_mask) = prediction(shot, seed), masks(seed, shot)
    loss = SDAANetLoss(alpha=7.0, beta=0.3, auxiliary=0.6)
    terms = loss(p, query_mask, query_mask, support_mask)
    main = cross_entropy(p.logits.detach().numpy(), query_mask.numpy())
    auxiliary = np.mean([cross_entropy(x.detach().numpy(), query_mask.numpy()) for x in p.auxiliary_logits])
    assert p.support_logits is not None
    support = np.mean(
        [cross_entropy(p.support_logits[:, k].detach().numpy(), support_mask[:, k].numpy()) for k in range(shot)]
    )
    distillation = divergence(p, query_mask, "published", "separate", 5.0)
    expected = [main, auxiliary, distillation, support, main + 0.6 * auxiliary + 7 * distillation + 0.3 * support]
    assert list(terms) == ["main", "auxiliary", "distillation", "support"]
    ours = [*terms.values(), summed(loss, terms)]
    np.testing.assert_allclose([x.item() for x in ours], expected, rtol=1e-9)


def test_the_papers_weights_are_the_defaults() -> None:
    p, (query_mask, support_mask) = prediction(), masks()
    loss = SDAANetLoss()
    terms = loss(p, query_mask, query_mask, support_mask)
    by_hand = terms["main"] + terms["auxiliary"] + 50 * terms["distillation"] + 0.5 * terms["support"]
    assert summed(loss, terms).item() == pytest.approx(by_hand.item(), rel=1e-12)


def test_parts_that_are_off_cost_nothing() -> None:
    query_mask, support_mask = masks()
    bare = replace(prediction(), auxiliary_logits=(), support_logits=None, reweighting=None)
    loss = SDAANetLoss()
    terms = loss(bare, query_mask, query_mask, support_mask)
    assert terms.keys() == {"main"}
    assert summed(loss, terms).item() == terms["main"].item() > 0


def test_a_mask_that_is_ignored_throughout_costs_nothing() -> None:
    """And is no NaN, which would spoil the weights for good."""
    p = prediction(shot=2)
    query_mask, support_mask = torch.full((B, S, S), 255), torch.full((B, 2, S, S), 255)
    loss = SDAANetLoss()
    terms = loss(p, query_mask, query_mask, support_mask)
    assert (terms["main"], terms["auxiliary"], terms["support"]) == (0, 0, 0)
    summed(loss, terms).backward()
    assert p.logits.grad is not None
    assert p.logits.grad.eq(0).all()


def test_half_precision_is_summed_in_float32() -> None:
    p, (query_mask, support_mask) = prediction(), masks()
    loss = SDAANetLoss()
    exact = summed(loss, loss(p, query_mask, query_mask, support_mask))
    assert p.support_logits is not None
    half = replace(
        p,
        logits=p.logits.bfloat16(),
        auxiliary_logits=tuple(x.bfloat16() for x in p.auxiliary_logits),
        support_logits=p.support_logits.bfloat16(),
        query_features=p.query_features.bfloat16(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(half, query_mask, query_mask, support_mask)
    assert terms["main"].dtype == terms["auxiliary"].dtype == terms["support"].dtype == torch.float32
    assert summed(loss, terms).item() == pytest.approx(exact.item(), rel=5e-3)


@pytest.mark.parametrize("teacher", ["separate", "integral"])
@pytest.mark.parametrize("variant", ["paper", "published"])
def test_distillation_keeps_its_bits_in_half_precision(variant: str, teacher: str) -> None:
    """Of features in bfloat16 it is what it is of the same numbers in float32, and so is its gradient."""
    p, mask, loss = prediction(shot=3), masks()[0], Distillation(variant, teacher=teacher)
    assert p.query_features is not None
    assert p.support_prototypes is not None
    assert p.reweighting is not None
    half = p.query_features.detach().bfloat16()
    values, gradients = [], []
    for q in (half, half.float()):
        prototypes = p.support_prototypes.detach().float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=q is half):
            value = loss(q, prototypes, p.reweighting.detach().float(), mask)
        value.backward()
        values.append(value)
        gradients.append(prototypes.grad)
    assert values[0].dtype == torch.float32
    assert values[0].item() == values[1].item() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "pfenet"}, "variant 'pfenet' is unknown: choose one of paper, published"),
        ({"variant": "paper", "teacher": "both"}, "teacher 'both' is unknown: choose one of separate, integral"),
    ],
)
def test_unknown_settings_are_one_line(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SDAANetLoss(**settings)  # type: ignore[arg-type]
    assert str(error.value) == message
