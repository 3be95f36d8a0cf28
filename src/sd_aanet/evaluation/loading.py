"""The pictures and masks of an evaluation's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.transforms import Preprocess, digest
from sd_aanet.episode import IGNORE, Batch
from sd_aanet.evaluation.plan import Step


@dataclass(frozen=True)
class LabelledPictures(Batch):
    """The N pictures of a step, with M >= N masks: one a picture and class, pictures outermost.

    Attributes:
        step: its place in the plan.
        images: (N, 3, S, S) float32, RGB, normalised as the backbone wants it.
        masks: (M, S, S) int64; 1 = the class, 0 = everything else, 255 = ignore.
        truths: M masks (H, W) uint8, each of its picture's own size.
        keys: N names, each of exactly an image's pixels.
        mask_keys: M names, each of exactly an image's and its mask's pixels.
    """

    step: int
    images: Tensor
    masks: Tensor
    truths: tuple[Tensor, ...]
    keys: tuple[str, ...]
    mask_keys: tuple[str, ...]


@dataclass(eq=False)
class StepDataset(Dataset[LabelledPictures]):
    """Loads the pictures of each step.

    Args:
        source: the images.
        steps: see `plan`.
        preprocess: pictures and masks to S x S, and to tensors.
        ignore_boundary: what is 255 in a query's mask counts nowhere; otherwise it is background.
    """

    source: ImageSource
    steps: Sequence[Step]
    preprocess: Preprocess
    ignore_boundary: bool = True

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int) -> LabelledPictures:
        """The pictures of step `i`.

        Raises:
            DataError: an image or mask cannot be read.
        """
        step = self.steps[i]
        images, masks, truths, keys, mask_keys = [], [], [], [], []
        for place, classes in zip(step.images, step.classes, strict=True):
            picture = self.source.image(place)
            for class_id in classes:
                truth = self.source.mask(place, class_id)
                if step.episodes and not self.ignore_boundary:
                    truth = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
                image, mask = self.preprocess.resize_pair(picture, truth)
                key = self.preprocess.key(image)
                mask_keys.append(f"{key}/{digest(mask)}")
                masks.append(torch.from_numpy(mask).long())
                truths.append(torch.from_numpy(truth))
            images.append(self.preprocess.normalise(image))
            keys.append(key)
        return LabelledPictures(
            i, torch.stack(images), torch.stack(masks), tuple(truths), tuple(keys), tuple(mask_keys)
        )
