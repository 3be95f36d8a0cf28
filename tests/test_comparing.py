"""A batch at once, one example after the other, several classes: the same answers, and each picture encoded once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import CHANNELS, ONLY, CountingResNet, episode, tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode, Prediction
from sd_aanet.models import methods
from sd_aanet.models.base import Method
from sd_aanet.models.parts.features import Maps
from sd_aanet.models.parts.functional import resize
from sd_aanet.models.prototype import CosinePrototype, Prototypes

CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
SIZE = 33


def batch_of(method: Method, shots: int, ways: int, count: int = 2) -> Episode:
    """Episodes whose pictures are all different."""
    side = method.backbone.grid.nearest(SIZE)
    names = [[f"{row} {place}" for place in range(1 + ways * shots)] for row in range(count)]
    return episode(names, [tuple(range(1, ways + 1))] * count, side, torch.float64)


def add(comparer: Comparer, batch: Episode) -> None:
    """The examples of a batch, one after the other, each by its episode, class and shot."""
    for b in range(len(batch)):
        for n in range(batch.ways):
            for k in range(batch.shots):
                comparer.add_supports([(b, n, k)], batch.support[b, n, k][None], batch.support_mask[b, n, k][None])


def compared(comparer: Comparer, batch: Episode) -> Prediction:
    """The queries of a batch by the examples that were added."""
    comparisons = [(b, [[(b, n, k) for k in range(batch.shots)] for n in range(batch.ways)]) for b in range(len(batch))]
    size = (batch.query.shape[-2], batch.query.shape[-1])
    return comparer.compare(comparer.encode_queries(batch.query), comparisons, size)


def one_by_one(method: Method, batch: Episode) -> Prediction:
    """The same episodes, example after example."""
    comparer = Comparer(method)
    add(comparer, batch)
    return compared(comparer, batch)


def same(ours: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(ours.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(dict(ours.maps), dict(expected.maps), **CLOSE)
    torch.testing.assert_close(ours.embedding, expected.embedding, **CLOSE)


class Joint(CosinePrototype):
    """All classes of an episode at once, one background of them all."""

    joint = True

    def compare(self, queries: Maps, sets: Prototypes, pairs: Any, size: tuple[int, int]) -> Prediction:
        both = sets.both.unflatten(0, (len(queries), -1))  # (B, N, 2, C)
        prototypes = torch.cat([both[:, :, 0].mean(1, keepdim=True), both[:, :, 1]], 1)  # (B, N + 1, C)
        cosine = torch.einsum("bchw,bnc->bnhw", F.normalize(queries.maps, dim=1), F.normalize(prototypes, dim=-1))
        return Prediction(resize(cosine, size))


class Fitted(CosinePrototype):
    """Takes a gradient where others only look."""

    adapts = True
    fits = 0

    def support_set(self, supports: Prototypes, shots: int) -> Prototypes:
        sets = super().support_set(supports, shots)
        with torch.enable_grad():
            both = sets.both.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((both**2).sum(), both)
        self.fits += 1
        return Prototypes(both.detach() - gradient / 4)


def made(kind: type[CosinePrototype]) -> CosinePrototype:
    torch.manual_seed(0)
    return kind(build_backbone("resnet18")).double().eval()


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("name", methods())
def test_a_batch_is_its_episodes_one_by_one(name: str, shots: int, ways: int) -> None:
    method = tiny(name, ways=ways)
    batch = batch_of(method, shots, ways)
    with torch.no_grad():
        together, apart = Comparer(method)(batch), one_by_one(method, batch)
    assert len(together.logits) == len(batch) * (1 if method.joint else ways)
    assert together.logits.shape[-2:] == batch.query.shape[-2:]
    same(apart, together)


@pytest.mark.parametrize("name", methods())
def test_ways_are_one_way_comparisons(name: str) -> None:
    method = tiny(name)
    batch = batch_of(method, shots=2, ways=2)
    if method.joint:
        pytest.skip("compares all classes together")
    with torch.no_grad():
        same(Comparer(method)(batch.one_way()), Comparer(method)(batch))


@pytest.mark.parametrize("name", methods())
def test_the_order_of_the_shots_does_not_matter(name: str) -> None:
    method, order = tiny(name), [2, 0, 1]
    batch = batch_of(method, shots=3, ways=2)
    turned = replace(batch, support=batch.support[:, :, order], support_mask=batch.support_mask[:, :, order])
    with torch.no_grad():
        same(Comparer(method)(turned), Comparer(method)(batch))


@pytest.mark.parametrize("name", [name for name in methods() if name not in ONLY])
def test_each_picture_is_encoded_once(name: str) -> None:
    """A query once for all its classes, and an example once for all queries."""
    backbone = CountingResNet(output_stride=methods()[name].output_stride)
    method = tiny(name, backbone)
    batch = batch_of(method, shots=2, ways=2)
    with torch.no_grad():
        Comparer(method)(batch)
        assert sum(backbone.seen) == len(batch) * (1 + 2 * 2)
        backbone.seen.clear()
        comparer = Comparer(method)
        add(comparer, batch)
        compared(comparer, batch)
        assert sum(backbone.seen) == len(batch) * (1 + 2 * 2)
        encoded = comparer.encode_queries(batch.query)
        backbone.seen.clear()
        for supports in (0, 1):  # each query with each episode's examples
            comparisons = [(row, [[(supports, n, k) for k in range(2)] for n in range(2)]) for row in range(2)]
            comparer.compare(encoded, comparisons, (SIZE, SIZE))
        assert backbone.seen == []


@pytest.mark.parametrize("name", [name for name in methods() if name not in ONLY])
def test_a_picture_may_show_several_classes(name: str) -> None:
    backbone = CountingResNet(output_stride=methods()[name].output_stride)
    method = tiny(name, backbone)
    batch = batch_of(method, shots=1, ways=2, count=1)
    images = batch.support[0, :1, 0]  # one, for both masks
    shared = replace(batch, support=images[None, :, None].expand(1, 2, 1, *images.shape[1:]))
    size = (batch.query.shape[-2], batch.query.shape[-1])
    comparer = Comparer(method)
    with torch.no_grad():
        comparer.add_supports(["cat", "dog"], images, batch.support_mask[0, :, 0], pictures=[0, 0])
        assert sum(backbone.seen) == 1
        found = comparer.compare(comparer.encode_queries(batch.query), [(0, [["cat"], ["dog"]])], size)
        same(found, Comparer(method)(shared))
    comparer.forget()
    with pytest.raises(KeyError), torch.no_grad():
        comparer.compare(comparer.encode_queries(batch.query), [(0, [["cat"], ["dog"]])], size)


@pytest.mark.parametrize("name", methods())
def test_an_episode_does_not_see_its_batch_or_its_query_mask(name: str) -> None:
    method = tiny(name)
    batch = batch_of(method, shots=1, ways=2, count=3)
    with torch.no_grad():
        together = Comparer(method)(batch).logits.unflatten(0, (3, -1))
        for b in range(3):
            missing: Any = replace(batch.select([b]), query_mask=None)  # type: ignore[arg-type]
            torch.testing.assert_close(Comparer(method)(missing).logits, together[b], **CLOSE)


@pytest.mark.parametrize("kind", [CosinePrototype, Fitted])
def test_another_example_of_the_same_name_takes_its_place(kind: type[CosinePrototype]) -> None:
    method = made(kind)
    one, other = (batch_of(method, shots=2, ways=1, count=count).select([count - 1]) for count in (1, 2))
    comparer = Comparer(method)
    with torch.no_grad():
        for batch in (one, other):
            add(comparer, batch)
            same(compared(comparer, batch), one_by_one(method, batch))


@pytest.mark.parametrize("name", methods())
def test_masks_reach_a_method_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is ignored, padding and boundaries, still told from the background."""
    method, masks = tiny(name), []
    encode = method.encode_support

    def watching(features: Any, masked: Any, mask: Tensor) -> Any:
        masks.append(mask)
        return encode(features, masked, mask)

    monkeypatch.setattr(method, "encode_support", watching)
    batch = batch_of(method, shots=1, ways=2)
    with torch.no_grad():
        Comparer(method)(batch)
        one_by_one(method, batch)
    whole = batch.support_mask.flatten(0, 2)
    assert torch.equal(masks[0], whole)
    assert torch.equal(torch.cat(masks[1:]), whole)
    assert set(whole.unique().tolist()) == {0, 1, 255}


