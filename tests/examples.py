"""Pictures and masks as a user has them, and what a refusal looks like, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from sd_aanet.errors import SDAANetError


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def mask(height: int = 60, width: int = 90, value: int = 1) -> np.ndarray:
    drawn = np.zeros((height, width), np.uint8)
    drawn[10:45, 15:60] = value
    return drawn


@contextmanager
def refused(error: type[SDAANetError], *words: str) -> Iterator[None]:
    """The block raises `error` with one line that holds all the words."""
    with pytest.raises(error) as raised:
        yield
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
