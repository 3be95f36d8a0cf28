"""Scoring at both resolutions, against plain NumPy, and test-time augmentation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode
from sd_aanet.evaluation.metrics import FewShotIoU
from sd_aanet.evaluation.tester import EpisodeTester, Views
from sd_aanet.training.module import SDAANetModule

SIDE = 33
SIZES = ((40, 21), (33, 33), (17, 50))
NETWORK = {"backbone": "resnet18", "channels": 8, "prior_stage": 3, "bins": (1.0, 0.5), "dropout": 0.0}


@pytest.fixture(scope="module")
def module() -> SDAANetModule:
    torch.manual_seed(0)
    return SDAANetModule(NETWORK, {}, {"size": SIDE}, classes=3).eval()


def episodes(seed: int = 0) -> Episode:
    g = torch.Generator().manual_seed(seed)
    batch = len(SIZES)
    return Episode(
        query=torch.randn(batch, 3, SIDE, SIDE, generator=g),
        query_mask=torch.randint(0, 2, (batch, SIDE, SIDE), generator=g),
        support=torch.randn(batch, 2, 3, SIDE, SIDE, generator=g),
        support_mask=torch.randint(0, 2, (batch, 2, SIDE, SIDE), generator=g),
        class_id=torch.tensor([1, 3, 1]),
        index=torch.tensor([4, 5, 6]),
        query_key=("a", "b", "c"),
        support_key=(("d", "e"), ("f", "g"), ("h", "i")),
        query_truth=tuple(torch.tensor([0, 1, 255])[torch.randint(0, 3, size, generator=g)].byte() for size in SIZES),
    )


def a_tester(module: SDAANetModule, *resolutions: str, views: Views | None = None) -> EpisodeTester:
    return EpisodeTester(module, Preprocess(SIDE), 3, resolutions or ("squashed",), views)


def probability(module: SDAANetModule, episode: Episode) -> Tensor:
    with torch.no_grad():
        return module(episode).logits.softmax(1)[:, 1]


def test_both_resolutions_from_one_pass(module: SDAANetModule, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda episode: calls.append(1) or forward(episode))
    both, episode = a_tester(module, "original", "squashed"), episodes()
    with torch.no_grad():
        both.test_step(episode, 0)
    assert len(calls) == 1
    shown = probability(module, episode)
    for name, rows in both.rows.items():
        found = torch.cat(rows).numpy()
        assert found[:, :2].tolist() == [[4, 1], [5, 3], [6, 1]]
        for i, row in enumerate(found):
            if name == "original":
                mask = (Preprocess(SIDE).restore(shown[i], SIZES[i]) > 0.5).numpy()
                truth = episode.query_truth[i].numpy()
            else:
                mask, truth = (shown[i] > 0.5).numpy(), episode.query_mask[i].numpy()
            valid, true = truth != 255, truth == 1
            expected = [
                (mask & true & valid).sum(),
                ((mask | true) & valid).sum(),
                (~mask & ~true & valid).sum(),
                ((~mask | ~true) & valid).sum(),
                true.sum(),
            ]
            assert row[2:].tolist() == expected
        metric = both.metrics[name]
        assert isinstance(metric, FewShotIoU)
        by_class = [found[found[:, 1] == c][:, 2:4].sum(0) for c in (1, 3)]
        assert metric.compute()["miou"].item() == pytest.approx(np.mean([i / max(u, 1) for i, u in by_class]))
    assert torch.cat(both.prototypes).shape == (3, 1 + 8)
    both.start()
    assert both.rows == {"original": [], "squashed": []}


def test_padding_is_taken_off_before_scoring(module: SDAANetModule) -> None:
    """A square of SIDE px that a picture half as high was padded to."""
    padded = EpisodeTester(module, Preprocess(SIDE, "keep_aspect"), 3, ("original",))
    episode = replace(episodes(), query_truth=tuple(torch.ones(16, 32, dtype=torch.uint8) for _ in SIZES))
    with torch.no_grad():
        padded.test_step(episode, 0)
    shown = probability(module, episode)
    inner = Preprocess(SIDE, "keep_aspect").restore(shown, (16, 32)) > 0.5
    assert torch.cat(padded.rows["original"])[:, 2].tolist() == inner.flatten(1).sum(1).tolist()


def test_one_plain_view_is_the_network_itself(module: SDAANetModule) -> None:
    with torch.no_grad():
        assert torch.equal(a_tester(module).segment(episodes())[0], probability(module, episodes()))


def test_flipping_makes_a_prediction_that_flips_with_its_pictures(module: SDAANetModule) -> None:
    flipping = a_tester(module, views=Views(flip=True))
    episode = episodes()
    turned = replace(
        episode, query=episode.query.flip(-1), support=episode.support.flip(-1),
        support_mask=episode.support_mask.flip(-1),
    )  # fmt: skip
    with torch.no_grad():
        one, other = flipping.segment(episode)[0], flipping.segment(turned)[0]
    assert torch.allclose(one, other.flip(-1), atol=1e-6)
    expected = (probability(module, episode) + probability(module, turned).flip(-1)) / 2
    assert torch.allclose(one, expected, atol=1e-6)


def test_scales_are_of_sides_that_the_network_takes(module: SDAANetModule) -> None:
    sides = [view.query.shape[-1] for view, _ in Views((0.5, 1.0, 1.6)).of(episodes())]
    assert sides == [17, 33, 49]
    scaled, _ = next(Views((1.6,)).of(episodes()))
    assert scaled.support.shape[-1] == scaled.support_mask.shape[-1] == scaled.query.shape[-1]
    with torch.no_grad():
        averaged = a_tester(module, views=Views((0.5, 1.0))).segment(episodes())[0]
    half, whole = (probability(module, view) for view, _ in Views((0.5, 1.0)).of(episodes()))
    up = torch.nn.functional.interpolate(half[:, None], (SIDE, SIDE), mode="bilinear", align_corners=True)[:, 0]
    assert torch.allclose(averaged, (up + whole) / 2, atol=1e-6)


def test_remembered_features_of_views_are_their_own(module: SDAANetModule, tmp_path: Path) -> None:
    views = Views((0.5, 1.0), flip=True)
    with torch.no_grad():
        computed = a_tester(module, views=views).segment(episodes())[0]
        module.remember(1.0, None, Preprocess(SIDE))
        try:
            for _ in range(2):
                assert torch.allclose(a_tester(module, views=views).segment(episodes())[0], computed, atol=1e-5)
            assert module.memory is not None
            assert module.memory.hits > 0
        finally:
            module.memory = None
