"""HSNet: correlations of query and example after every block, squeezed and mixed by 4-D convolutions (ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Episode, Prediction, Rows
from sd_aanet.errors import ConfigError
from sd_aanet.models.base import FewShotMethod
from sd_aanet.models.parts.centre_pivot import CentrePivot, Patch
from sd_aanet.models.parts.features import Maps
from sd_aanet.models.parts.functional import cross_entropy, resize, share_of, wide

STRIDES = (8, 16, 32)
"""Of the levels, fine to coarse."""
WIDTHS = (16, 64, 128)
"""Channels of each level's three squeezing convolutions, the last also of all that follow."""
SQUEEZE = (((5, 4), (5, 4), (3, 2)), ((5, 4), (3, 2), (3, 2)), ((3, 2), (3, 2), (3, 2)))
"""Their kernels and strides, level by level. All end with a cell for 256 pixels of the example, and can be added."""
EPS = 1e-5
"""Added to a feature's length before dividing by it."""


@dataclass(frozen=True)
class Levels(Rows):
    """Maps of N images at strides 8, 16 and 32, (N, C, h, w) each: a level's taps, one behind another."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    @property
    def each(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fine to coarse."""
        return self.fine, self.middle, self.coarse


@dataclass(frozen=True)
class Supports(Rows):
    """N examples: for each its patches, fine to coarse."""

    patches: tuple[tuple[Patch, ...], ...]


@dataclass(frozen=True)
class Shots(Rows):
    """B support sets, of which only the number of shots is told: nothing is made of the shots together."""

    shots: tuple[int, ...]


