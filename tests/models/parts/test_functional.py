"""Masked average pooling and what a mask's values cover, against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plain import resized
from sd_aanet.models.parts.functional import masked_average_pool, share_of

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


@pytest.mark.parametrize("value", [0, 1])
def test_ignored_pixels_are_of_neither_value(value: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 255], (2, 33, 33)))
    share = share_of(mask, value, torch.zeros(2, 7, 5, 5, dtype=torch.bfloat16))
    assert share.dtype == torch.float32
    expected = resized((mask == value).double()[:, None], (5, 5))
    torch.testing.assert_close(share.double(), expected, rtol=1e-5, atol=1e-6)
    ignored = resized((mask == 255).double()[:, None], (5, 5))
    other = share_of(mask, 1 - value, share)
    torch.testing.assert_close((share + other).double(), 1 - ignored, rtol=1e-5, atol=1e-6)
