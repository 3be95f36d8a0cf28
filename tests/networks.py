"""Small networks and episodes for tests."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plain import Plain
from sd_aanet.episode import Episode
from sd_aanet.models.published import to_published
from sd_aanet.models.sd_aanet import SDAANet

CHANNELS = 16
BINS = (1.0, 7, 0.5, 2)
"""Scales as large as the feature map, larger and smaller."""


def small(seed: int = 0, dtype: torch.dtype = torch.float64, **arguments: Any) -> SDAANet:
    """SD-AANet on a ResNet-18 with few channels, no dropout and batch norms that do something."""
    torch.manual_seed(seed)
    settings = {"backbone": "resnet18", "channels": CHANNELS, "bins": BINS, "dropout": 0.0} | arguments
    network = SDAANet(**settings).to(dtype)  # type: ignore[arg-type]
    rough(network)
    return network


def rough(network: nn.Module) -> None:
    """Batch norms far from the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def plain(network: SDAANet, **arguments: Any) -> Plain:
    """The plain version with the same weights."""
    state = {name: value.detach().clone() for name, value in to_published(network.state_dict(), "").items()}
    settings = {"bins": network.decoder.bins, "training": network.training, "prior_stage": network.prior_stage}
    return Plain(state, **(settings | arguments))


def inputs(
    batch: int = 2, shot: int = 1, size: int = 41, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, query mask, support, support mask; masks are discs with a border of 255, pictures show them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    centres = rng.uniform(0.35, 0.65, (batch, shot + 1, 2, 1, 1))
    radius = np.hypot(y - centres[:, :, 0], x - centres[:, :, 1]) / rng.uniform(0.15, 0.3, (batch, shot + 1, 1, 1))
    masks = torch.from_numpy(np.select([radius < 1, radius < 1.2], [1, 255], 0))  # (B, K + 1, S, S)
    images = torch.from_numpy(rng.normal(0, 1, (batch, shot + 1, 3, size, size))) + 2.0 * (masks == 1)[:, :, None]
    images = images.to(dtype)
    return images[:, 0], masks[:, 0], images[:, 1:], masks[:, 1:]


def episode(names: list[list[str]], classes: list[int], size: int = 33, dtype: torch.dtype = torch.float32) -> Episode:
    """A batch of episodes: `names` of each one's query and supports; the same name and class, the same pixels."""
    pictures = {name: inputs(1, 1, size, sum(map(ord, name)), dtype)[0][0] for row in names for name in row}
    rows = [
        [(inputs(1, 1, size, sum(map(ord, n)) + c)[1][0], pictures[n]) for n in row]
        for row, c in zip(names, classes, strict=True)
    ]
    return Episode(
        query=torch.stack([row[0][1] for row in rows]),
        query_mask=torch.stack([row[0][0] for row in rows]),
        support=torch.stack([torch.stack([image for _, image in row[1:]]) for row in rows]),
        support_mask=torch.stack([torch.stack([mask for mask, _ in row[1:]]) for row in rows]),
        class_id=torch.tensor(classes),
        index=torch.arange(len(rows)),
        query_key=tuple(row[0] for row in names),
        support_key=tuple(tuple(row[1:]) for row in names),
    )
