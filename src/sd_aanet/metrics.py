"""mIoU and FB-IoU of few-shot segmentation, as sums of integers over a whole list of episodes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from sd_aanet.episode import IGNORE


def episode_counts(prediction: Tensor, mask: Tensor, ways: int = 1) -> Tensor:
    """Intersections and unions of each class of each episode.

    Args:
        prediction: (B, H, W) in 0..N: 0 = background, n = the n-th class of the episode.
        mask: (B, H, W) in 0..N and 255, which counts nowhere.
        ways: N.

    Returns:
        (B * N, 5) int64, classes innermost: intersection and union of the class, intersection and union of the
        episode's background, object (the mask's own pixels of the class).
    """
    valid = mask != IGNORE
    empty, bare = prediction == 0, mask == 0
    background = [empty & bare & valid, (empty | bare) & valid]
    rows = []
    for way in range(1, ways + 1):
        predicted, true = prediction == way, mask == way
        columns = [predicted & true & valid, (predicted | true) & valid, *background, true]
        rows.append(torch.stack([column.flatten(1).sum(1) for column in columns], 1))  # (B, 5)
    return torch.stack(rows, 1).flatten(0, 1)


def confusion(prediction: Tensor, mask: Tensor, class_id: Tensor, classes: int) -> Tensor:
    """How many pixels of each class were taken for which, over episodes of several classes.

    Args:
        prediction: (B, H, W) in 0..N.
        mask: (B, H, W) in 0..N and 255, which counts nowhere.
        class_id: (B, N), the classes of each episode.
        classes: the largest class id.

    Returns:
        (classes + 1, classes + 1) int64, by true class and by predicted class; 0 is the background.
    """
    ids = torch.cat([torch.zeros_like(class_id[:, :1]), class_id], 1)  # (B, N + 1)
    valid = mask != IGNORE
    side = classes + 1
    each = zip(ids, prediction, mask, valid, strict=True)
    places = torch.cat([side * row[m[v].long()] + row[p[v].long()] for row, p, m, v in each])
    return torch.bincount(places, minlength=side * side).view(side, side)


def class_sums(counts: Tensor, class_id: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The counts of episodes and classes (B * N, 5), summed by class: (classes + 1, 4) int64; and how many each had."""
    sums = counts.new_zeros(classes + 1, 4).index_add_(0, class_id, counts[:, :4])
    return sums, torch.bincount(class_id, minlength=classes + 1)


def class_iou(sums: Tensor, episodes: Tensor) -> Tensor:
    """(classes + 1,) float64, IoU of each class id; NaN where it had no episode. Arguments: see `class_sums`."""
    return torch.where(episodes > 0, _ratio(sums[:, 0], sums[:, 1]), torch.nan)


def scores(sums: Tensor, episodes: Tensor) -> dict[str, Tensor]:
    """`miou`, `fb_iou`, `foreground_iou`, `background_iou` as float64 scalars; NaN without an episode.

    IoU_c = sum of intersections / sum of unions of the foreground, over all episodes of class c. mIoU is the mean of
    IoU_c over the classes that had an episode; FB-IoU the mean of foreground and background IoU over all episodes. Of
    episodes of several classes at once, each class of each counts as one foreground.
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
        """Add episodes: prediction (B, H, W) in 0..N, mask (B, H, W) in 0..N and 255, class_id (B, N)."""
        counts = episode_counts(prediction, mask, class_id.shape[1])
        counts, episodes = class_sums(counts, class_id.flatten(), len(self.episodes) - 1)
        self.counts += counts
        self.episodes += episodes

    def compute(self) -> dict[str, Tensor]:
        """See `scores`."""
        return scores(self.counts, self.episodes)


def _ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """Intersection over union; 0 where the union is empty (every pixel ignored)."""
    return intersection.double() / union.clamp(min=1).double()
