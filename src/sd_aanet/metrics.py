"""mIoU and FB-IoU of few-shot segmentation, as sums of integers over a whole list of episodes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from sd_aanet.episode import IGNORE


def episode_counts(prediction: Tensor, mask: Tensor) -> Tensor:
    """Intersections and unions of each episode.

    Args:
        prediction: (B, H, W), 1 = foreground, 0 = background.
        mask: (B, H, W) in {0, 1, 255}; 255 counts nowhere.

    Returns:
        (B, 5) int64: foreground intersection, foreground union, background intersection, background union, object (the
        mask's own foreground).
    """
    valid = mask != IGNORE
    predicted, true = prediction == 1, mask == 1
    columns = [
        predicted & true & valid,
        (predicted | true) & valid,
        ~predicted & ~true & valid,
        (~predicted | ~true) & valid,
        true,
    ]
    return torch.stack([column.flatten(1).sum(1) for column in columns], 1)


def class_sums(counts: Tensor, class_id: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The counts of episodes (B, 5), summed by class: (classes + 1, 4) int64, and how many had each class."""
    sums = counts.new_zeros(classes + 1, 4).index_add_(0, class_id, counts[:, :4])
    return sums, torch.bincount(class_id, minlength=classes + 1)


def class_iou(sums: Tensor, episodes: Tensor) -> Tensor:
    """(classes + 1,) float64, IoU of each class id; NaN where it had no episode. Arguments: see `class_sums`."""
    return torch.where(episodes > 0, _ratio(sums[:, 0], sums[:, 1]), torch.nan)


def scores(sums: Tensor, episodes: Tensor) -> dict[str, Tensor]:
    """`miou`, `fb_iou`, `foreground_iou`, `background_iou` as float64 scalars; NaN without an episode.

    IoU_c = sum of intersections / sum of unions of the foreground, over all episodes of class c. mIoU is the mean of
    IoU_c over the classes that had an episode; FB-IoU the mean of foreground and background IoU over all episodes.
    """
    seen = class_iou(sums, episodes)
    total = sums.sum(0)
    foreground, background = _ratio(total[0], total[1]), _ratio(total[2], total[3])
    return {
        "miou": seen[~seen.isnan()].mean(),
        "fb_iou": (foreground + background) / 2,
        "foreground_iou": foreground,
        "background_iou": background,
    }


class FewShotIoU(Metric):
    """mIoU over classes and FB-IoU, from summed intersections and unions, over all devices; see `scores`.

    Args:
        classes: the largest class id.
    """

    full_state_update = False
    counts: Tensor
    episodes: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes + 1, 4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("episodes", torch.zeros(classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor, class_id: Tensor) -> None:
        """Add episodes: prediction (B, H, W) in {0, 1}, mask (B, H, W) in {0, 1, 255}, class_id (B,)."""
        counts, episodes = class_sums(episode_counts(prediction, mask), class_id, len(self.episodes) - 1)
        self.counts += counts
        self.episodes += episodes

    def compute(self) -> dict[str, Tensor]:
        """See `scores`."""
        return scores(self.counts, self.episodes)


def _ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """Intersection over union; 0 where the union is empty (every pixel ignored)."""
    return intersection.double() / union.clamp(min=1).double()
