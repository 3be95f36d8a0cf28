"""The channel reweighting against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.errors import ConfigError
from sd_aanet.models.sd_aanet.sdpm import SDPM


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


def test_reweighting_keeps_its_bits_in_half_precision() -> None:
    torch.manual_seed(0)
    sdpm, prototypes = SDPM(64), torch.randn(2, 3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sdpm.reweighting(prototypes)
    torch.testing.assert_close(found.double(), sdpm.double().reweighting(prototypes.double()), rtol=0, atol=1e-6)


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
