"""The prior mask against loops in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.models.parts.prior import foreground_columns, prior_mask, prior_masks, sought

Array = NDArray[np.float64]
sides = st.integers(2, 6)


def of_episodes(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """(B, C, h, w), (B, K, C, h, w) and (B, K, 1, h, w) -> (B, 1, h, w)."""
    episodes = [
        torch.stack([prior_mask(q, columns) for columns in foreground_columns(s, m)]).mean(0, keepdim=True)
        for q, s, m in zip(sought(query), support, mask, strict=True)
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
    tensors = [torch.from_numpy(x) for x in (query, support, mask)]
    expected = prior_by_loops(query, support, mask)
    np.testing.assert_allclose(of_episodes(*tensors).numpy(), expected, rtol=1e-9, atol=1e-9)
    pairs = tensors[0].repeat_interleave(shot, 0), *(x.flatten(0, 1) for x in tensors[1:])
    whole = prior_masks(*pairs).unflatten(0, (batch, shot)).mean(1, keepdim=True)
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert whole.min() >= 0
    assert whole.max() <= 1


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
