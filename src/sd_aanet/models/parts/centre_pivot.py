"""Correlations of all positions of a query with all of an example, and the 4-D convolution that can be paid for.

A volume (P, h, w, a, b, C) says what each position (h, w) of a query and each (a, b) of an example have in common, for
P such pairs. Channels last and positions of the query first, both halves of a centre-pivot convolution are 2-D ones
over views of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.episode import Batch

CHUNK = 2**22
"""Correlations that a CPU makes at once: about as many as its cache holds until the convolution reads them."""


@dataclass(frozen=True)
class Patch(Batch):
    """An example's features around its object; outside they are zero, and so is every correlation.

    Attributes:
        features: (C, a, b), of each tap as long as one.
        top, left: where the patch begins, in steps of the first convolution's stride.
        grid: sides of the whole map in such steps.
    """

    features: Tensor
    top: int
    left: int
    grid: tuple[int, int]


class CentrePivot(nn.Module):
    """A 4-D convolution of those taps alone where one side of the pair stands at the centre.

    So it is the sum of a convolution over the query's axes, for those positions of the example that the stride leaves,
    and one over the example's axes, with the stride; both have a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.over_query = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.over_support = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(P, h, w, a, b, C) -> (P, h, w, a / stride, b / stride, C'), sides rounded up."""
        picked = x[:, :, :, :: self.stride, :: self.stride].permute(0, 3, 4, 1, 2, 5)  # (P, a', b', h, w, C)
        some, grid = picked.shape[:3], x.shape[3:5]
        along = self.over_query(picked.flatten(0, 2).permute(0, 3, 1, 2))  # (P a' b', C', h, w)
        if grid[0] * grid[1] <= self.kernel**2:  # most of each window would be padding
            bias = self._bias("over_support").repeat(some[1] * some[2])
            across = F.linear(x.flatten(3), self._matrix(*grid), bias).unflatten(3, (some[1], some[2], -1))
        else:
            across = self._across(x.flatten(0, 2).permute(0, 3, 1, 2))  # (P h w, C', a', b')
            across = across.permute(0, 2, 3, 1).unflatten(0, x.shape[:3])  # (P, h, w, a', b', C')
        total: Tensor = across.add_(along.unflatten(0, some).permute(0, 4, 5, 1, 2, 3))
        return total

    def correlate(
        self, query: Tensor, rows: Sequence[int], patches: Sequence[Patch], channels: Sequence[int]
    ) -> Tensor:
        """`forward` of correlations, of which no more is made at a time than is read at once.

        Args:
            query: (N, C, h, w), of length one.
            rows: for each of P pairs, its query.
            patches: P examples.
            channels: of each tap.

        Returns:
            (P, h, w, a', b', C').
        """
        each = [self._correlate(query[row], patch, channels) for row, patch in zip(rows, patches, strict=True)]
        whole = torch.stack(each) if len(each) > 1 else each[0][None]  # (P, h w, a', b', C')
        volume: Tensor = whole.unflatten(1, query.shape[-2:])
        return volume

    def _correlate(self, query: Tensor, patch: Patch, channels: Sequence[int]) -> Tensor:
        q, s = query.flatten(1), patch.features  # (C, h w), (C, i, j)
        picked = s[:, :: self.stride, :: self.stride]  # (C, i', j')
        i, j = picked.shape[1:]
        maps = correlations(picked.flatten(1), q, channels).unflatten(2, query.shape[1:])  # (i' j', taps, h, w)
        along = self.over_query(maps.contiguous(memory_format=torch.channels_last))  # (i' j', C', h, w)
        along = along.flatten(2).permute(2, 0, 1).unflatten(1, (i, j))  # (h w, i', j', C')
        bias = self._bias("over_query") + self._bias("over_support")  # what zeros become
        whole = bias.to(along.dtype).expand(len(along), *patch.grid, -1).clone()  # (h w, a', b', C')
        inside = whole[:, patch.top : patch.top + i, patch.left : patch.left + j]  # (h w, i', j', C')
        step = max(1, CHUNK // (s[0].numel() * len(channels)))
        if torch.is_grad_enabled() or q.is_cuda:
            step = len(along)
        for k in range(0, len(along), step):
            maps = correlations(q[:, k : k + step], s.flatten(1), channels).unflatten(2, s.shape[1:])
            across = self._across(maps).permute(0, 2, 3, 1)  # (n, i', j', C')
            inside[k : k + step] = across.add_(along[k : k + step])
        return whole

    def _across(self, maps: Tensor) -> Tensor:
        """The convolution over an example's axes: (n, C, a, b) -> (n, C', a / stride, b / stride).

        Never to a width of one: oneDNN's bfloat16 convolutions with a stride leave memory as they found it there.
        """
        outputs = -(-maps.shape[3] // self.stride)
        across: Tensor = self.over_support(F.pad(maps, (0, self.stride)) if outputs == 1 else maps)
        return across[..., :outputs]

    def _bias(self, part: str) -> Tensor:
        return self.get_submodule(part).get_parameter("bias")

    def _matrix(self, a: int, b: int) -> Tensor:
        """The convolution over an example's axes as one matrix (a' b' C', a b C), its padding left out."""
        weight = self.over_support.weight  # (C', C, k, k)
        rows, columns = (self._reach(side).to(weight.device) for side in (a, b))  # (a', a), (b', b)
        tap = rows[:, None, :, None] * self.kernel + columns[None, :, None, :]  # (a', b', a, b)
        outside = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
        taps = F.pad(weight.flatten(2), (0, 1))[:, :, tap.masked_fill(outside, -1).flatten(0, 1).flatten(1)]
        return taps.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)  # from (C', C, a' b', a b)

    def _reach(self, side: int) -> Tensor:
        """Of each output and input along a side, the tap that joins them; -1 where none does."""
        tap = torch.arange(side) - torch.arange(0, side, self.stride)[:, None] + self.kernel // 2
        return tap.masked_fill((tap < 0) | (tap >= self.kernel), -1)


def correlations(first: Tensor, second: Tensor, channels: Sequence[int]) -> Tensor:
    """Cosines of features (C, n) and (C, m) that are as long as one, those below zero as zero: (n, taps, m)."""
    both = zip(first.split(list(channels)), second.split(list(channels)), strict=True)
    return torch.stack([x.T @ y for x, y in both], 1).relu_()
