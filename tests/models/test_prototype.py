"""The untrained reference against NumPy, and what its prototypes are made of."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import inputs, predict, rough
from plain import resized
from sd_aanet.backbones import build_backbone
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import ConfigError
from sd_aanet.models.parts.features import Maps
from sd_aanet.models.prototype import CosinePrototype, Prototypes


def prototype(**settings: Any) -> CosinePrototype:
    torch.manual_seed(0)
    network = CosinePrototype(build_backbone("resnet18"), **settings).double().eval()
    rough(network)
    return network


def features_of(network: CosinePrototype, images: Tensor, normalise: bool) -> np.ndarray:
    """The chosen outputs one behind another, on the first one's grid."""
    outputs = network.backbone(images, network.features)
    maps = [resized(outputs[name], outputs[network.features[0]].shape[-2:]) for name in network.features]
    return torch.cat([F.normalize(x, dim=1) if normalise else x for x in maps], 1).numpy()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("features", [None, "stage2", ["stage2", "stage1"], ["stage3.0", "stage2"]])
def test_each_position_takes_the_nearer_prototype(features: Any, normalise: bool) -> None:
    network = prototype(features=features, normalise=normalise)
    query, _, support, support_mask = inputs(batch=2, shot=3)
    with torch.no_grad():
        prediction = predict(network, query, support, support_mask)
        q = features_of(network, query, normalise)
        s = features_of(network, support.flatten(0, 1), normalise).reshape(2, 3, *q.shape[1:])
    # What is ignored is of neither prototype.
    masks = [resized((support_mask == value).double(), q.shape[-2:]).numpy() for value in (0, 1)]
    for b in range(2):
        cosines = []
        for m in masks:
            shots = [(s[b, k] * m[b, k]).sum((1, 2)) / (m[b, k].sum() + 0.0005) for k in range(3)]
            p = np.mean(shots, axis=0)
            cosines.append(np.tensordot(p, q[b], 1) / np.linalg.norm(p) / np.linalg.norm(q[b], axis=0))
        expected = resized(torch.from_numpy(np.stack(cosines))[None], (41, 41))[0]
        torch.testing.assert_close(prediction.logits[b], expected, rtol=1e-9, atol=1e-9)
        difference = torch.from_numpy(cosines[1] - cosines[0])
        torch.testing.assert_close(prediction.maps["similarity"][b, 0], difference, rtol=1e-9, atol=1e-9)
    assert prediction.embedding.shape == (2, q.shape[1])
    assert not any(p.requires_grad for p in network.parameters())  # nothing is learnt


def test_unknown_outputs_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^model.features=stage9, but ResNet-18 has no such output: choose one of [^\n]*$"
    ):
        prototype(features="stage9")


# Ignored pixels --------------------------------------------------------------------------------------------------

CELLS = 5
SIDE = 8 * (CELLS - 1) + 1  # corners aligned: cell (y, x) is pixel (8 y, 8 x)


def at_cells(cells: Tensor) -> Tensor:
    """A mask (N, S, S) that has these values at the cells (N, h, w), and half-way between them goes over."""
    return F.interpolate(cells[:, None].float(), (SIDE, SIDE), mode="nearest-exact")[:, 0].long()


def encoded(maps: Tensor, mask: Tensor) -> Tensor:
    return prototype().encode_support(Maps(maps), None, mask).both


def test_features_under_ignored_cells_enter_no_prototype() -> None:
    torch.manual_seed(0)
    values = torch.tensor(np.random.default_rng(0).choice([0, 1, 255], (2, CELLS, CELLS)))
    mask = at_cells(values)
    assert torch.equal(mask[:, ::8, ::8], values)
    maps = torch.randn(2, 6, CELLS, CELLS).double()
    both = encoded(maps, mask)
    for value, changes in ((255, (False, False)), (0, (True, False)), (1, (False, True))):
        other = torch.where((values == value)[:, None], torch.randn_like(maps), maps)
        for place, changed in enumerate(changes):
            assert torch.equal(encoded(other, mask)[:, place], both[:, place]) != changed, (value, place)
    for b in range(2):
        for place in (0, 1):  # background, class
            expected = maps[b][:, values[b] == place].sum(1) / ((values[b] == place).sum() + 0.0005)
            torch.testing.assert_close(both[b, place], expected, rtol=1e-6, atol=1e-9)


def test_padding_enters_no_prototype() -> None:
    """A picture below which there is nothing has the prototypes of its own cells."""
    torch.manual_seed(0)
    picture = np.zeros((17, SIDE, 3), np.uint8)
    drawn = np.zeros((17, SIDE), np.uint8)
    drawn[4:13, 10:22] = 1
    _, mask = Preprocess(SIDE, "keep_aspect").resize_pair(picture, drawn)
    assert (mask[17:] == 255).all()
    assert (mask[:17] == drawn).all()
    maps = torch.randn(1, 6, CELLS, CELLS).double()
    padded = encoded(maps, torch.from_numpy(mask)[None].long())
    alone = encoded(maps[:, :, :3], torch.from_numpy(drawn)[None].long())  # 17 pixels are 3 cells
    torch.testing.assert_close(padded, alone, rtol=1e-12, atol=1e-12)
    counted = encoded(maps, torch.where(torch.from_numpy(mask) == 255, 0, torch.from_numpy(mask))[None].long())
    assert not torch.allclose(counted[:, 0], alone[:, 0]), "as background it would"


def test_half_precision_leaves_the_cosines_as_they_are() -> None:
    """Rounded to bfloat16, many of the two kinds would be one."""
    torch.manual_seed(0)
    method = CosinePrototype(build_backbone("resnet18")).eval()
    maps, both = torch.rand(2, 256, 9, 9), torch.rand(2, 2, 256)
    expected = method.compare(Maps(maps), Prototypes(both), None, (9, 9)).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = method.compare(Maps(maps), Prototypes(both), None, (9, 9)).logits
    assert torch.equal(found, expected)
