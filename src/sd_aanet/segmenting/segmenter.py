"""Segment pictures of one's own: show a few examples with their masks once, then any number of queries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self, overload

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sd_aanet.building import ready_made
from sd_aanet.checkpoint import load_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import IGNORE, Prediction
from sd_aanet.errors import ConfigError, PredictionError
from sd_aanet.images import Array8, Picture, read_image
from sd_aanet.models.base import Method
from sd_aanet.precision import autocast, resolve_precision
from sd_aanet.segmenting.marks import Mark
from sd_aanet.segmenting.memory import Memory, pairs_of
from sd_aanet.segmenting.queries import pictures_of
from sd_aanet.segmenting.result import Segmentation, labelled
from sd_aanet.segmenting.store import Example, Supports, load_supports, save_supports
from sd_aanet.segmenting.tiles import Tiles

logger = logging.getLogger(__name__)
THING = "object"
"""What a support set without a name is called."""
MOST_LEFT_OUT = 8
"""Of many supports so many say how sure the others are of them."""


@dataclass(frozen=True)
class Ranked:
    """How well a support is predicted by the others of its thing.

    Attributes:
        name: of the thing.
        place: of the support, from 0, as `forget` takes it.
        called: the picture's name, or its place.
        iou: in [0, 1], of its mask and of what the others find in it.
    """

    name: str
    place: int
    called: str
    iou: float


class FewShotSegmenter:
    """Three calls to a mask: `FewShotSegmenter()`, `remember` some examples, `segment`.

    Without a method it needs nothing but the package: a linear probe on EfficientNet-Lite2, fitted to the supports and
    sharpened by a network that ships (`models.refined_probe`). See `from_checkpoint` and `of_backbone` for others.

    Args:
        method: trained, or one that needs no training.
        preprocess: how pictures became the method's input in training.
        device: "auto" (CUDA where there is any), "cpu", "cuda", or another of torch's names.
        precision: "32-true", "bf16-mixed", or "auto": the latter where the device computes bfloat16 natively. None:
            "auto" without a method, else "32-true".
        tile: pictures of a longer side, in pixels, are looked at in overlapping parts of this side: slower, and small
            things are seen. None: as a whole.

    Raises:
        ConfigError: no such device here, no such precision, the backbone takes no pictures of the size or the
            normalisation of `preprocess`, or the method is made for several classes at once.
    """

    def __init__(
        self,
        method: Method | None = None,
        preprocess: Preprocess | None = None,
        device: str = "auto",
        precision: str | None = None,
        tile: int | None = None,
    ) -> None:
        if method is None or preprocess is None:
            if not (method is None and preprocess is None):
                raise ConfigError("a method needs its preprocess, and a preprocess its method: give both, or neither")
            method, preprocess = ready_made()
            precision = precision or "auto"
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
        self.precision = resolve_precision(precision or "32-true", self.device.type)
        autocast(self.precision, self.device)  # which refuses what it does not know
        self.method = method.to(self.device).eval()
        self.preprocess = preprocess
        self.tiles = Tiles(tile)
        self._comparer = Comparer(self.method)
        self._memory = Memory(self._comparer, preprocess, self.tiles, self.device, self.precision)
        self._thresholds: dict[tuple[int, ...], float] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "32-true",
        not_finite: str = "refuse",
        tile: int | None = None,
    ) -> Self:
        """Load what `sd-aanet train` wrote; the preprocessing travels with it.

        Raises:
            CheckpointError: the file is missing, truncated or of another kind, or, unless `not_finite` is "use", holds
                NaN or infinity.
            ConfigError: no such device or precision here.
        """
        trained = load_trained(path, not_finite)
        return cls(trained.method, trained.preprocess, device, precision, tile)

    @classmethod
    def of_backbone(
        cls,
        backbone: str,
        size: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
    ) -> Self:
        """What needs no training, over another backbone: a linear probe.

        Args:
            backbone: a file of conf/backbone ("dinov2_s"); its weights are fetched where there are none.
            size: side of the input in pixels; None for 641, or the nearest that the backbone takes.
            device, precision, tile: see the class.

        Raises:
            ConfigError: an unknown backbone, or one whose weights nobody has here.
        """
        return cls(*ready_made(backbone, size), device, precision, tile)

    @property
    def names(self) -> tuple[str, ...]:
        """The things that are remembered, in order."""
        return tuple(self._memory.things)

    @overload
    def remember(
        self,
        name: str,
        images: Iterable[Picture] | Iterable[tuple[Picture, Mark]],
        masks: Iterable[Mark] | None = None,
        class_id: int | None = None,
        batch: int | None = None,
    ) -> None: ...

    @overload
    def remember(
        self,
        name: Iterable[tuple[Picture, Mark]],
        *,
        class_id: int | None = None,
        batch: int | None = None,
    ) -> None: ...

    @torch.inference_mode()
    def remember(
        self,
        name: str | Iterable[tuple[Picture, Mark]],
        images: Iterable[Picture] | Iterable[tuple[Picture, Mark]] | None = None,
        masks: Iterable[Mark] | None = None,
        class_id: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Take examples of a thing in place of those that it had; its side of the network is computed now, once.

        Args:
            name: of the thing; or, where there is but one, pairs of a picture and its mask, in place of all else.
            images: pictures, at least one; any number, whatever the shot in training. Without masks, pairs of both.
            masks: theirs, or what marks the thing in another way: a `Box`, `Points`, polygons, run lengths (`Mark`).
            class_id: the value in the masks that is the thing; None where only one can be meant (`foreground_of`).
            batch: pictures that go through the backbone together; None for 4 on a GPU, and one by one on a CPU.

        Raises:
            DataError: no support; a file that is missing, unreadable or in colour; a mask of another size than its
                picture, without foreground, or of several classes; an object too small for the network. What was
                remembered before stays.
            ConfigError: images without masks, as many of one as of the other, or too many things.
        """
        if isinstance(name, str):
            supports = self._memory.read(name, pairs_of(images, masks), class_id, batch)
            self._keep({**self._memory.things, name: supports}, self._memory.rejected)
        else:
            self._keep({THING: self._memory.read("", name, class_id, batch)}, ())

    @torch.inference_mode()
    def add(
        self,
        name: str,
        images: Iterable[Picture] | Iterable[tuple[Picture, Mark]],
        masks: Iterable[Mark] | None = None,
        class_id: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Take further examples of a thing beside those that it has; see `remember`."""
        before = self._memory.things.get(name, ())
        more = self._memory.read(name, pairs_of(images, masks), class_id, batch, len(before))
        self._keep({**self._memory.things, name: (*before, *more)}, self._memory.rejected)

    def forget(self, name: str, place: int | None = None) -> None:
        """Drop a thing, or one of its supports.

        Raises:
            ConfigError: nothing of that name or place is remembered.
        """
        supports = self._memory.supports(name)
        if place is not None and not 0 <= place < len(supports):
            raise ConfigError(f"support {place} of '{name}' is not there: it has {len(supports)}, counted from 0")
        rest = tuple(some for i, some in enumerate(supports) if place not in (None, i))
        things = {other: rest if other == name else some for other, some in self._memory.things.items()}
        self._keep({other: some for other, some in things.items() if some}, self._memory.rejected)

    @torch.inference_mode()
    def reject(self, images: Iterable[Picture], masks: Iterable[Mark] | None = None, batch: int | None = None) -> None:
        """Take pictures that show none of the things, in place of those that were taken before.

        Args:
            images: pictures.
            masks: where nothing of the kind is; None for all over them.
            batch: pictures that go through the backbone together; None for 4 on a GPU, and one by one on a CPU.

        Raises:
            ConfigError: the method learns nothing from such pictures: only those that fit to their supports do.
            DataError: see `remember`.
        """
        self._keep(self._memory.things, self._memory.read_rejected(images, masks, batch))

    def save(self, path: str | Path) -> None:
        """Write all supports and rejected pictures, as the network sees them, to one file (safetensors).

        Raises:
            ConfigError: nothing is remembered.
            DataError: the file cannot be written.
        """
        if not self._memory.things:
            raise ConfigError("no support is remembered, so there is nothing to save: call remember(...) first")
        save_supports(Path(path), self._memory.things, self._memory.rejected, self.preprocess)

    @torch.inference_mode()
    def load(self, path: str | Path, batch: int | None = None) -> None:
        """Take what `save` wrote, in place of all that is remembered.

        Raises:
            DataError: the file is missing, or holds something else.
            ConfigError: it was made for another size of input.
        """
        things, rejected = load_supports(Path(path), self.preprocess, self._memory.keys)
        if rejected:
            self._memory.check_rejects()
        for supports in things.values():
            parts = [part for some in supports for part in some]
            self._memory.encode(parts, batch, len(parts) + len(rejected))
        self._memory.encode(rejected, batch, len(rejected))
        self._keep(things, rejected)

    def rank(self) -> list[Ranked]:
        """How well each support is predicted by the others of its thing, the worst first: a wrong mask stands out.

        Raises:
            ConfigError: no thing has two supports.
        """
        found = [
            Ranked(name, place, supports[place][0].called, self._left_out(supports, place, self._memory.rejected)[0])
            for name, supports in self._memory.things.items()
            for place in range(len(supports) if len(supports) > 1 else 0)
        ]
        if not found:
            raise ConfigError("rank compares each support with the others of its thing: remember at least two of one")
        return sorted(found, key=lambda ranked: ranked.iou)

    def segment(self, query: Picture) -> Segmentation:
        """Find what is remembered in one picture.

        Raises:
            DataError: the picture is missing or unreadable.
            ConfigError: nothing is remembered yet.
            PredictionError: what comes out is no number.
        """
        return next(self.segment_all([query]))

    def segment_all(
        self, queries: Iterable[Picture] | str | Path, batch: int | None = None, progress: bool = False
    ) -> Iterator[Segmentation]:
        """Find what is remembered in each of many pictures, of any sizes; lazily, in order.

        Args:
            queries: pictures, frames of a video, a folder: read as they are needed.
            batch: pictures that go through the network together; None for 4 on a GPU, and one by one on a CPU.
            progress: show a bar.

        Raises:
            DataError: (as it comes to it) a picture is missing or unreadable.
            ConfigError: nothing is remembered yet, or `batch` is no number of pictures.
        """
        batch = self._memory.together(batch)
        if not self._memory.things:
            raise ConfigError("no support is remembered, so what to segment is unknown: call remember(...) first")
        some = pictures_of([queries]) if isinstance(queries, str | Path) else queries
        total = len(some) if isinstance(some, Sequence) else None
        bar = tqdm(some, "segment", total=total, unit="image", disable=not progress)
        # Bound now: what is remembered later is for later calls.
        least = partial(self._least, dict(self._memory.things), self._memory.rejected)
        return self._each(iter(bar), batch, {name: self._memory.all_keys(name) for name in self._memory.things}, least)

    def _each(
        self,
        queries: Iterator[Picture],
        batch: int,
        things: Mapping[str, Sequence[int]],
        least: Callable[[str], float],
    ) -> Iterator[Segmentation]:
        while some := [read_image(query, "query") for query in islice(queries, batch)]:
            yield from self._segment(some, things, batch, least)

    @torch.inference_mode()
    def _segment(
        self,
        pictures: Sequence[Array8],
        things: Mapping[str, Sequence[int]],
        batch: int,
        least: Callable[[str], float],
    ) -> list[Segmentation]:
        parts = [self.tiles.of(picture.shape[:2]) for picture in pictures]
        inputs = [
            self.preprocess.image(picture[rows, columns])
            for picture, windows in zip(pictures, parts, strict=True)
            for rows, columns in windows
        ]
        each = [self._compare(inputs[i : i + batch], things) for i in range(0, len(inputs), batch)]
        scores = {name: torch.cat([found[name][0] for found in each]) for name in things}  # (P, S, S) each
        sure = {name: torch.cat([found[name][1] for found in each]) for name in things}  # (P,) each
        results, first = [], 0
        for picture, windows in zip(pictures, parts, strict=True):
            size, own = (picture.shape[0], picture.shape[1]), slice(first, first + len(windows))
            restored = {n: self.tiles.joined(self.preprocess, some[own], windows, size) for n, some in scores.items()}
            looked_at = None
            if len(windows) == 1:
                _, _, prediction = next(iter(each[first // batch].values()))
                looked_at = self.preprocess.attention(prediction, first % batch, size)
            score = {name: float(some[own].max()) for name, some in sure.items()}
            labels = labelled(list(restored.values()), size)
            results.append(Segmentation(picture, tuple(things), labels, score, least, restored, looked_at))
            first += len(windows)
        return results

    def _compare(
        self, inputs: Sequence[Tensor], things: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[Tensor, Tensor, Prediction]]:
        """Of each thing in P inputs its probability (P, S, S), how sure it is there (P,), and what was predicted."""
        images = torch.stack([*inputs]).to(self.device)  # (P, 3, S, S)
        size = (images.shape[-2], images.shape[-1])
        found = {}
        with autocast(self.precision, self.device):
            queries = self._comparer.encode_queries(images)
            for name, keys in things.items():
                prediction = self._comparer.compare(queries, [(row, [keys]) for row in range(len(inputs))], size)
                scores = self._comparer.scores(prediction, 1)[:, 1]  # (P, S, S)
                found[name] = scores, self.method.presence(prediction), prediction
        if not all(torch.isfinite(scores).all() for scores, _, _ in found.values()):
            raise PredictionError("predictions are not finite: set precision=32-true, or choose another checkpoint")
        return found

    def _least(self, things: Mapping[str, Supports], rejected: Sequence[Example], name: str) -> float:
        """The score from which on a thing counts as there, of what was remembered when it was looked for."""
        supports = things[name]
        keys = tuple(one.key for some in (*supports, rejected) for one in some)
        if keys not in self._thresholds:
            if keys != tuple(self._memory.all_keys(name) if name in self._memory.things else ()):
                raise ConfigError(
                    f"whether '{name}' is there is judged by its supports, and these are remembered no more: ask for "
                    "`present` before they change"
                )
            places = range(min(len(supports), MOST_LEFT_OUT) if len(supports) > 1 else 0)
            left_out = [self._left_out(supports, place, rejected)[1] for place in places]
            self._thresholds[keys] = self.method.least_presence(left_out)
        return self._thresholds[keys]

    @torch.inference_mode()
    def _left_out(self, supports: Supports, place: int, rejected: Sequence[Example]) -> tuple[float, float]:
        """What the others find in a support: the IoU with its mask, and how sure they are that the thing is there."""
        others = [some for i, some in enumerate(supports) if i != place]
        keys = [one.key for some in (*others, rejected) for one in some]
        both, either, sure = 0, 0, 0.0
        for part in supports[place]:
            scores, score, _ = self._compare([self.preprocess.normalise(part.image)], {"": keys})[""]
            found, true = scores[0].cpu().numpy() > 0.5, part.mask == 1
            both += int(np.count_nonzero(found & true))
            either += int(np.count_nonzero((found | true) & (part.mask != IGNORE)))
            sure = max(sure, float(score[0]))
        return both / max(either, 1), sure

    def _keep(self, things: dict[str, Supports], rejected: tuple[Example, ...]) -> None:
        """These from now on, and nothing that was computed of others."""
        self._memory.keep(things, rejected)
        kept = {key for name in things for key in self._memory.all_keys(name)}
        self._thresholds = {keys: least for keys, least in self._thresholds.items() if kept.issuperset(keys)}


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
