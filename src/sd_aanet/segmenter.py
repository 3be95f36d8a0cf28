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

from sd_aanet.checkpoint import load_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError, DataError, PredictionError
from sd_aanet.images import Array8, Mask, Picture, read_image, read_support
from sd_aanet.models.base import Method
from sd_aanet.models.parts.functional import resize
from sd_aanet.precision import autocast, resolve_precision


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture, at the picture's own size.

    Attributes:
        mask: uint8 (H, W), 1 where the probability is over one half, else 0.
        probability: float32 (H, W) in [0, 1], of the supports' class.
        attention: float32 (H, W), what the method looked at, from 0, its least in this picture, to 1, its most; None
            where it has no such map. Of SD-AANet, SAAM's affinity attention, which only the decoder reads: the object
            stands out by being high or by being low.
    """

    mask: Array8
    probability: NDArray[np.float32]
    attention: NDArray[np.float32] | None


class FewShotSegmenter:
    """Three calls to a mask: `from_checkpoint`, `remember` some examples, `segment`.

    Args:
        method: trained, or one that needs no training.
        preprocess: how pictures became the method's input in training.
        device: "auto" (CUDA where there is any), "cpu", "cuda", or another of torch's names.
        precision: "32-true", "bf16-mixed", or "auto": the latter where the device computes bfloat16 natively.

    Raises:
        ConfigError: no such device here, no such precision, or the backbone does not take the size of `preprocess`.
    """

    def __init__(
        self, method: Method, preprocess: Preprocess, device: str = "auto", precision: str = "32-true"
    ) -> None:
        method.backbone.grid.check(preprocess.size)
        self.device = _device(device)
        self.precision = resolve_precision(precision, self.device.type)
        autocast(self.precision, self.device)  # which refuses what it does not know
        self.method = method.to(self.device).eval()
        self.preprocess = preprocess
        self._remembered: tuple[Comparer, int] | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", precision: str = "32-true") -> Self:
        """Load what `sd-aanet train` wrote; the preprocessing travels with it.

        Raises:
            CheckpointError: the file is missing, truncated or of another kind.
            ConfigError: no such device or precision here.
        """
        trained = load_trained(path)
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
        pairs = [read_support(*pair, class_id, name=f"support {i}") for i, pair in enumerate(supports, start=1)]
        if not pairs:
            raise DataError("the list of supports is empty: give at least one pair of a picture and its mask")
        inputs = [self.preprocess.resize_pair(image, mask) for image, mask in pairs]
        images = torch.stack([self.preprocess.normalise(image) for image, _ in inputs])  # (K, 3, S, S)
        masks = torch.from_numpy(np.stack([mask for _, mask in inputs])).long()  # (K, S, S)
        comparer, places = Comparer(self.method), range(len(pairs))
        _check_visible(masks, self.method.backbone.smallest_grid(self.preprocess.size), [mask for _, mask in pairs])
        with autocast(self.precision, self.device):
            for start in range(0, len(pairs), batch):
                some = slice(start, start + batch)
                comparer.add_supports(places[some], images[some].to(self.device), masks[some].to(self.device))
        self._remembered = comparer, len(pairs)

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
            ConfigError: nothing is remembered yet.
        """
        if self._remembered is None:
            raise ConfigError("no support is remembered, so what to segment is unknown: call remember(...) first")
        # Bound now: what is remembered later is for later calls.
        return self._each(iter(queries), batch, *self._remembered)

    def _each(self, queries: Iterator[Picture], batch: int, comparer: Comparer, shots: int) -> Iterator[Segmentation]:
        while pictures := [read_image(query, "query") for query in islice(queries, batch)]:
            yield from self._segment(pictures, comparer, shots)

    @torch.inference_mode()
    def _segment(self, pictures: Sequence[Array8], comparer: Comparer, shots: int) -> list[Segmentation]:
        images = torch.stack([self.preprocess.image(picture) for picture in pictures]).to(self.device)
        with autocast(self.precision, self.device):
            queries = comparer.encode_queries(images)
            comparisons = [(row, [range(shots)]) for row in range(len(pictures))]
            prediction = comparer.compare(queries, comparisons, (images.shape[-2], images.shape[-1]))
            scores = comparer.scores(prediction, 1)
        if not torch.isfinite(scores).all():
            raise PredictionError("predictions are not finite: set precision=32-true, or choose another checkpoint")
        return [self._restore(prediction, scores[i, 1], i, picture.shape[:2]) for i, picture in enumerate(pictures)]

    def _restore(self, prediction: Prediction, score: Tensor, i: int, size: tuple[int, int]) -> Segmentation:
        """Back to the picture's own size."""
        probability = self.preprocess.restore(score, size).cpu().numpy()
        attention = self.preprocess.attention(prediction, i, size)
        return Segmentation((probability > 0.5).astype(np.uint8), probability, attention)


def _check_visible(masks: Tensor, cells: int, originals: Sequence[Array8]) -> None:
    """Raise DataError where an object falls between the cells of the feature map: its prototype would be nothing."""
    seen = resize((masks == 1)[:, None].float(), cells).flatten(1).sum(1)  # (K,)
    for i, (weight, mask) in enumerate(zip(seen.tolist(), originals, strict=True), start=1):
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
