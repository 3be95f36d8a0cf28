"""Spread over seeds, and paired differences over the same episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 500
"""Resamples at once: weights of 1000 episodes take 8 kB each."""


def spread(values: Sequence[float]) -> dict[str, object]:
    """Of the results of two seeds or more: the sample standard deviation, and the 95 % interval of the mean.

    Returns:
        {"sd": float, "interval": [low, high]}, the latter by Student's t.
    """
    mean, half = float(np.mean(values)), half_interval(values)
    return {"sd": float(np.std(values, ddof=1)), "interval": [mean - half, mean + half]}


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean, by Student's t; of at least two values."""
    from scipy.special import stdtrit  # scipy.stats, which has it too, takes half a second to import

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_iou(counts: NDArray[np.int64], class_id: NDArray[np.int64]) -> float:
    """MIoU of episodes.

    Args:
        counts: (N, 2) foreground intersections and unions.
        class_id: (N,).
    """
    sums = [counts[class_id == c].sum(0) for c in np.unique(class_id)]
    return float(np.mean([intersection / max(union, 1) for intersection, union in sums]))


def paired_differences(
    a: NDArray[np.int64], b: NDArray[np.int64], class_id: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64]:
    """The bootstrap's distribution of the difference in mIoU of two methods over the same episodes.

    Episodes are drawn with replacement within each class, the same ones for both methods, so that what makes an episode
    hard for both cancels out.

    Args:
        a: (N, 2) foreground intersections and unions of the one.
        b: (N, 2) of the other, row by row of the same episodes.
        class_id: (N,), of the episodes.
        seed: of the resampling.

    Returns:
        (10000,), mIoU of `b` less that of `a` of each resample.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(class_id)
    differences = np.zeros(RESAMPLES)
    for c in classes:
        both = np.concatenate([a[class_id == c], b[class_id == c]], 1).astype(np.float64)  # (n, 4)
        count = len(both)
        for start in range(0, RESAMPLES, _CHUNK):
            size = min(_CHUNK, RESAMPLES - start)
            weights = rng.multinomial(count, np.full(count, 1 / count), size=size)  # (size, n)
            sums = weights @ both  # (size, 4)
            iou = sums[:, 0::2] / np.maximum(sums[:, 1::2], 1)  # (size, 2)
            differences[start : start + size] += (iou[:, 1] - iou[:, 0]) / len(classes)
    return differences


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of a distribution."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
