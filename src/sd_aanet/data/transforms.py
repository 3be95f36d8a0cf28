"""Pictures and masks to the network's size and back, and the random views of training."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.episode import IGNORE, IMAGENET_MEAN, IMAGENET_STD, RGB, Prediction
from sd_aanet.errors import ConfigError
from sd_aanet.images import Array8
from sd_aanet.rules import Rule, check, number, whole

if TYPE_CHECKING:
    import albumentations

RESIZES = ("squash", "keep_aspect")
_STRIP = 2**22
"""Pixels of a large picture that are made at once."""
AUGMENTS = ("none", "flip", "published", "scale")


def _colour(zero: bool) -> Rule:
    def holds(value: object) -> bool:
        return isinstance(value, list | tuple) and len(value) == 3 and all(map(number(0.5, zero).holds, value))

    return Rule("three numbers", holds, "[0.5,0.5,0.5]")


def digest(pixels: Array8, *more: object) -> str:
    """A name of exactly these pixels, whichever file they come from, and of what more is given."""
    made = hashlib.sha256(repr((pixels.shape, *more)).encode())
    made.update(np.ascontiguousarray(pixels).data)
    return made.hexdigest()[:32]


_LARGE = 3
"""Times as large as the input; the benchmarks' images are not."""


@dataclass(frozen=True)
class Preprocess:
    """How a picture of any size becomes the network's input; primitives, so that a checkpoint carries it.

    Args:
        size: S, the side of the input.
        resize: "squash" (both sides to S: published) or "keep_aspect" (the longer side to S, the rest padded
            below or on the right with the mean colour, the mask there 255).
        mean, std: of RGB in [0, 1], the backbone's own.

    Raises:
        ConfigError: an unknown `resize`, or numbers that are none.
    """

    size: int
    resize: str = "squash"
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD

    def __post_init__(self) -> None:
        check(vars(self), {"size": whole(1, 473), "mean": _colour(zero=True), "std": _colour(zero=False)})
        for name in ("mean", "std"):  # a checkpoint has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.resize not in RESIZES:
            raise ConfigError(f"resize={self.resize!r}, expected one of {', '.join(RESIZES)}: choose one of them")

    @property
    def colour(self) -> tuple[int, int, int]:
        """The mean as 8-bit RGB: what fills borders, being about 0 once normalised."""
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue

    def resize_pair(self, image: Array8, mask: Array8) -> tuple[Array8, Array8]:
        """Resize a uint8 (H, W, 3) image bilinearly and its (H, W) mask to the nearest pixel, to (S, S).

        Of images more than three times as large, as cameras make them, each pixel is the mean of those that it covers:
        bilinearly it would be one of them, the others passed over, and textures become noise.
        """
        height, width = self._inner(image.shape[0], image.shape[1])
        how = cv2.INTER_AREA if min(image.shape[0] / height, image.shape[1] / width) > _LARGE else cv2.INTER_LINEAR
        # Nearest-exact samples pixel centres, as bilinear does; plain nearest is half a pixel off.
        image = cv2.resize(image, (width, height), interpolation=how).astype(np.uint8, copy=False)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
        if (height, width) == (self.size, self.size):
            return image, mask
        padded = np.empty((self.size, self.size, 3), np.uint8)
        padded[:] = self.colour
        padded[:height, :width] = image
        padded_mask = np.full((self.size, self.size), IGNORE, np.uint8)
        padded_mask[:height, :width] = mask
        return padded, padded_mask

    def normalise(self, image: Array8) -> Tensor:
        """A uint8 (S, S, 3) RGB image as float32 (3, S, S) with mean and deviation taken out."""
        scale = 1 / (255 * np.asarray(self.std, np.float32))
        shift = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return torch.from_numpy((image * scale + shift).transpose(2, 0, 1).copy())

    def key(self, image: Array8) -> str:
        """A name of exactly what `normalise` makes of a uint8 (S, S, 3) image."""
        return digest(image, self.mean, self.std)

    def image(self, image: Array8) -> Tensor:
        """A uint8 (H, W, 3) RGB image, of any size, as the network's float32 (3, S, S)."""
        return self.normalise(self.resize_pair(image, np.zeros(image.shape[:2], np.uint8))[0])

    def mask(self, mask: Array8) -> Tensor:
        """A uint8 (H, W) mask of 0, 1 and 255 as int64 (S, S)."""
        return torch.from_numpy(self.resize_pair(np.zeros((*mask.shape, 3), np.uint8), mask)[1]).long()

    def restore(self, values: Tensor, original: tuple[int, int]) -> Tensor:
        """Undo the resizing of a map: crop the padding, then resize bilinearly.

        Args:
            values: float (..., S, S), a probability or a logit.
            original: (H, W) of the picture.

        Returns:
            (..., H, W).
        """
        height, width = self._inner(*original)
        inner = values[..., :height, :width].reshape(1, -1, height, width)
        # Pixel centres, as cv2.resize has them on the way in.
        outer = F.interpolate(inner, size=original, mode="bilinear", align_corners=False)
        return outer.reshape(*values.shape[:-2], *original)

    def restored(self, values: Tensor, original: tuple[int, int]) -> Restored:
        """As `restore`, of one map (S, S), but made when asked for, some rows at a time."""
        height, width = self._inner(*original)
        inner = values[None, None, :height, :width].float()
        wide = F.interpolate(inner, size=(height, original[1]), mode="bilinear", align_corners=False)
        return Restored(wide[0, 0].cpu(), original)

    def attention(self, prediction: Prediction, row: int, original: tuple[int, int]) -> Restored | None:
        """What a method looked at in a query, (H, W) from 0, its least there, to 1, its most; None without."""
        if not prediction.maps:
            return None
        *_, last = prediction.maps.values()  # of an attention and a prior, the attention
        whole = F.interpolate(last[row : row + 1].float(), (self.size, self.size), mode="bilinear", align_corners=True)
        plain = self.restored(whole[0, 0], original)
        spans = [(float(strip.min()), float(strip.max())) for _, strip in plain.strips()]
        return Restored(plain.wide, original, min(low for low, _ in spans), max(high for _, high in spans))

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the picture within the S x S input."""
        if self.resize == "squash":
            return self.size, self.size
        longest = max(height, width)
        return max(1, round(height * self.size / longest)), max(1, round(width * self.size / longest))


@dataclass(frozen=True)
class Restored:
    """A map at the own size of its picture, a strip of rows at a time: whole ones of large pictures fill the memory.

    Args:
        wide: float32 (h, W), the map's rows, as wide as the picture.
        size: (H, W) of the picture.
        low, high: which of its values become 0 and 1.
    """

    wide: Tensor
    size: tuple[int, int]
    low: float = 0.0
    high: float = 1.0

    def strips(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Rows of the picture, and the map there, float32 (rows, W)."""
        height, rows = len(self.wide), max(1, _STRIP // self.size[1])
        for start in range(0, self.size[0], rows):
            stop = min(start + rows, self.size[0])
            # Pixel centres, as in `Preprocess.restore`.
            y = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * height / self.size[0] - 0.5).clamp(min=0)
            top, part = y.long(), y.frac().float()[:, None]
            strip = torch.lerp(self.wide[top], self.wide[(top + 1).clamp(max=height - 1)], part)
            if (self.low, self.high) != (0, 1):
                strip = ((strip - self.low) / max(self.high - self.low, 1e-7)).clamp(0, 1)
            yield slice(start, stop), strip.numpy()

    def whole(self) -> NDArray[np.float32]:
        """All of it, (H, W)."""
        return np.concatenate([strip for _, strip in self.strips()])


