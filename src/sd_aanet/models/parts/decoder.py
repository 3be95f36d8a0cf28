"""The decoder: PFENet's feature enrichment. The query at four scales, coarse to fine information flowing down them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.models.parts.functional import resize


class Residual(nn.Module):
    """x + ReLU(conv(ReLU(conv(x)))), 3x3 convolutions without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return x + F.relu(self.conv2(F.relu(self.conv1(x))))


def classifier(channels: int, dropout: float, outputs: int = 2) -> nn.Sequential:
    """3x3 convolution, ReLU, Dropout2d, 1x1 convolution to background and foreground, or to several classes."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, outputs, 1),
    )


class Decoder(nn.Module):
    """Feature enrichment module and classifier (method: Head, step 7).

    Args:
        channels: C of query and prototype.
        guides: how many channels of maps (prior, attention) come beside them.
        bins: the scales: sides in cells where above 1, else fractions of h (rounded down, at least one cell).
        dropout: rate of the classifiers.
        outputs: of them: background and foreground, or background and several classes.
    """

    def __init__(
        self,
        channels: int,
        guides: int,
        bins: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125),
        dropout: float = 0.1,
        outputs: int = 2,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.merge = nn.ModuleList(nn.Conv2d(2 * channels + guides, channels, 1, bias=False) for _ in bins)
        self.flow = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1, bias=False) for _ in bins[1:])
        self.refine = nn.ModuleList(Residual(channels) for _ in bins)
        self.auxiliary = nn.ModuleList(classifier(channels, dropout, outputs) for _ in bins)
        self.join = nn.Conv2d(len(bins) * channels, channels, 1, bias=False)
        self.residual = Residual(channels)
        self.classifier = classifier(channels, dropout, outputs)

    def sides(self, height: int, width: int) -> list[tuple[int, int]]:
        """The grid of each scale for feature maps of (height, width)."""
        return [(max(1, int(height * b)), max(1, int(width * b))) if b <= 1 else (int(b), int(b)) for b in self.bins]

    def forward(
        self, query: Tensor, prototype: Tensor, guides: list[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits at `size`, and in training those of every scale.

        Args:
            query: (B, C, h, w), reweighted where SDPM is on.
            prototype: (B, C).
            guides: (B, 1, h, w) each, or (B, N, h, w) of N classes: prior, attention, where they are on.
            size: (H, W) of the logits.

        Returns:
            (B, outputs, H, W), and in training one such a scale.
        """
        grid = (query.shape[-2], query.shape[-1])
        channels = query.shape[1]
        scales: list[Tensor] = []
        auxiliary: list[Tensor] = []
        for index, side in enumerate(self.sides(*grid)):
            maps = [F.adaptive_avg_pool2d(query, side)] + [resize(guide, side).to(query.dtype) for guide in guides]
            # The prototype is the same everywhere: its share of a 1x1 convolution is one vector.
            weight = self.merge[index].get_parameter("weight")
            constant = F.linear(prototype, weight[:, :channels, 0, 0])[:, :, None, None]  # (B, C, 1, 1)
            x = F.relu(F.conv2d(torch.cat(maps, 1), weight[:, channels:]) + constant)  # (B, C, side, side)
            if index > 0:
                finer = resize(scales[-1], side)  # (B, C, side, side)
                x = x + F.relu(self.flow[index - 1](torch.cat([x, finer], 1)))
            x = self.refine[index](x)  # (B, C, side, side)
            if self.training:
                auxiliary.append(resize(self.auxiliary[index](x), size))  # (B, 2, H, W)
            scales.append(resize(x, grid))  # (B, C, h, w)
        x = F.relu(self.join(torch.cat(scales, 1)))  # (B, C, h, w)
        logits = resize(self.classifier(self.residual(x)), size)  # (B, 2, H, W)
        return logits, tuple(auxiliary)
