"""Segment pictures of one's own: show a few examples with their masks once, then any number of queries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sd_aanet.checkpoint import load_module
from sd_aanet.data.source import Array8
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import IGNORE, Prediction, check_size
from sd_aanet.errors import CheckpointError, ConfigError, DataError
from sd_aanet.models.base import Features, FewShotNetwork, Supports
from sd_aanet.models.functional import resize
from sd_aanet.precision import autocast, resolve_precision

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, a Pillow image, or an array: uint8 (H, W, 3) RGB or (H, W) grey."""
Mask = str | os.PathLike[str] | Image.Image | NDArray[np.integer] | NDArray[np.bool_]
"""A file, a Pillow image, or an array (H, W) of class indices or booleans; see `foreground_of`."""

_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_SHOWN = 8


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


def read_picture(picture: Picture, name: str = "image") -> Array8:
    """A picture as uint8 (H, W, 3) RGB, turned the way a viewer shows it (EXIF).

    Args:
        picture: a file, a Pillow image or an array.
        name: what errors call a picture that is no file.

    Raises:
        DataError: the file is missing or unreadable, or the array is not uint8 (H, W), (H, W, 3) or (H, W, 4).
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
            raise DataError(f"{name} is an array {picture.dtype} {picture.shape}: expected uint8 (H, W, 3), RGB")
        return np.ascontiguousarray(picture[..., :3] if picture.ndim == 3 else np.stack([picture] * 3, -1))
    return np.array(_decode(picture, name).convert("RGB"))


def read_support(
    image: Picture, mask: Mask, class_id: int | None = None, name: str = "support"
) -> tuple[Array8, Array8]:
    """An example as the network will understand it.

    Returns:
        The picture, uint8 (H, W, 3), and its mask, uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: as `FewShotSegmenter.remember`.
    """
    pixels = read_picture(image, f"the image of {name}")
    mask_name = _name(mask, f"the mask of {name}")
    values = _indices(mask, mask_name)
    if values.shape != pixels.shape[:2]:
        (height, width), (image_height, image_width) = values.shape, pixels.shape[:2]
        raise DataError(
            f"{mask_name} is {width}x{height} but {_name(image, f'the image of {name}')} is "
            f"{image_width}x{image_height} as a viewer shows it: save the mask at its picture's size"
        )
    return pixels, foreground_of(values, class_id, mask_name)


def foreground_of(
    values: NDArray[np.integer] | NDArray[np.bool_], class_id: int | None = None, name: str = "the mask"
) -> Array8:
    """What a mask means: which of its values is the object.

    With `class_id`: that value is the object, and 255 is ignored unless it is the class. Without: True is; or 1 is,
    beside 0 and 255 (ignored); or 255 is where there is nothing but 0 beside it, as painting programs write it; or
    the only value beside 0 and 255 is.

    Args:
        values: (H, W) integers or booleans.
        class_id: the object's value, from 1.
        name: what errors call the mask.

    Returns:
        uint8 (H, W): 1 = the object, 0 = anything else, 255 = ignore.

    Raises:
        DataError: no foreground, or several values and no `class_id` to choose among them.
        ConfigError: `class_id` is under 1.
    """
    if class_id is not None and class_id < 1:
        raise ConfigError(f"class_id={class_id}, expected a mask's value from 1 on: 0 is the background")
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    present = np.unique(values).tolist()
    candidates = [value for value in present if value not in (0, IGNORE)]
    if class_id is not None:
        chosen = class_id
    elif len(candidates) > 1:
        raise DataError(
            f"{name} holds {len(candidates)} classes ({_listed(candidates)}), expected one: choose it with "
            "class_id=..., or, if it was painted, save it as PNG with hard edges (no JPEG, no smoothing)"
        )
    else:
        chosen = candidates[0] if candidates else IGNORE
    if chosen not in present or present == [IGNORE]:
        wanted = "" if class_id is None else f" of class_id={class_id}"
        raise DataError(
            f"{name} shows no foreground{wanted}, only {_listed(present)}: mark the object in it, or leave it out"
        )
    meaning = np.where(values == IGNORE, IGNORE, 0).astype(np.uint8)
    meaning[values == chosen] = 1
    return meaning


def _indices(mask: Mask, name: str) -> NDArray[np.integer] | NDArray[np.bool_]:
    """The values of a mask, (H, W)."""
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            raise DataError(f"{name} is an array {mask.dtype} {mask.shape}: expected integers or booleans (H, W)")
        return mask
    picture = _decode(mask, name)
    if picture.mode == "LA":  # a painting program's grey layer: what is transparent was not painted
        grey, alpha = np.moveaxis(np.array(picture), -1, 0)
        return np.where(alpha >= 128, grey, np.uint8(0))
    if picture.mode not in _INDEX_MODES:
        raise DataError(
            f"{name} holds colours (mode {picture.mode}), expected one class index a pixel: "
            "save it as a palette or grey PNG"
        )
    return np.array(picture)


def _decode(source: str | os.PathLike[str] | Image.Image, name: str) -> Image.Image:
    """A whole image in memory, turned the way a viewer shows it."""
    name = _name(source, name)
    try:
        with Image.open(source) if not isinstance(source, Image.Image) else source.copy() as file:
            return ImageOps.exif_transpose(file) if file.getexif() else file.copy()
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path") from None
    # Pillow reports a damaged file as OSError, SyntaxError or ValueError, by format and by place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{name} cannot be read ({line}): expected a whole image file") from None


def _name(source: object, otherwise: str) -> str:
    return f"'{os.fspath(source)}'" if isinstance(source, str | os.PathLike) else otherwise


def _listed(values: list[int]) -> str:
    more = f", ... {values[-1]}" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


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
