"""HSNet against explicit 4-D tensors, and its vote against NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone, Output
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.feature_cache import FeatureCache
from sd_aanet.models import build_method
from sd_aanet.models.hsnet import HSNet, vote
from sd_aanet.models.parts.centre_pivot import CentrePivot, Patch, correlations

SIZE = 97  # 13, 7 and 4 cells a side


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> HSNet:
    """On a ResNet-18, with norms that do something."""
    torch.manual_seed(seed)
    method = build_method("hsnet", {"name": "resnet18"}).to(dtype)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    assert isinstance(method, HSNet)
    return method


def episodes(batch: int = 2, shots: int = 1, size: int = SIZE, seed: int = 0) -> Episode:
    """Noise, brighter where the class is; the object is a box somewhere, with a border that is ignored."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((batch, 1 + shots, size, size), np.int64)
    for mask in masks.reshape(-1, size, size):
        y, x = rng.integers(4, size // 2, 2)
        h, w = rng.integers(size // 5, size // 2, 2)
        mask[y - 2 : y + h + 2, x - 2 : x + w + 2] = 255
        mask[y : y + h, x : x + w] = 1
    images = torch.from_numpy(rng.normal(0, 1, (batch, 1 + shots, 3, size, size)) + 2 * (masks == 1)[:, :, None])
    labels = torch.from_numpy(masks)
    return Episode(
        query=images[:, 0],
        query_mask=labels[:, 0],
        support=images[:, None, 1:],
        support_mask=labels[:, None, 1:],
        class_id=torch.ones(batch, 1, dtype=torch.int64),
        index=torch.arange(batch),
        query_key=("",) * batch,
        support_key=(("",) * shots,) * batch,
    )


def plain_pivot(x: Tensor, conv: CentrePivot) -> Tensor:
    """(C, h, w, a, b): one 2-D convolution for each position of the other side."""
    s, (_, h, w, a, b) = conv.stride, x.shape
    half = conv.kernel // 2
    over_query = [
        [
            F.conv2d(x[None, :, :, :, i, j], conv.over_query.weight, conv.over_query.bias, 1, half)[0]
            for j in range(0, b, s)
        ]
        for i in range(0, a, s)
    ]
    over_support = [
        [F.conv2d(x[None, :, i, j], conv.over_support.weight, conv.over_support.bias, s, half)[0] for j in range(w)]
        for i in range(h)
    ]
    first = torch.stack([torch.stack(row, -1) for row in over_query], -2)  # (C', h, w, a', b')
    second = torch.stack([torch.stack(row, -1) for row in over_support], -2)  # (C', a', b', h, w)
    return first + second.permute(0, 3, 4, 1, 2)


def plain_logits(method: HSNet, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """(2, 2h, 2w) of one query and one example (3, S, S) with its mask (S, S)."""

    def chain(blocks: nn.Module, x: Tensor) -> Tensor:
        for block in blocks:  # type: ignore[attr-defined]
            y = plain_pivot(x, block.conv)
            x = F.relu(F.group_norm(y[None], 4, block.norm.weight, block.norm.bias)[0])
        return x

    outputs = [method.backbone(x[None], [n for level in method.taps for n in level]) for x in (query, support)]
    levels = []
    for names, blocks in zip(method.taps, method.head.squeeze, strict=True):
        volumes = []
        for name in names:
            q, s = outputs[0][name][0], outputs[1][name][0]
            m = F.interpolate((mask == 1)[None, None].double(), s.shape[-2:], mode="bilinear", align_corners=True)[0]
            s = s * m
            q, s = (x / (x.pow(2).sum(0).sqrt() + 1e-5) for x in (q, s))
            volumes.append(torch.einsum("chw,cij->hwij", q, s).clamp(min=0))
        levels.append(chain(blocks, torch.stack(volumes)))
    x = levels[2]
    for mix, finer in zip(method.head.mix, (levels[1], levels[0]), strict=True):
        bigger = torch.empty_like(finer)
        for i in range(x.shape[3]):
            for j in range(x.shape[4]):
                one = x[None, :, :, :, i, j]
                bigger[..., i, j] = F.interpolate(one, finer.shape[1:3], mode="bilinear", align_corners=True)[0]
        x = chain(mix, finer + bigger)
    x = x.mean((3, 4))[None]
    weights = [m for part in (method.head.decode, method.head.classify) for m in part if isinstance(m, nn.Conv2d)]
    x = F.relu(F.conv2d(x, weights[0].weight, weights[0].bias, padding=1))
    x = F.relu(F.conv2d(x, weights[1].weight, weights[1].bias, padding=1))
    x = F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=True)
    x = F.relu(F.conv2d(x, weights[2].weight, weights[2].bias, padding=1))
    return F.conv2d(x, weights[3].weight, weights[3].bias, padding=1)[0]


def up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=True)


def test_the_head_on_resnet50_has_the_published_parameters() -> None:
    with torch.device("meta"):
        method = build_method("hsnet", {"name": "resnet50"})
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 2_573_794
    assert [len(level) for level in method.taps] == [4, 6, 3]
    outputs = method.backbone.outputs
    assert [{outputs[name].cells(400) for name in level} for level in method.taps] == [{50}, {25}, {13}]
    forms = [
        [(m.kernel, m.stride) for m in squeeze.modules() if isinstance(m, CentrePivot)]
        for squeeze in method.get_submodule("head.squeeze").children()
    ]
    assert forms == [[(5, 4), (5, 4), (3, 2)], [(5, 4), (3, 2), (3, 2)], [(3, 2), (3, 2), (3, 2)]]  # fine to coarse


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (2, 4), (7, 4), (9, 13)])
def test_a_centre_pivot_convolution(kernel: int, stride: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = CentrePivot(3, 5, kernel, stride).double()
    x = torch.randn(2, 6, 4, *grid, 3, dtype=torch.float64)
    expected = torch.stack([plain_pivot(one.permute(4, 0, 1, 2, 3), conv) for one in x])
    torch.testing.assert_close(conv(x).permute(0, 5, 1, 2, 3, 4), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("stride", "kernel"), [(4, 5), (2, 3)])
@pytest.mark.parametrize("object_", [(0, 0, 12, 12), (5, 8, 5, 8), (3, 1, 6, 11), (11, 12, 12, 12)])
def test_correlations_are_made_around_the_object_alone(
    stride: int, kernel: int, object_: tuple[int, int, int, int], grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sd_aanet.models.parts.centre_pivot.CHUNK", 1000)  # several parts, the last one smaller
    torch.manual_seed(0)
    conv = CentrePivot(2, 3, kernel, stride).double()
    query, example = torch.randn(2, 7, 4, 6, dtype=torch.float64), torch.zeros(7, 13, 13, dtype=torch.float64)
    r0, c0, r1, c1 = object_
    example[:, r0 : r1 + 1, c0 : c1 + 1] = torch.randn(7, r1 - r0 + 1, c1 - c0 + 1, dtype=torch.float64)
    top, left = r0 // stride, c0 // stride
    around = example[:, top * stride : -(-r1 // stride) * stride + 1, left * stride : -(-c1 // stride) * stride + 1]
    side = -(-13 // stride)
    with torch.set_grad_enabled(grad):
        ours = conv.correlate(query, [1], [Patch(around, top, left, (side, side))], [4, 3])[0]
    volume = correlations(query[1].flatten(1), example.flatten(1), [4, 3])  # (24, 2, 169)
    expected = plain_pivot(volume.permute(1, 0, 2).reshape(2, 4, 6, 13, 13), conv)
    torch.testing.assert_close(ours.permute(4, 0, 1, 2, 3), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_it_is_the_plain_version() -> None:
    method, batch = network().eval(), episodes(2)
    ours = Comparer(method)(batch).logits
    for b in range(2):
        expected = plain_logits(method, batch.query[b], batch.support[b, 0, 0], batch.support_mask[b, 0, 0])
        torch.testing.assert_close(ours[b], up(expected[None])[0], rtol=1e-10, atol=1e-10)


def test_in_training_it_is_the_same_and_several_shots_are_averaged() -> None:
    method, batch = network().train(), episodes(1, shots=2)
    ours = Comparer(method)(batch).logits
    each = [plain_logits(method, batch.query[0], batch.support[0, 0, k], batch.support_mask[0, 0, k]) for k in range(2)]
    torch.testing.assert_close(ours, (up(each[0][None]) + up(each[1][None])) / 2, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_several_shots_vote() -> None:
    method, batch = network().eval(), episodes(2, shots=3)
    ours = Comparer(method)(batch).logits.softmax(1)[:, 1] > 0.5
    for b in range(2):
        votes = 0
        for k in range(3):
            logits = plain_logits(method, batch.query[b], batch.support[b, 0, k], batch.support_mask[b, 0, k])
            votes = votes + up(logits[None])[0].argmax(0).numpy()
        assert (ours[b].numpy() == (votes / max(1, np.max(votes)) >= 0.5)).all()


@pytest.mark.parametrize("shots", [2, 3, 4, 5, 10])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_the_vote_against_numpy(shots: int, share: float) -> None:
    rng = np.random.default_rng(shots)
    hard = rng.random((6, shots, 9, 9)) < share * rng.random((6, 1, 9, 9))
    logits = torch.from_numpy(np.stack([~hard, hard], 2) * rng.uniform(0.1, 9, hard.shape)[:, :, None]).float()
    ours = vote(logits)
    votes = hard.sum(1)
    expected = votes / np.maximum(1, votes.max((1, 2), keepdims=True)) >= 0.5
    for mask in (ours.softmax(1)[:, 1] > 0.5, ours.argmax(1) == 1, ours.bfloat16().float().argmax(1) == 1):
        assert (mask.numpy() == expected).all()
    torch.testing.assert_close(ours.exp().sum(1), torch.ones(6, 9, 9))


def test_half_of_the_most_votes_is_enough_and_one_vote_anywhere_is_found() -> None:
    hard = torch.zeros(3, 4, 1, 4)
    hard[0, :, 0, 0] = 1  # four votes
    hard[0, :2, 0, 1] = 1  # a tie: half of them
    hard[0, :1, 0, 2] = 1
    hard[1, 3, 0, 2] = 1  # one vote, all in all
    mask = vote(torch.stack([1 - hard, hard], 2)).softmax(1)[:, 1] > 0.5
    assert mask[:, 0].tolist() == [[True, True, False, False], [False, False, True, False], [False] * 4]


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_the_order_of_the_shots_does_not_matter(training: bool) -> None:
    method, batch = network().train(training), episodes(1, shots=3)
    turned = Episode(**{**vars(batch), "support": batch.support.flip(2), "support_mask": batch.support_mask.flip(2)})
    comparer = Comparer(method)
    torch.testing.assert_close(comparer(batch).logits, comparer(turned).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grad", [False, True])
def test_an_episode_is_the_same_alone_and_among_others(grad: bool) -> None:
    batch = episodes(3)
    with torch.set_grad_enabled(grad):
        comparer = Comparer(network().train(grad))
        together = comparer(batch).logits
        for b in range(3):
            torch.testing.assert_close(comparer(batch.select([b])).logits, together[b : b + 1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("shots", [1, 2])
def test_examples_that_were_added_give_the_same_answer(shots: int) -> None:
    batch, comparer = episodes(2, shots), Comparer(network().eval())
    names = [[f"{b}.{k}" for k in range(shots)] for b in range(2)]
    for b in range(2):
        comparer.add_supports(names[b], batch.support[b, 0], batch.support_mask[b, 0])
    encoded = comparer.encode_queries(batch.query)
    ours = comparer.compare(encoded, [(1, [names[1]]), (0, [names[0]])], (SIZE, SIZE))
    torch.testing.assert_close(ours.logits.flip(0), comparer(batch).logits, rtol=1e-10, atol=1e-10)
    # Votes are kept with the query: examples that are gone are no longer needed.
    assert len(encoded.pairs) == 2 * shots


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_its_features_can_be_kept(on_disk: bool, tmp_path: Path) -> None:
    batch, method = episodes(2, 2), network().eval()
    keys = {"query_key": ("a", "b"), "support_key": (("c", "d"), ("e", "f"))}
    batch = Episode(**{**vars(batch), **keys})
    cache = FeatureCache(method, 1e9, tmp_path if on_disk else None)
    kept = Comparer(method, cache)
    for _ in range(2):
        torch.testing.assert_close(kept(batch).logits, Comparer(method)(batch).logits, rtol=1e-10, atol=1e-10)
    assert (cache.hits, cache.misses) == (6, 6)


def test_a_gradient_reaches_all_of_the_head_and_nothing_of_the_backbone() -> None:
    method, batch = network().train(), episodes(2)
    terms = method.losses(Comparer(method)(batch), batch)
    assert terms.keys() == {"main"}
    terms["main"].backward()
    for parameter in method.head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())


def test_a_backbone_that_trains_gets_its_gradient() -> None:
    method, batch = network().train(), episodes(1)
    method.backbone.freeze(trainable=True)
    method.losses(Comparer(method)(batch), batch)["main"].backward()
    weight = method.backbone.get_parameter("conv1.weight")
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@torch.no_grad()
def test_ignored_pixels_are_none_of_the_object_and_an_empty_mask_is_no_error() -> None:
    batch, comparer = episodes(1), Comparer(network().eval())
    without = batch.support_mask.masked_fill(batch.support_mask == 255, 0)
    other = Episode(**{**vars(batch), "support_mask": without})
    torch.testing.assert_close(comparer(batch).logits, comparer(other).logits, rtol=0, atol=0)
    empty = Episode(**{**vars(batch), "support_mask": torch.zeros_like(without)})
    assert comparer(empty).logits.isfinite().all()


@torch.no_grad()
def test_taps_are_before_the_blocks_last_relu() -> None:
    method = network().eval()
    features = method.image_features(episodes(1).query)
    assert [maps.shape for maps in features.each] == [(1, 256, 13, 13), (1, 512, 7, 7), (1, 1024, 4, 4)]
    assert all((maps < 0).any() for maps in features.each)


@torch.no_grad()
def test_half_precision_stays_near() -> None:
    method, batch = network(dtype=torch.float32).eval(), episodes(1)
    batch = Episode(**{**vars(batch), "query": batch.query.float(), "support": batch.support.float()})
    exact = Comparer(method)(batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = Comparer(method)(batch).logits
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize(("stride", "kernel"), [(4, 5), (2, 3)])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_narrow_objects_in_half_precision(stride: int, kernel: int, width: int) -> None:
    """Convolutions of oneDNN's with a stride, to a width of one, give in bfloat16 what happens to be in memory."""
    torch.manual_seed(0)
    conv = CentrePivot(16, 32, kernel, stride)
    maps = torch.randn(64, 16, 16, width)
    results = []
    for half in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = conv._across(maps)
        out.float().square().mean().backward()
        weight = conv.over_support.weight.grad
        assert weight is not None
        results.append((out.detach().float(), weight.clone()))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


class Strided(Backbone):
    """A backbone with one output a stage."""

    label = "Strided"
    mid = ("stage2",)
    high = "stage2"

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.outputs = {f"stage{i}": Output(4 + i, stride) for i, stride in enumerate(strides)}

    def run(self, images: Tensor, wanted: object) -> dict[str, Tensor]:
        return {}  # no picture goes through it

    def keep(self, wanted: object) -> None:
        pass


def test_other_backbones_give_what_they_have_at_three_strides() -> None:
    method = HSNet(Strided(4, 8, 16, 16, 32))
    assert method.taps == (("stage1",), ("stage2", "stage3"), ("stage4",))
    assert method.finest == "stage1"
    with pytest.raises(
        ConfigError, match=r"^method hsnet needs outputs at strides 8, 16 and 32, but VGG-16 has them at 8, 16: "
    ):
        build_method("hsnet", {"name": "vgg16_bn"})