class HSNet(FewShotMethod[Levels, Any, Levels, Supports, Shots, Maps]):
    """Hypercorrelation squeeze: dense comparison with every example, K of them by vote.

    Args:
        backbone: one with outputs at strides 8, 16 and 32; taken are those of single blocks before their ReLU where it
            has such, else all.

    Raises:
        ConfigError: it has not.
    """

    name = "hsnet"
    takes = frozenset()
    label = "HSNet"
    output_stride = 32

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.taps = _taps(backbone)
        wanted = [name for level in self.taps for name in level]
        self._channels = [[backbone.outputs[name].channels for name in level] for level in self.taps]
        backbone.keep(wanted)
        self.head = Head(self._channels)

    @property
    def finest(self) -> str:
        return self.taps[0][0]

    def image_features(self, images: Tensor) -> Levels:
        outputs = self.backbone(images, [name for level in self.taps for name in level])
        with self.backbone.no_gradient():
            return Levels(*(torch.cat([outputs[name] for name in level], 1) for level in self.taps))

    def encode_query(self, features: Levels, masked: Any) -> Levels:
        """See `FewShotMethod.encode_query`; every tap's features as long as one."""
        return Levels(*(_unit(maps, channels) for maps, channels in zip(features.each, self._channels, strict=True)))

    def encode_support(self, features: Levels, masked: Any, mask: Tensor) -> Supports:
        """See `FewShotMethod.encode_support`; features times mask, as long as one where there is any mask at all."""
        shares = [share_of(mask, 1, maps) for maps in features.each]  # (N, 1, h, w) each
        extents = torch.stack([_extent(share[:, 0]) for share in shares]).tolist()  # one wait for the GPU
        levels = []
        for maps, share, channels, squeeze, extent in zip(
            features.each, shares, self._channels, SQUEEZE, extents, strict=True
        ):
            stride, (height, width) = squeeze[0][1], maps.shape[-2:]
            grid = (-(-height // stride), -(-width // stride))
            patches = []
            for n, (first_row, last_row, first_column, last_column) in enumerate(extent):
                # From a step of the stride to a step of it: no window of the first convolution beside these outputs'
                # reaches the object, for its kernel's half is less than its stride.
                top, left = first_row // stride, first_column // stride
                rows = slice(top * stride, -(-last_row // stride) * stride + 1)
                columns = slice(left * stride, -(-last_column // stride) * stride + 1)
                around = maps[n : n + 1, :, rows, columns]
                patch = _unit(around * share[n : n + 1, :, rows, columns], channels).to(maps.dtype)
                patches.append(Patch(patch[0], top, left, grid))
            levels.append(patches)
        return Supports(tuple(zip(*levels, strict=True)))

    def support_set(self, supports: Supports, shots: int) -> Shots:
        return Shots((shots,) * (len(supports) // shots))

    def pair(self, queries: Levels, rows: Sequence[int], supports: Supports) -> Maps:
        """See `FewShotMethod.pair`; the whole head: logits (N, 2, h, w) of each example alone, in float32 or wider.

        On a CPU one pair after another, which is kind to its cache.
        """
        together = len(rows) if torch.is_grad_enabled() or queries.fine.is_cuda else 1
        parts = [
            self.head(queries, rows[i : i + together], supports.patches[i : i + together])
            for i in range(0, len(rows), together)
        ]
        return Maps(torch.cat(parts))

    def graph_pairs(self, queries: Levels, supports: Levels, mask: Tensor, shots: int) -> Maps:
        raise ConfigError(
            "model=hsnet compares one pair after another, each on a grid of its own, which no graph can: choose another"
        )

    def compare(self, queries: Levels, sets: Shots, pairs: Maps | None, size: tuple[int, int]) -> Prediction:
        """See `FewShotMethod.compare`; of several shots the votes, which have no gradient, so in training the mean."""
        assert pairs is not None
        logits = resize(pairs.maps, size).unflatten(0, (-1, sets.shots[0]))  # (B, K, 2, H, W)
        if self.training or sets.shots[0] == 1:
            return Prediction(logits.mean(1))
        return Prediction(vote(logits))

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        return {"main": cross_entropy(prediction.logits, episode.query_mask)}


class Head(nn.Module):
    """From correlations to logits at twice the finest level's side.

    Args:
        channels: of each level's taps, fine to coarse.
    """

    def __init__(self, channels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.channels = channels
        self.squeeze = nn.ModuleList()
        for level, squeeze in zip(channels, SQUEEZE, strict=True):
            inputs = (len(level), *WIDTHS)
            self.squeeze.append(
                nn.Sequential(*(Block(i, o, *form) for i, o, form in zip(inputs, WIDTHS, squeeze, strict=False)))
            )
        width = WIDTHS[-1]
        self.mix = nn.ModuleList(nn.Sequential(*(Block(width, width, 3, 1) for _ in range(3))) for _ in range(2))
        self.decode = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Sequential(
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, 2, 3, padding=1),
        )

    def forward(self, queries: Levels, rows: Sequence[int], patches: Sequence[Sequence[Patch]]) -> Tensor:
        """P pairs, each of a query's row and an example's patches, to (P, 2, 2 h, 2 w)."""
        volumes = []
        for query, channels, squeeze, level in zip(
            queries.each, self.channels, self.squeeze, zip(*patches, strict=True), strict=True
        ):
            first, *others = squeeze.children()
            assert isinstance(first, Block)
            x = first.correlate(query, rows, level, channels)  # (P, h, w, a, b, 16)
            for block in others:
                x = block(x)  # (P, h, w, a, b, 128) in the end
            volumes.append(x)
        fine, middle, x = volumes
        for mix, finer in zip(self.mix, (middle, fine), strict=True):
            x = mix(finer + _resize_query(x, finer))  # (P, h, w, a, b, 128)
        x = self.decode(x.mean((3, 4)).permute(0, 3, 1, 2))  # (P, 64, h, w)
        logits: Tensor = self.classify(resize(x, (2 * x.shape[-2], 2 * x.shape[-1])))  # (P, 2, 2 h, 2 w)
        return logits.to(wide(logits))


class Block(nn.Module):
    """Centre-pivot convolution, group norm of four groups, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = CentrePivot(inputs, outputs, kernel, stride)
        self.norm = nn.GroupNorm(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(P, h, w, a, b, C) -> (P, h, w, a / stride, b / stride, C')."""
        return self._finish(self.conv(x))

    def correlate(self, *arguments: Any) -> Tensor:
        """`forward` of correlations, see `CentrePivot.correlate`."""
        return self._finish(self.conv.correlate(*arguments))

    def _finish(self, x: Tensor) -> Tensor:
        flat = x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # (P, C, h w, a b), channels last in memory
        return F.relu(self.norm(flat), inplace=True).permute(0, 2, 3, 1).reshape(x.shape)


def vote(logits: Tensor) -> Tensor:
    """K shots' votes as logits: foreground has at least half of the most votes that any position of a picture has.

    Args:
        logits: (B, K, 2, H, W).

    Returns:
        (B, 2, H, W) logarithms of probabilities. The foreground's is over one half, by 1 / (4 most + 4) at least, just
        where votes / max(1, most) >= 0.5, and else below; it grows with the votes.
    """
    votes = (logits[:, :, 1] > logits[:, :, 0]).sum(1).to(wide(logits))  # (B, H, W)
    most = votes.amax((1, 2), keepdim=True).clamp(min=1)
    # Half of the most is a whole or a half number of votes. A quarter of a vote before it lies the threshold.
    foreground = (votes + 0.75) / (most + 1)  # in (0, 1); 0.5 where votes = most / 2 - 0.25
    return torch.stack([(1 - foreground).log(), foreground.log()], 1)


def _taps(backbone: Backbone) -> tuple[tuple[str, ...], ...]:
    levels = []
    for stride in STRIDES:
        names = [name for name, output in backbone.outputs.items() if output.stride == stride]
        levels.append(tuple([name for name in names if "." in name] or names))
    if not all(levels):
        strides = sorted({output.stride for output in backbone.outputs.values()})
        raise ConfigError(
            f"method hsnet needs outputs at strides 8, 16 and 32, but {backbone.label} has them at "
            f"{', '.join(map(str, strides))}: choose another backbone"
        )
    return tuple(levels)


def _unit(maps: Tensor, channels: Sequence[int]) -> Tensor:
    """(N, C, h, w), the features of each tap divided by their length."""
    parts = []
    for part in maps.split(list(channels), 1):
        length = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=wide(part))  # (N, 1, h, w)
        parts.append((part / (length + EPS)).to(maps.dtype))
    return torch.cat(parts, 1)


def _extent(share: Tensor) -> Tensor:
    """First and last row, first and last column of (N, h, w) with anything; all of them where there is nothing."""
    ends = []
    for line in ((share > 0).any(2).int(), (share > 0).any(1).int()):  # (N, h), (N, w)
        ends += [line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)]
    return torch.stack(ends, 1)  # (N, 4)


def _resize_query(x: Tensor, like: Tensor) -> Tensor:
    """(P, h, w, a, b, C) on the query's grid of another."""
    flat = resize(x.flatten(3).permute(0, 3, 1, 2), (like.shape[1], like.shape[2]))  # (P, a b C, h', w')
    resized: Tensor = flat.permute(0, 2, 3, 1).unflatten(3, x.shape[3:])
    return resized.to(like.dtype)
