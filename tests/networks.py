"""Small methods and episodes for tests."""

from collections.abc import Collection, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from plain import Plain
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.resnet import ResNet
from sd_aanet.backbones.vgg import VGG
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode, joined_masks
from sd_aanet.models import find_method
from sd_aanet.models.base import Method
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.models.sd_aanet.published import to_published

CHANNELS = 16
BINS = (1.0, 7, 0.5, 2)
"""Scales as large as the feature map, larger and smaller."""
_HEAD = {"channels": CHANNELS, "bins": BINS, "dropout": 0.0}
SMALL: dict[str, dict[str, Any]] = {"sd_aanet": _HEAD, "sd_aanet_multi": _HEAD}
"""Settings with which a method is quick and draws nothing; a method without such has none here."""
ONLY = {"refined_probe": "efficientnet_lite2"}
"""The backbone of a method that has but one."""
OF_BACKBONE = ("trainable", "norm", "mid", "high", "stride_on", "output_stride")


def small(
    seed: int = 0, dtype: torch.dtype = torch.float64, backbone: str | Backbone = "resnet18", **arguments: Any
) -> SDAANet:
    """SD-AANet on a ResNet-18 with few channels, no dropout and batch norms that do something.

    Args:
        seed: of its weights.
        dtype: of them.
        backbone: its name, or itself.
        arguments: of `build_backbone` and of `SDAANet`.
    """
    torch.manual_seed(seed)
    options = {name: arguments.pop(name) for name in OF_BACKBONE if name in arguments}
    if isinstance(backbone, str):
        backbone = build_backbone(backbone, **options)
    network = SDAANet(backbone, **(SMALL["sd_aanet"] | arguments)).to(dtype)
    rough(network)
    return network


def tiny(name: str, backbone: Backbone | None = None, dtype: torch.dtype = torch.float64, ways: int = 2) -> Method:
    """Any method by its name, over a ResNet-18, or its only backbone, unless another is given, in eval mode.

    Args:
        name: of the method.
        backbone: its own.
        dtype: of the weights.
        ways: for a method that is made for so many classes.
    """
    torch.manual_seed(0)
    chosen = find_method(name)
    settings = SMALL.get(name, {}) | ({"ways": ways} if name == "sd_aanet_multi" else {})
    backbone = backbone or build_backbone(ONLY.get(name, "resnet18"), output_stride=chosen.output_stride)
    method = chosen(backbone, **settings).to(dtype)
    rough(method)
    return method.eval()


def rough(network: nn.Module) -> None:
    """Batch norms far from the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


class Seen(list[int]):
    """One list, whoever copies what holds it, as folding copies a backbone."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class CountingResNet(ResNet):
    """A ResNet that notes how many images each pass takes through it, from the pixels on."""

    def __init__(self, depth: int = 18, **options: Any) -> None:
        super().__init__(depth, **options)
        self.seen = Seen()

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        self.seen.append(len(images))
        return super().run(images, wanted)


def plain(network: SDAANet, **arguments: Any) -> Plain:
    """The plain version with the same weights."""
    backbone = "vgg16_bn" if isinstance(network.backbone, VGG) else ""
    state = {name: value.detach().clone() for name, value in to_published(network.state_dict(), backbone).items()}
    stage = None if network.high is None else int(network.high.removeprefix("stage"))
    settings = {"bins": network.decoder.bins, "training": network.training, "prior_stage": stage}
    return Plain(state, **(settings | arguments))


def predict(method: Method, query: Tensor, support: Tensor, support_mask: Tensor) -> Any:
    """The prediction of one-way episodes, who see no query mask: (B, 3, S, S), (B, K, 3, S, S), (B, K, S, S)."""
    nothing = torch.full(query[:, 0].shape, 255)
    return Comparer(method)(made(query, nothing, support, support_mask))


def losses(
    method: Method, query: Tensor, query_mask: Tensor, support: Tensor, support_mask: Tensor
) -> dict[str, Tensor]:
    """The terms of a training step, and their weighted sum as `total`."""
    one = made(query, query_mask, support, support_mask)
    terms = method.losses(Comparer(method)(one), one)
    weighted = [method.loss_weights.get(name, 1.0) * term for name, term in terms.items()]
    return terms | {"total": torch.stack(weighted).sum()}


def made(query: Tensor, query_mask: Tensor, support: Tensor, support_mask: Tensor) -> Episode:
    """One-way episodes of what `inputs` gives."""
    count, shots = support.shape[:2]
    return Episode(
        query=query,
        query_mask=query_mask,
        support=support[:, None],
        support_mask=support_mask[:, None],
        class_id=torch.ones(count, 1, dtype=torch.int64),
        index=torch.arange(count),
        query_key=("",) * count,
        support_key=(("",) * shots,) * count,
    )


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


def episode(
    names: Sequence[Sequence[str]],
    classes: Sequence[int | tuple[int, ...]],
    size: int = 33,
    dtype: torch.dtype = torch.float32,
) -> Episode:
    """A batch of episodes; the same name and class, the same pixels.

    Args:
        names: of each one's query and supports, shots innermost.
        classes: of each one.
        size: S.
        dtype: of the pictures.
    """
    ways = [one if isinstance(one, tuple) else (one,) for one in classes]
    shots = (len(names[0]) - 1) // len(ways[0])

    def image(name: str) -> Tensor:
        return inputs(1, 1, size, sum(map(ord, name)), dtype)[0][0]

    def mask(name: str, class_id: int) -> Tensor:
        return inputs(1, 1, size, sum(map(ord, name)) + class_id)[1][0]

    supports = [
        [(name, row[i // shots]) for i, name in enumerate(some[1:])] for some, row in zip(names, ways, strict=True)
    ]
    return Episode(
        query=torch.stack([image(row[0]) for row in names]),
        query_mask=torch.stack(
            [joined_masks([mask(some[0], c) for c in row]) for some, row in zip(names, ways, strict=True)]
        ),
        support=torch.stack([torch.stack([image(n) for n, _ in row]).unflatten(0, (-1, shots)) for row in supports]),
        support_mask=torch.stack([torch.stack([mask(*p) for p in row]).unflatten(0, (-1, shots)) for row in supports]),
        class_id=torch.tensor(ways),
        index=torch.arange(len(names)),
        query_key=tuple(row[0] for row in names),
        support_key=tuple(tuple(f"{name}/{c}" if name else "" for name, c in row) for row in supports),
    )