@dataclass(frozen=True)
class Augment:
    """A random view of an image and its mask, drawn from a seed that the caller makes of the image's place.

    Args:
        name: "none"; "flip" (left to right, p 0.5); "published" (turned by up to 10 degrees, a 5x5 Gaussian
            blur, a flip, each p 0.5); "scale" (scaled by 0.8 to 1.25 and turned by up to 10 degrees together,
            a flip, each p 0.5).
        fill: RGB of what comes in at the borders, see `Preprocess.colour`.

    Raises:
        ConfigError: an unknown name.
    """

    name: str = "none"
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if self.name not in AUGMENTS:
            raise ConfigError(f"augment={self.name!r}, expected one of {', '.join(AUGMENTS)}: choose one of them")

    @property
    def recurs(self) -> bool:
        """Whether the same view is drawn again and again, so that what is made of it is worth keeping."""
        return self.name in ("none", "flip")

    def __call__(self, image: Array8, mask: Array8, seed: Sequence[int]) -> tuple[Array8, Array8]:
        """Draw one view.

        Args:
            image: uint8 (S, S, 3).
            mask: uint8 (S, S) of 0, 1 and 255.
            seed: what the draw depends on; nothing else does it depend on.

        Returns:
            The image and the mask.
        """
        if self.name == "none":
            return image, mask
        draw = int(np.random.SeedSequence(seed).generate_state(1)[0])
        if self.name == "flip":
            if draw % 2:
                return image, mask
            return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        pipeline = _pipeline(self.name, self.fill)
        # Not set_random_seed: it gives each step the same stream, so that all of them apply or none.
        pipeline.set_random_state(np.random.default_rng(draw), random.Random(draw))
        view = pipeline(image=image, mask=mask)
        # A small object at the border can leave the picture; an episode without one teaches nothing.
        if (mask == 1).any() and not (view["mask"] == 1).any():
            return image, mask
        return view["image"], view["mask"]


@functools.cache
def _pipeline(name: str, fill: tuple[int, int, int]) -> albumentations.Compose:
    """The albumentations pipeline of a name, built once a process and seeded anew for each view."""
    # Only training needs the import; it is slow, and asks the network for a newer version unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a misspelt argument only warns, and is ignored
        turn = {
            "border_mode": cv2.BORDER_CONSTANT,
            "interpolation": cv2.INTER_LINEAR,
            "mask_interpolation": cv2.INTER_NEAREST,
            "fill": fill,
            "fill_mask": IGNORE,
            "p": 0.5,
        }
        flip = A.HorizontalFlip(p=0.5)
        if name == "published":
            # The deviation whose kernel is nearest to OpenCV's own 5x5 one, (1, 4, 6, 4, 1) / 16 each way.
            blur = A.GaussianBlur(blur_limit=(5, 5), sigma_limit=(1.06, 1.06), p=0.5)
            return A.Compose([A.Rotate(limit=(-10, 10), **turn), blur, flip])
        return A.Compose([A.Affine(scale=(0.8, 1.25), keep_ratio=True, rotate=(-10, 10), **turn), flip])
