"""The untrained reference against NumPy."""

import numpy as np
import pytest
import torch

from networks import inputs, rough
from plain import resized
from sd_aanet.models.prototype import CosinePrototype


@pytest.mark.parametrize("stage", [2, 3])
def test_each_position_takes_the_nearer_prototype(stage: int) -> None:
    torch.manual_seed(0)
    network = CosinePrototype("resnet18", stage=stage).double().eval()
    rough(network)
    query, _, support, support_mask = inputs(batch=2, shot=3)
    with torch.no_grad():
        prediction = network(query, support, support_mask)
        stages = [network.backbone.stages23(x)[stage - 2].numpy() for x in (query, support.flatten(0, 1))]
    q, s = stages[0], stages[1].reshape(2, 3, *stages[1].shape[1:])
    mask = resized((support_mask == 1).double(), q.shape[-2:]).numpy()
    for b in range(2):
        cosines = []
        for m in (1 - mask[b], mask[b]):
            shots = [(s[b, k] * m[k]).sum((1, 2)) / (m[k].sum() + 0.0005) for k in range(3)]
            p = np.mean(shots, axis=0)
            cosines.append(np.tensordot(p, q[b], 1) / np.linalg.norm(p) / np.linalg.norm(q[b], axis=0))
        expected = resized(torch.from_numpy(np.stack(cosines))[None], (41, 41))[0]
        torch.testing.assert_close(prediction.logits[b], expected, rtol=1e-9, atol=1e-9)
    assert prediction.prototype.shape == (2, q.shape[1])
    assert not any(p.requires_grad for p in network.parameters())  # nothing is learnt
