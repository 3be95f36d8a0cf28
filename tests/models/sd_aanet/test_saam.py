"""The attention module's rewritten convolutions are the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import rough
from plain import Plain
from sd_aanet.models.sd_aanet.published import to_published
from sd_aanet.models.sd_aanet.saam import SAAM, pyramid, resized_conv3x3, spread_conv3x3

sides = st.integers(2, 12)


@given(sides, sides, st.integers(1, 3), st.integers(1, 4), st.integers(0, 100))
def test_a_convolution_over_a_spread_vector(height: int, width: int, batch: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    vector, weight = torch.randn(batch, channels).double(), torch.randn(5, channels, 3, 3).double()
    spread = vector[:, :, None, None].expand(-1, -1, height, width)
    ours = spread_conv3x3(vector, weight, (height, width))
    torch.testing.assert_close(ours, F.conv2d(spread, weight, padding=1), rtol=1e-12, atol=1e-12)


grids = st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=4)


@given(sides, sides, grids, st.integers(1, 3), st.integers(0, 100))
def test_convolutions_over_resized_grids(height: int, width: int, cells: list[int], batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = [torch.randn(batch, 3, side, side).double() for side in cells]
    weights = [torch.randn(4, 3, 3, 3).double() for _ in cells]
    expected = torch.zeros(batch, 4, height, width).double()
    for grid, weight in zip(maps, weights, strict=True):
        resized = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        expected += F.conv2d(resized, weight, padding=1)
    ours = resized_conv3x3(maps, weights, (height, width))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@given(sides, sides, grids, st.integers(1, 3), st.integers(0, 100))
def test_a_pyramid_is_adaptive_pooling(height: int, width: int, cells: list[int], batch: int, seed: int) -> None:
    """Also where a grid has more cells than the map has positions, and a position counts for several cells."""
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)).double()
    for ours, side in zip(pyramid(x, cells), cells, strict=True):
        torch.testing.assert_close(ours, F.adaptive_avg_pool2d(x, side), rtol=1e-12, atol=1e-12)


def test_a_pyramid_in_bf16_sums_in_float32() -> None:
    """Its sums are of thousands of positions, of which bf16 would lose most."""
    x = torch.rand(1, 2, 60, 60, generator=torch.Generator().manual_seed(0))
    (mean,) = pyramid(x.bfloat16(), [1])
    torch.testing.assert_close(mean.float(), x.mean((2, 3), keepdim=True), rtol=5e-3, atol=0)


def _pair(training: bool, bounded: bool = False) -> tuple[SAAM, Plain]:
    torch.manual_seed(0)
    saam = SAAM(8, dropout=0.0, bounded=bounded).double().train(training)
    rough(saam)
    state = to_published({f"saam.{name}": value.clone() for name, value in saam.state_dict().items()}, "")
    return saam, Plain(state | {"layer0.0.weight": torch.zeros(1, 1, 7, 7)}, (), training)


@settings(max_examples=25)
@given(sides, sides, st.booleans(), st.integers(0, 100))
def test_the_extractor_is_the_plain_one(height: int, width: int, training: bool, seed: int) -> None:
    """With the prototype spread, everything concatenated and every branch of the pyramid resized."""
    saam, plain = _pair(training)
    torch.manual_seed(seed)
    feature, prototype = torch.randn(3, 8, height, width).double(), torch.randn(3, 8).double()
    ours = saam.extractor(saam.extractor.on_feature(feature), prototype)
    theirs = plain.extractor(feature, prototype)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-10)
    for name, value in to_published({f"saam.{k}": v for k, v in saam.state_dict().items()}, "").items():
        if "running" in name:  # the statistics move the same way
            torch.testing.assert_close(value, plain.state[name].detach(), rtol=1e-10, atol=1e-10)


def test_the_extractors_gradients_are_the_plain_ones() -> None:
    saam, plain = _pair(training=True)
    feature, prototype = torch.randn(2, 8, 5, 5).double(), torch.randn(2, 8).double()
    watched = ("simple_mask.0.weight", "simple_mask.2.bottleneck.0.weight", "simple_mask.2.stages.2.1.weight")
    for name in watched:
        plain.state[name] = plain.state[name].detach().requires_grad_()
    probe = torch.randn(2, 8, 5, 5).double()
    expected = torch.autograd.grad(
        (plain.extractor(feature, prototype) * probe).sum(), [plain.state[n] for n in watched]
    )
    e = saam.extractor
    ours = torch.autograd.grad(
        (e(e.on_feature(feature), prototype) * probe).sum(), [e.conv.weight, e.fuse.weight, e.pools[2].weight]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bounded", [False, True])
def test_attention_and_support_logits(bounded: bool) -> None:
    saam, plain = _pair(training=False, bounded=bounded)
    feature, prototype = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 8).double()
    expected = plain.conv("q_maskgeneration", plain.extractor(feature, prototype))
    attention = saam.attend(saam.extractor.on_feature(feature), prototype)
    torch.testing.assert_close(attention, expected.sigmoid() if bounded else expected)
    assert attention.shape == (2, 1, 5, 7)
    logits = saam.segment_support(feature, prototype)
    torch.testing.assert_close(logits, plain.conv("s_cls", plain.extractor(feature, prototype)))
    assert logits.shape == (2, 2, 5, 7)
