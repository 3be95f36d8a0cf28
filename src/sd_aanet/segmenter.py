"""Segment pictures of one's own: show a few examples with their masks once, then any number of queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sd_aanet.checkpoint import load_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess, Restored
from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError, DataError, PredictionError
from sd_aanet.images import Array8, Mask, Picture, read_image
from sd_aanet.models.base import Method
from sd_aanet.models.parts.functional import resize
from sd_aanet.precision import autocast, resolve_precision
from sd_aanet.rules import check, whole
from sd_aanet.supports import read_support


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture, at the picture's own size. Beside the mask, maps are made when they are asked for.

    Attributes:
        mask: uint8 (H, W), 1 where the probability is over one half, else 0.
        restored: the probability, a strip at a time.
        looked_at: the attention, a strip at a time; None where the method has no such map.
    """

    mask: Array8
    restored: Restored
    looked_at: Restored | None

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """float32 (H, W) in [0, 1], of the supports' class."""
        return self.restored.whole()

    @cached_property
    def attention(self) -> NDArray[np.float32] | None:
        """What the method looked at, float32 (H, W), from 0, its least in this picture, to 1, its most, or None.

        Of SD-AANet, SAAM's affinity attention, which only the decoder reads: the object stands out by being high or by
        being low.
        """
        return None if self.looked_at is None else self.looked_at.whole()


class FewShotSegmenter:
    """Three calls to a mask: `from_checkpoint`, `remember` some examples, `segment`.

    Args:
        method: trained, or one that needs no training.
        preprocess: how pictures became the method's input in training.
        device: "auto" (CUDA where there is any), "cpu", "cuda", or another of torch's names.
        precision: "32-true", "bf16-mixed", or "auto": the latter where the device computes bfloat16 natively.

    Raises:
        ConfigError: no such device here, no such precision, the backbone takes no pictures of the size or the
            normalisation of `preprocess`, or the method is made for several classes at once.
    """

    def __init__(
        self, method: Method, preprocess: Preprocess, device: str = "auto", precision: str = "32-true"
    ) -> None:
        backbone = method.backbone
        backbone.grid.check(preprocess.size)
        if (preprocess.mean, preprocess.std) != (backbone.mean, backbone.std):
            raise ConfigError(
                f"preprocess has mean {preprocess.mean} and std {preprocess.std}, but {backbone.label} expects "
                f"{backbone.mean} and {backbone.std}: set them to these"
            )
        if method.ways not in (None, 1):
            raise ConfigError(
                f"method {method.name} is made for {method.ways} classes at once, and here is one: choose another one, "
                "or sd-aanet evaluate"
            )
        self.device = _device(device)
        self.precision = resolve_precision(precision, self.device.type)
        autocast(self.precision, self.device)  # which refuses what it does not know
        self.method = method.to(self.device).eval()
        self.preprocess = preprocess
        self._remembered: tuple[Comparer, int] | None = None

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str = "auto", precision: str = "32-true", not_finite: str = "refuse"
    ) -> Self:
        """Load what `sd-aanet train` wrote; the preprocessing travels with it.

        Raises:
            CheckpointError: the file is missing, truncated or of another kind, or, unless `not_finite` is "use", holds
                NaN or infinity.
            ConfigError: no such device or precision here.
        """
        trained = load_trained(path, not_finite)
        return cls(trained.method, trained.preprocess, device, precision)

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
        _check_batch(batch)
        inputs, seen = [], []
        for i, pair in enumerate(supports, start=1):  # of each only what the network takes is held
            image, mask = read_support(*pair, class_id, name=f"support {i}")
            inputs.append(self.preprocess.resize_pair(image, mask))
            seen.append((int(np.count_nonzero(mask == 1)), mask.size))
        if not inputs:
            raise DataError("the list of supports is empty: give at least one pair of a picture and its mask")
        images = torch.stack([self.preprocess.normalise(image) for image, _ in inputs])  # (K, 3, S, S)
        masks = torch.from_numpy(np.stack([mask for _, mask in inputs])).long()  # (K, S, S)
        comparer, places = Comparer(self.method), range(len(inputs))
        finest = self.method.backbone.outputs[self.method.finest]
        _check_visible(masks, finest.cells(self.preprocess.size), seen)
        with autocast(self.precision, self.device):
            for start in range(0, len(inputs), batch):
                some = slice(start, start + batch)
                comparer.add_supports(places[some], images[some].to(self.device), masks[some].to(self.device))
        self._remembered = comparer, len(inputs)

    def segment(self, query: Picture) -> Segmentation:
        """Find the supports' class in one picture.

        Raises:
            DataError: the picture is missing or unreadable.
            ConfigError: nothing is remembered yet.
            PredictionError: what comes out is no number.
        """
        return next(self.segment_all([query]))

    def segment_all(self, queries: Iterable[Picture], batch: int = 4) -> Iterator[Segmentation]:
        """Find the supports' class in each of many pictures, of any sizes; lazily, in order.

        Args:
            queries: read as they are needed.
            batch: pictures that go through the network together.

        Raises:
            DataError: (as it comes to it) a picture is missing or unreadable.
            ConfigError: nothing is remembered yet, or `batch` is no number of pictures.
        """
        _check_batch(batch)
        if self._remembered is None:
            raise ConfigError("no support is remembered, so what to segment is unknown: call remember(...) first")
        # Bound now: what is remembered later is for later calls.
        return self._each(iter(queries), batch, *self._remembered)

    def _each(self, queries: Iterator[Picture], batch: int, comparer: Comparer, shots: int) -> Iterator[Segmentation]:
        read = ((self.preprocess.image(image), image.shape[:2]) for image in map(_read_query, queries))
        while some := list(islice(read, batch)):
            yield from self._segment([image for image, _ in some], [size for _, size in some], comparer, shots)

    @torch.inference_mode()
    def _segment(
        self, inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]], comparer: Comparer, shots: int
    ) -> list[Segmentation]:
        images = torch.stack([*inputs]).to(self.device)
        with autocast(self.precision, self.device):
            queries = comparer.encode_queries(images)
            comparisons = [(row, [range(shots)]) for row in range(len(sizes))]
            prediction = comparer.compare(queries, comparisons, (images.shape[-2], images.shape[-1]))
            scores = comparer.scores(prediction, 1)
        if not torch.isfinite(scores).all():
            raise PredictionError("predictions are not finite: set precision=32-true, or choose another checkpoint")
        return [self._restore(prediction, scores[i, 1], i, size) for i, size in enumerate(sizes)]

    def _restore(self, prediction: Prediction, score: Tensor, i: int, size: tuple[int, int]) -> Segmentation:
        """Back to the picture's own size."""
        restored, mask = self.preprocess.restored(score, size), np.empty(size, np.uint8)
        for rows, probability in restored.strips():
            mask[rows] = probability > 0.5
        return Segmentation(mask, restored, self.preprocess.attention(prediction, i, size))


def _read_query(query: Picture) -> Array8:
    return read_image(query, "query")


def _check_batch(batch: int) -> None:
    check({"batch": batch}, {"batch": whole(1, 4)})


def _check_visible(masks: Tensor, cells: int, originals: Sequence[tuple[int, int]]) -> None:
    """Raise DataError where an object falls between the cells of the feature map: its prototype would be nothing."""
    weights = resize((masks == 1)[:, None].float(), cells).flatten(1).sum(1)  # (K,)
    for i, (weight, (pixels, of)) in enumerate(zip(weights.tolist(), originals, strict=True), start=1):
        if weight == 0:
            raise DataError(
                f"the object in support {i} has {pixels} of {of} pixels, too few for the "
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
