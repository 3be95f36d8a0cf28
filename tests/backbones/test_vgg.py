"""VGG-16."""

import torch
import torch.nn.functional as F
from torch import nn

from networks import inputs
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.vgg import VGG


def test_a_vgg_ends_each_stage_with_its_pool() -> None:
    torch.manual_seed(0)
    vgg = build_backbone("vgg16_bn").eval()
    assert isinstance(vgg, VGG)
    picture = inputs(1, 1, 33, dtype=torch.float32)[0]
    x, by_hand = picture, []
    with torch.no_grad():
        for layer in vgg.features:
            x = F.max_pool2d(x, 2, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(x)
            if isinstance(layer, nn.MaxPool2d):
                by_hand.append(x.clone())
        found = vgg(picture, ["stage2", "stage3", "stage4"])
    assert [m.shape[-1] for m in by_hand] == [17, 9, 5, 3]
    for ours, expected in zip(found.values(), [*by_hand[2:], x], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
