"""Masked average pooling, the prior mask and the channel reweighting against loops in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.errors import ConfigError
from sd_aanet.models.functional import masked_average_pool
from sd_aanet.models.prior import foreground_columns, prior_masks
from sd_aanet.models.sdpm import SDPM

Array = NDArray[np.float64]
sides = st.integers(2, 6)


@given(st.integers(1, 3), sides, sides, st.integers(0, 100))
def test_masked_average_pooling(batch: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feature, mask = rng.normal(size=(batch, 4, height, width)), rng.uniform(size=(batch, 1, height, width))
    expected = [[(f * m[0]).sum() / (m[0].sum() + 0.0005) for f in fs] for fs, m in zip(feature, mask, strict=True)]
    ours = masked_average_pool(torch.from_numpy(feature), torch.from_numpy(mask))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_pooling_under_an_empty_mask_is_zero() -> None:
    assert masked_average_pool(torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)).eq(0).all()


def of_episodes(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """(B, C, h, w), (B, K, C, h, w) and (B, K, 1, h, w) -> (B, 1, h, w)."""
    episodes = [
        prior_masks(q, foreground_columns(s, m)).mean(0, keepdim=True)
        for q, s, m in zip(query, support, mask, strict=True)
    ]
    return torch.stack(episodes)


def prior_by_loops(query: Array, support: Array, mask: Array) -> Array:
    batch, shot, _, height, width = support.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    total = np.zeros((batch, height, width))
    for b in range(batch):
        for k in range(shot):
            best = np.full((height, width), -np.inf)
            for y, x in places:
                q = query[b, :, y, x]
                for v, u in places:
                    s = support[b, k, :, v, u] * mask[b, k, 0, v, u]
                    best[y, x] = max(best[y, x], q @ s / (np.linalg.norm(q) * np.linalg.norm(s) + 1e-7))
            total[b] += (best - best.min()) / (best.max() - best.min() + 1e-7)
    return total[:, None] / shot


@settings(max_examples=15)
@given(st.integers(1, 2), st.integers(1, 3), sides, sides, st.integers(0, 100))
def test_the_prior_mask(batch: int, shot: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(batch, 5, height, width))
    support = rng.normal(size=(batch, shot, 5, height, width))
    mask = rng.uniform(size=(batch, shot, 1, height, width)) * (rng.uniform(size=(batch, shot, 1, height, width)) > 0.4)
    ours = of_episodes(*(torch.from_numpy(x) for x in (query, support, mask))).numpy()
    np.testing.assert_allclose(ours, prior_by_loops(query, support, mask), rtol=1e-9, atol=1e-9)
    assert ours.min() >= 0
    assert ours.max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_prior_is_made_in_float32_at_least(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, support = torch.randn(1, 8, 5, 5).to(dtype), torch.randn(1, 2, 8, 5, 5).to(dtype)
    mask = torch.rand(1, 2, 1, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = of_episodes(query, support, mask)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = of_episodes(query.double(), support.double(), mask.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_the_prior_of_an_empty_mask_is_finite() -> None:
    query, support = torch.randn(2, 4, 5, 5), torch.randn(2, 2, 4, 5, 5)
    mask = torch.zeros(2, 2, 1, 5, 5)
    assert of_episodes(query, support, mask).eq(0).all()
    mask[:, 0, :, 2:4, 2:4] = 1  # one shot of two is empty
    found = of_episodes(query, support, mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found, of_episodes(query, support[:, :1], mask[:, :1]) / 2)


def test_reweighting_is_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    sdpm = SDPM(8).double()
    p = torch.randn(2, 3, 8).double()
    w1, b1, w2, b2 = (
        x.detach().numpy() for x in (sdpm.squeeze.weight, sdpm.squeeze.bias, sdpm.excite.weight, sdpm.excite.bias)
    )
    v = 1 / (1 + np.exp(-(np.maximum(p.numpy() @ w1.T + b1, 0) @ w2.T + b2)))
    u = sdpm.reweighting(p)
    np.testing.assert_allclose(u.detach().numpy(), (v + 1) / 2, rtol=1e-12)
    assert u.min() >= 0.5
    assert u.max() <= 1
    assert w1.shape == (2, 8)  # a quarter of the channels


@given(st.integers(1, 5), st.integers(0, 100))
def test_the_querys_weights(shot: int, seed: int) -> None:
    u = torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1, (2, shot, 4)))
    product = np.ones((2, 4))
    for k in range(shot):
        product = product * u[:, k].numpy()
    mean = u.numpy().sum(1) / shot
    np.testing.assert_allclose(SDPM(4, "product").of_query(u).numpy(), product * (mean + 1) / 2, rtol=1e-12)
    np.testing.assert_allclose(SDPM(4, "mean").of_query(u).numpy(), mean, rtol=1e-12)


def test_an_unknown_reweighting_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^query_reweighting 'sum' is unknown: choose one of mean, product$"):
        SDPM(4, "sum")