# Several classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("name", methods())
def test_scores_of_the_background_and_each_class(name: str, ways: int) -> None:
    method = tiny(name, ways=ways)
    batch = batch_of(method, shots=1, ways=ways)
    comparer = Comparer(method)
    with torch.no_grad():
        prediction = comparer(batch)
        scores = comparer.scores(prediction, ways)
    assert scores.shape == (2, ways + 1, *batch.query.shape[-2:])
    assert scores.dtype == torch.float32
    assert 0 <= scores.min() <= scores.max() <= 1
    if ways == 1:
        torch.testing.assert_close(scores.sum(1), torch.ones_like(scores[:, 0]))
        if not method.joint:  # more likely than not is the class
            assert torch.equal(scores.argmax(1) == 1, prediction.logits[:, 1] > prediction.logits[:, 0])


def test_merged_ways_by_hand() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (2, 3, 2, 4, 5))
    foreground = 1 / (1 + np.exp(logits[:, :, 0] - logits[:, :, 1]))  # (B, N, H, W)
    merged = made(CosinePrototype).merge_ways(torch.from_numpy(logits))
    np.testing.assert_allclose(merged[:, 1:].numpy(), foreground, rtol=1e-5)
    np.testing.assert_allclose(merged[:, 0].numpy(), 1 - foreground.max(1), rtol=1e-4, atol=1e-6)
    background = (foreground < 0.5).all(1)  # none of the classes is more likely than not
    assert ((merged.argmax(1) == 0).numpy() == background).all()


