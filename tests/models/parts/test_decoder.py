"""The decoder against the one that makes every concatenation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plain import Plain
from sd_aanet.models.parts.decoder import Decoder
from sd_aanet.models.sd_aanet.published import to_published


def plain(decoder: Decoder) -> Plain:
    state = to_published({f"decoder.{name}": value for name, value in decoder.state_dict().items()}, "")
    return Plain(state | {"layer0.0.weight": torch.zeros(1, 1, 7, 7)}, decoder.bins)


@settings(max_examples=25)
@given(
    st.lists(st.one_of(st.integers(2, 11), st.sampled_from([1.0, 0.75, 0.5, 1])), min_size=1, max_size=4),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(0, 2),
)
def test_every_scale_is_the_plain_one(bins: list[float], height: int, width: int, guides: int) -> None:
    torch.manual_seed(0)
    decoder = Decoder(6, guides, tuple(bins), dropout=0.0).double()
    query, prototype = torch.randn(2, 6, height, width).double(), torch.randn(2, 6).double()
    maps = [torch.randn(2, 1, height, width).double() for _ in range(guides)]
    logits, auxiliary = decoder(query, prototype, maps, (20, 23))
    expected, each = plain(decoder).decode(query, prototype, maps, (20, 23))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(list(auxiliary), each, rtol=1e-10, atol=1e-10)
    decoder.eval()
    assert decoder(query, prototype, maps, (20, 23))[1] == ()
    torch.testing.assert_close(decoder(query, prototype, maps, (20, 23))[0], expected, rtol=1e-10, atol=1e-10)


def test_at_the_width_of_the_paper() -> None:
    """514 channels: prototype, query, prior, attention, in this order."""
    torch.manual_seed(0)
    decoder = Decoder(256, 2, (8, 3), dropout=0.0).double().eval()
    assert decoder.merge[0].weight.shape == (256, 514, 1, 1)
    query, prototype = torch.randn(1, 256, 5, 5).double(), torch.randn(1, 256).double()
    maps = [torch.rand(1, 1, 5, 5).double(), torch.randn(1, 1, 5, 5).double()]
    ours, expected = (
        decoder(query, prototype, maps, (33, 33))[0],
        plain(decoder).decode(query, prototype, maps, (33, 33)),
    )
    torch.testing.assert_close(ours, expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("bins", "grid", "sides"),
    [
        ((60, 30, 15, 8), (41, 41), [(60, 60), (30, 30), (15, 15), (8, 8)]),
        ((1.0, 0.5, 0.25, 0.125), (41, 41), [(41, 41), (20, 20), (10, 10), (5, 5)]),
        ((1, 0.5), (41, 33), [(41, 33), (20, 16)]),
        ((0.5, 0.125), (5, 5), [(2, 2), (1, 1)]),  # no scale is empty
    ],
)
def test_sides(bins: tuple[float, ...], grid: tuple[int, int], sides: list[tuple[int, int]]) -> None:
    assert Decoder(4, 0, bins).sides(*grid) == sides


def test_by_itself_it_is_the_published_one() -> None:
    decoder = Decoder(8, 2)
    assert decoder.sides(60, 48) == [(60, 48), (30, 24), (15, 12), (7, 6)]
    rates = [module.p for module in decoder.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert rates == [0.1] * 5  # a classifier a scale, and the last one
