"""Segment pictures of one's own: show a few examples with their masks once, then any number of queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.checkpoint import load_module
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Prediction, check_size
from sd_aanet.errors import CheckpointError, ConfigError, DataError
from sd_aanet.images import Array8, Mask, Picture, read_support
from sd_aanet.images import read_image as read_picture
from sd_aanet.models.base import Features, FewShotNetwork, Supports
from sd_aanet.models.functional import resize
from sd_aanet.precision import autocast, resolve_precision


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture, at the picture's own size.

    Attributes:
        mask: uint8 (H, W), 1 where the probability is over one half, else 0.
        probability: float32 (H, W) in [0, 1], of the supports' class.
        attention: float32 (H, W), SAAM's affinity attention from 0, its least in this picture, to 1, its most; None
            without SAAM. Only the decoder reads it, so the object stands out by being high or by being low.
    """

    mask: Array8
    probability: NDArray[np.float32]
    attention: NDArray[np.float32] | None


class FewShotSegmenter:
    """Three calls to a mask: `from_checkpoint`, `remember` some examples, `segment`.

    Args:
        network: trained.
        preprocess: how pictures became the network's input in training.
        device: "auto" (CUDA where there is any), "cpu", "cuda", or another of torch's names.
        precision: "32-true", "bf16-mixed", or "auto": the latter where the device computes bfloat16 natively.

    Raises:
        ConfigError: no such device here, no such precision, or the size of `preprocess` is not 8n + 1.
    """

    def __init__(
        self, network: FewShotNetwork, preprocess: Preprocess, device: str = "auto", precision: str = "32-true"
    ) -> None:
        check_size(preprocess.size)
        self.device = _device(device)
        self.precision = resolve_precision(precision, self.device.type)
        autocast(self.precision, self.device)  # which refuses what it does not know
        self.network = network.to(self.device).eval()
        self.preprocess = preprocess
        self._supports: Supports | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", precision: str = "32-true") -> Self:
        """Load what `sd-aanet train` wrote; the preprocessing travels with it.

        Raises:
            CheckpointError: the file is missing, truncated or of another kind.
            ConfigError: no such device or precision here.
        """
        module = load_module(path)
        try:
            preprocess = Preprocess(**module.hparams["preprocess"])
        except TypeError as error:
            raise CheckpointError(f"checkpoint '{path}' has a preprocessing unknown to this version: {error}") from None
        return cls(module.network, preprocess, device, precision)

    @torch.inference_mode()
    def remember(self, supports: Iterable[tuple[Picture, Mask]], class_id: int | None = None, batch: int = 4) -> None:
        """Take a support set in place of the last one; its side of the network is computed now, once.

        Args:
            supports: pairs of a picture and its mask, at least one; any number, whatever the shot in training.
            class_id: the value in the masks that is the object; None where only one can be meant (`foreground_of`).
            batch: pictures that go through the backbone together.

        Raises:
            DataError: no support; a file that is missing, unreadable or in colour; a mask of another size than its
                picture, without foreground, or of several classes; an object too small for the network. What was
                remembered before stays.
        """
        pairs = [read_support(*pair, class_id, name=f"support {i}") for i, pair in enumerate(supports, start=1)]
        if not pairs:
            raise DataError("the list of supports is empty: give at least one pair of a picture and its mask")
        inputs = [self.preprocess.resize_pair(image, mask) for image, mask in pairs]
        images = torch.stack([self.preprocess.normalise(image) for image, _ in inputs])  # (K, 3, S, S)
        foreground = torch.from_numpy(np.stack([mask for _, mask in inputs]) == 1).float()  # (K, S, S)
        parts, grid = [], (0, 0)
        for some, masks in zip(images.split(batch), foreground.to(self.device).split(batch), strict=True):
            with autocast(self.precision, self.device):
                features = self._features(some.to(self.device), masks)
                parts.append(self.network.encode_supports(features, masks))
            grid = (features.mid.shape[-2], features.mid.shape[-1])
        _check_visible(foreground, grid, [mask for _, mask in pairs])
        self._supports = Supports(
            torch.cat([part.prototypes for part in parts]), tuple(columns for part in parts for columns in part.columns)
        )

    def segment(self, query: Picture) -> Segmentation:
        """Find the supports' class in one picture.

        Raises:
            DataError: the picture is missing or unreadable.
            ConfigError: nothing is remembered yet.
        """
        return next(self.segment_all([query]))

    def segment_all(self, queries: Iterable[Picture], batch: int = 4) -> Iterator[Segmentation]:
        """Find the supports' class in each of many pictures, of any sizes; lazily, in order.

        Args:
            queries: read as they are needed.
            batch: pictures that go through the network together.

        Raises:
            DataError: (as it comes to it) a picture is missing or unreadable.
            ConfigError: nothing is remembered yet.
        """
        if self._supports is None:
            raise ConfigError("no support is remembered, so what to segment is unknown: call remember(...) first")
        # Bound now: what is remembered later is for later calls.
        return self._each(iter(queries), batch, self._supports)

    def _each(self, queries: Iterator[Picture], batch: int, supports: Supports) -> Iterator[Segmentation]:
        while pictures := [read_picture(query, "query") for query in islice(queries, batch)]:
            yield from self._segment(pictures, supports)

    @torch.inference_mode()
    def _segment(self, pictures: Sequence[Array8], supports: Supports) -> list[Segmentation]:
        images = torch.stack([self.preprocess.image(picture) for picture in pictures]).to(self.device)
        prototypes = supports.prototypes.expand(len(pictures), *supports.prototypes.shape)  # (B, K, ...)
        with autocast(self.precision, self.device):
            queries = self.network.encode_queries(self._features(images))
            prior = self.network.prior(queries, [supports.columns] * len(pictures))  # (B, 1, h, w)
            prediction = self.network.compare(queries, prototypes, prior, (images.shape[-2], images.shape[-1]))
        return [self._restore(prediction, i, picture.shape[:2]) for i, picture in enumerate(pictures)]

    def _features(self, images: Tensor, foreground: Tensor | None = None) -> Features:
        mid = self.network.mid(images)
        return Features(mid, self.network.high(mid, foreground))

    def _restore(self, prediction: Prediction, i: int, size: tuple[int, int]) -> Segmentation:
        """Back to the picture's own size."""
        probability = self.preprocess.restore(prediction.logits[i].float().softmax(0)[1], size).cpu().numpy()
        attention = None
        if prediction.attention is not None:
            side = (self.preprocess.size, self.preprocess.size)
            values = self.preprocess.restore(resize(prediction.attention[i : i + 1].float(), side)[0, 0], size)
            low, high = values.aminmax()
            attention = ((values - low) / (high - low).clamp(min=1e-7)).cpu().numpy()
        return Segmentation((probability > 0.5).astype(np.uint8), probability, attention)


def _check_visible(foreground: Tensor, grid: tuple[int, int], masks: Sequence[Array8]) -> None:
    """Raise DataError where an object falls between the cells of the feature map: its prototype would be nothing."""
    seen = resize(foreground[:, None], grid).flatten(1).sum(1)  # (K,)
    for i, (weight, mask) in enumerate(zip(seen.tolist(), masks, strict=True), start=1):
        if weight == 0:
            raise DataError(
                f"the object in support {i} has {int((mask == 1).sum())} of {mask.size} pixels, too few for the "
                "network to see: crop the picture around it, or use another"
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name} is unknown: choose auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}, but torch finds no CUDA here: choose auto or cpu")
    return device