def test_a_joint_method_sees_all_classes() -> None:
    joint, single = made(Joint), made(CosinePrototype)
    for ways in (1, 2):
        batch = batch_of(joint, shots=2, ways=ways)
        comparer = Comparer(joint)
        with torch.no_grad():
            prediction, apart = comparer(batch), one_by_one(joint, batch)
            assert prediction.logits.shape == (2, ways + 1, SIZE, SIZE)
            torch.testing.assert_close(apart.logits, prediction.logits, **CLOSE)
            scores = comparer.scores(prediction, ways)
            torch.testing.assert_close(scores, prediction.logits.float().softmax(1))
            if ways == 1:
                torch.testing.assert_close(prediction.logits, Comparer(single)(batch).logits, **CLOSE)


# Gradients and batch statistics ----------------------------------------------------------------------------------


def test_a_method_may_take_gradients_in_inference() -> None:
    method, plain = made(Fitted), made(CosinePrototype)
    batch = batch_of(method, shots=2, ways=2)
    with torch.inference_mode():
        # A step of half the prototypes: half as long, and so the same cosines.
        torch.testing.assert_close(Comparer(method)(batch).logits, Comparer(plain)(batch).logits, **CLOSE)
        comparer = Comparer(method)
        add(comparer, batch)
        method.fits = 0
        for _ in range(2):
            same(compared(comparer, batch), Comparer(plain)(batch))
    assert method.fits == 2 * 2, "a fit is kept as long as its examples are"


@pytest.mark.parametrize("ways", [1, 2])
def test_a_training_backbone_sees_the_query_alone_then_each_shot_alone(ways: int) -> None:
    backbone = CountingResNet()
    method = tiny("sd_aanet", backbone)
    batch = batch_of(method, shots=2, ways=ways, count=3)
    with torch.no_grad():
        expected = Comparer(method)(batch)
        backbone.seen.clear()
        backbone.training = True  # it alone, not its norms: the same features
        found = Comparer(method)(batch)
    assert backbone.seen == [3] * (1 + 2 * ways)
    same(found, expected)
    assert found.embedding is not None
    assert found.embedding.shape == (3 * ways, CHANNELS)
