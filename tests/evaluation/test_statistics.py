"""Spread over seeds and paired differences, against SciPy and plain resampling."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.evaluation.statistics import RESAMPLES, interval, mean_iou, paired_differences, spread


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    low, high = found["interval"]
    if np.std(values) > 1e-9:
        expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def rows(seed: int, episodes: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    unions = rng.integers(50, 100, (2, episodes))
    hits = (unions * rng.uniform(0.2, 1, (2, episodes))).astype(np.int64)
    a, b = (np.stack([hits[side], unions[side]], 1) for side in (0, 1))
    return a, b, np.arange(episodes) % 3 + 1


def test_the_bootstrap_is_that_of_plain_resampling() -> None:
    a, b, classes = rows(0)
    found = paired_differences(a, b, classes)
    assert found.shape == (RESAMPLES,)
    rng = np.random.default_rng(1)
    by_hand = []
    for _ in range(3000):
        chosen = np.concatenate([rng.choice(np.flatnonzero(classes == c), (classes == c).sum()) for c in (1, 2, 3)])
        by_hand.append(mean_iou(b[chosen], classes[chosen]) - mean_iou(a[chosen], classes[chosen]))
    assert found.mean() == pytest.approx(np.mean(by_hand), abs=0.004)
    assert found.std() == pytest.approx(np.std(by_hand), rel=0.08)
    assert interval(found) == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])), abs=0.01)


def test_resamples_do_not_depend_on_how_many_are_made_at_once() -> None:
    """All 10,000 of a class at once, of classes and numbers that are no multiple of anything."""
    a, b, classes = rows(2, 47)
    random, expected = np.random.default_rng(5), np.zeros(10_000)
    for c in (1, 2, 3):
        chosen = classes == c
        often = random.multinomial(chosen.sum(), np.full(chosen.sum(), 1 / chosen.sum()), size=10_000)
        ours, theirs = often @ a[chosen], often @ b[chosen]
        expected += (theirs[:, 0] / theirs[:, 1] - ours[:, 0] / ours[:, 1]) / 3
    np.testing.assert_allclose(paired_differences(a, b, classes, 5), expected, rtol=0, atol=1e-12)
    assert expected.all()


def test_an_interval_leaves_out_one_part_in_forty_at_either_end() -> None:
    assert interval(np.arange(401.0)) == pytest.approx((10, 390), abs=1e-9)


@given(st.integers(0, 1000))
def test_the_difference_turns_round_with_the_methods_and_is_none_between_equals(seed: int) -> None:
    a, b, classes = rows(seed, 15)
    assert np.allclose(paired_differences(a, b, classes, seed), -paired_differences(b, a, classes, seed))
    assert not paired_differences(a, a, classes).any()


def test_pairing_makes_the_interval_narrow() -> None:
    """Two methods that are good and bad at the same episodes; the one always a little better."""
    rng = np.random.default_rng(0)
    unions = np.full(200, 1000)
    hits = rng.integers(100, 900, 200)
    a, b = np.stack([hits, unions], 1), np.stack([hits + 20, unions], 1)
    low, high = interval(paired_differences(a, b, np.ones(200, np.int64)))
    assert low == pytest.approx(0.02, abs=1e-6)
    assert high == pytest.approx(0.02, abs=1e-6)


def test_mean_iou_is_of_sums() -> None:
    counts = np.array([[1, 2], [3, 4], [0, 5], [0, 0]])
    assert mean_iou(counts, np.array([1, 1, 2, 3])) == pytest.approx((4 / 6 + 0 + 0) / 3)
