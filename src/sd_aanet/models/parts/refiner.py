"""A small network that sharpens a coarse map of "this is the object" by the features of the picture it was made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.models.parts.functional import resize, wide

GUIDES = 4
"""Maps that are made of the coarse logits for the network to read."""


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolution(width, width, dilation=dilation)
        self.second = convolution(width, width, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) to the same."""
        return F.relu(x + self.second(F.relu(self.first(x), inplace=True)), inplace=True)


class Refiner(nn.Module):
    """Logits of the object at an eighth of a picture's side, brought to a half.

    It knows no classes: it reads what somebody else found, at which places that agrees with itself (the mean features
    of the object and of the rest, as the coarse map has them, compared with each cell), and where the edges are. Batch
    norms have been folded into its convolutions, so it is for use; benchmarks/refiner.py trains it.

    Args:
        coarse: channels of the features at an eighth.
        quarter: channels of those at a quarter.
        half: channels of those at a half, the picture's own three among them.
        widths: of its layers at an eighth, a quarter and a half.
    """

    def __init__(self, coarse: int, quarter: int, half: int, widths: Sequence[int] = (64, 24, 12)) -> None:
        super().__init__()
        wide, middle, narrow = widths
        self.features = convolution(coarse, wide, 1)
        self.guides = convolution(GUIDES, wide // 2)
        self.mixed = convolution(wide + wide // 2, wide)
        self.before = nn.Sequential(Block(wide), Block(wide, 2))
        self.context = nn.Linear(2 * wide + 1, wide)
        self.agreeing = convolution(wide + 2, wide)
        self.after = nn.Sequential(Block(wide, 4), Block(wide, 2))
        self.eighth_logits = nn.Conv2d(wide, 1, 1)
        self.trust = nn.Parameter(torch.ones(1))
        self.quarter_features, self.quarter_above = convolution(quarter, middle, 1), convolution(wide, middle, 1)
        self.quarter_mixed = convolution(2 * middle + 1, middle)
        self.quarter_block = Block(middle)
        self.quarter_logits = nn.Conv2d(middle, 1, 1)
        self.half_features, self.half_above = convolution(half, narrow, 1), convolution(middle, narrow, 1)
        self.half_mixed = convolution(2 * narrow + 1, narrow)
        self.half_last = convolution(narrow, narrow)
        self.half_logits = nn.Conv2d(narrow, 1, 1)

    def forward(self, z: Tensor, coarse: Tensor, quarter: Tensor, half: Tensor) -> Tensor:
        """Sharpen logits: the last of `levels`."""
        return self.levels(z, coarse, quarter, half)[-1]

    def levels(self, z: Tensor, coarse: Tensor, quarter: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sharpen logits, at an eighth of the side, a quarter and a half.

        Args:
            z: (B, 1, h, w), logits of the object.
            coarse: (B, C, h, w).
            quarter: (B, C', 2h - 1, 2w - 1).
            half: (B, C'', 4h - 3, 4w - 3).

        Returns:
            (B, 1, h, w), (B, 1, 2h - 1, 2w - 1) and (B, 1, 4h - 3, 4w - 3), logits.
        """
        p = z.sigmoid()  # (B, 1, h, w)
        share = p.mean((2, 3), keepdim=True)  # (B, 1, 1, 1)
        guides = torch.cat([p, (z / 2).tanh(), (z / 8).tanh(), share.expand_as(p)], 1)  # (B, 4, h, w)
        x = F.relu(self.features(coarse), inplace=True)  # (B, W, h, w)
        x = F.relu(self.mixed(torch.cat([x, F.relu(self.guides(guides))], 1)), inplace=True)
        x = self.before(x)  # (B, W, h, w)
        thing = (x * p).mean((2, 3), keepdim=True) / (share + 1e-3)  # (B, W, 1, 1)
        rest = (x * (1 - p)).mean((2, 3), keepdim=True) / (1 - share + 1e-3)  # (B, W, 1, 1)
        alike = [F.cosine_similarity(x.to(wide(x)), mean.to(wide(x)), dim=1)[:, None] for mean in (thing, rest)]
        context = self.context(torch.cat([thing, rest, share], 1).flatten(1))[:, :, None, None]  # (B, W, 1, 1)
        x = F.relu(self.agreeing(torch.cat([x, *(a.to(x.dtype) for a in alike)], 1))) + context
        x = self.after(x)  # (B, W, h, w)
        eighth = self.trust * z + self.eighth_logits(x)  # (B, 1, h, w)

        size = (quarter.shape[-2], quarter.shape[-1])
        z, above = resize(eighth, size), resize(F.relu(self.quarter_above(x)), size)
        found = F.relu(self.quarter_features(quarter), inplace=True)
        x = F.relu(self.quarter_mixed(torch.cat([found, above, (z / 4).tanh()], 1)), inplace=True)
        x = self.quarter_block(x)  # (B, M, 2h - 1, 2w - 1)
        fourth = z + self.quarter_logits(x)

        size = (half.shape[-2], half.shape[-1])
        z, above = resize(fourth, size), resize(F.relu(self.half_above(x)), size)
        found = F.relu(self.half_features(half), inplace=True)
        x = F.relu(self.half_mixed(torch.cat([found, above, (z / 4).tanh()], 1)), inplace=True)
        x = F.relu(self.half_last(x), inplace=True)  # (B, N, 4h - 3, 4w - 3)
        return eighth, fourth, z + self.half_logits(x)


def convolution(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> nn.Conv2d:
    """Keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
