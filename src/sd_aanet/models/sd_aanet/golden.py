"""Rebuild, bit for bit, the weights and inputs behind recorded reference outputs.

NumPy only: the seeds are made of the tensors' published names, so that any implementation can make the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def official_state(keys: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Fill every tensor of a published checkpoint's layout from a seed made of its name.

    Args:
        keys: {tensor name as in the published checkpoints (without "module."): shape}.

    Returns:
        float64 arrays (`num_batches_tracked`: int64 zero).
    """
    state: dict[str, Array] = {}
    for name, shape in keys.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros(shape, dtype=np.int64)
        elif name.endswith("running_var"):
            state[name] = 0.75 + 0.5 * rng.random(shape)
        elif name.endswith("running_mean"):
            state[name] = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 4:  # convolution
            fan_in = int(np.prod(shape[1:]))
            state[name] = rng.standard_normal(shape) * np.sqrt(1.6 / fan_in)
        elif name.endswith("weight"):  # batch norm scale
            state[name] = 0.7 + 0.2 * rng.standard_normal(shape)
        else:  # any bias
            state[name] = 0.05 * rng.standard_normal(shape)
    return state


def episode(batch: int, shot: int, size: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Random images and blob masks with values 0, 1 and 255 (ignore).

    Returns:
        query (B, 3, S, S) float64, query_mask (B, S, S) int64, support (B, K, 3, S, S) float64,
        support_mask (B, K, S, S) int64.
    """
    rng = np.random.default_rng(1000 + seed)
    y, x = np.mgrid[0:size, 0:size] / size

    def mask() -> Array:
        cx, cy = rng.uniform(0.3, 0.7, 2)
        rx, ry = rng.uniform(0.15, 0.35, 2)
        r = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        m = (r < 1).astype(np.int64)
        m[(r >= 1) & (r < 1.15)] = 255
        return np.asarray(m)

    def image(m: Array) -> Array:
        colour = rng.standard_normal(3)[:, None, None]
        return np.asarray(rng.standard_normal((3, size, size)) + np.where(m == 1, 1.5, 0.0) * colour)

    query_mask = np.stack([mask() for _ in range(batch)])
    query = np.stack([image(m) for m in query_mask])
    support_mask = np.stack([np.stack([mask() for _ in range(shot)]) for _ in range(batch)])
    support = np.stack([np.stack([image(m) for m in ms]) for ms in support_mask])
    return query, query_mask, support, support_mask
