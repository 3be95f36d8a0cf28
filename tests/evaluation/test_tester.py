"""An evaluation by its plan gives what one forward an episode gives; scoring against plain NumPy; views."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.fake_voc import make_voc
from networks import CountingResNet, small, tiny
from sd_aanet.backbones.base import Grid
from sd_aanet.comparing import Comparer
from sd_aanet.data.episodes import EpisodeSampler, EpisodeSpec
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.evaluation.loading import StepDataset
from sd_aanet.evaluation.plan import ListedEpisode, dealt, plan
from sd_aanet.evaluation.tester import EpisodeTester, Views, answers
from sd_aanet.models import methods
from sd_aanet.models.base import Method

SIDE = 33
CLASSES = 20
NETWORKS = {
    "stage 4": {},
    "stage 3": {"high": "stage3"},
    "no prior": {"prior": False},
    "baseline": {"saam": False, "sdpm": False},
}
Found = dict[ListedEpisode, Tensor]


def a_method(name: str = "stage 4", way: int = 1) -> Method:
    """One of the networks above, or a method by its name."""
    if name not in NETWORKS:
        return tiny(name, dtype=torch.float32, ways=way)
    return small(dtype=torch.float32, channels=8, bins=(1.0, 0.5), **NETWORKS[name]).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """A third of its pictures show two classes, 1 and 6 or 2 and 7."""
    return Pascal5i(make_voc(tmp_path_factory.mktemp("voc"), 5), "val")


def drawn(source: ImageSource, shot: int = 2, count: int = 8, way: int = 1) -> list[ListedEpisode]:
    classes = (1, 2, 6)
    sampler = EpisodeSampler(source.pixels(), classes, shot, 0, way=way, min_object_pixels=1, order="classes")
    return [ListedEpisode(seed, index, sampler.draw(seed, index)) for seed in (3, 4) for index in range(count // 2)]


def evaluated(
    method: Method,
    source: ImageSource,
    episodes: Sequence[ListedEpisode],
    *resolutions: str,
    supports: int = 100,
    pictures: int = 3,
    ignore_boundary: bool = True,
    resize: str = "squash",
    side: int = SIDE,
    **settings: object,
) -> tuple[EpisodeTester, Found]:
    """What a tester makes of episodes: itself, after its test, and the scores."""
    preprocess = Preprocess(side, resize)
    tester = EpisodeTester(method, preprocess, CLASSES, resolutions or ("squashed",), **settings)  # type: ignore[arg-type]
    tester.steps = plan(episodes, supports, pictures)
    data = StepDataset(source, tester.steps, preprocess, ignore_boundary)
    found: Found = {}
    with torch.inference_mode():
        for i in range(len(data)):
            for some, scores, _ in tester.segment(data[i]):
                found |= dict(zip(some, scores, strict=True))
        for i in range(len(data)):
            tester.test_step(data[i], i)
    return tester, found


def view(x: Tensor, side: int, flipped: bool, nearest: bool = False) -> Tensor:
    if x.shape[-1] != side:
        how = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "align_corners": True}
        x = torch.nn.functional.interpolate(x, (side, side), **how)  # type: ignore[arg-type]
    return x.flip(-1) if flipped else x


def one_by_one(
    method: Method,
    source: ImageSource,
    spec: EpisodeSpec,
    side: int = SIDE,
    flipped: bool = False,
    whole: int = SIDE,
) -> Tensor:
    """The scores of one forward of the whole network; of one class the class's alone."""
    preprocess, ways = Preprocess(whole), len(spec.classes)
    images = torch.stack([preprocess.image(source.image(i)) for i in (spec.query, *(i for i, _ in spec.examples))])
    masks = torch.stack([preprocess.mask(source.mask(i, c)) for i, c in spec.examples])
    images = view(images, side, flipped)
    masks = view(masks[:, None].float(), side, flipped, nearest=True)[:, 0].long()
    one = Episode(
        query=images[:1],
        query_mask=torch.zeros(1, side, side, dtype=torch.int64),
        support=images[1:].unflatten(0, (ways, -1))[None],
        support_mask=masks.unflatten(0, (ways, -1))[None],
        class_id=torch.tensor([spec.classes]),
        index=torch.zeros(1, dtype=torch.int64),
        query_key=("",),
        support_key=(("",) * len(masks),),
    )
    comparer = Comparer(method)
    with torch.no_grad():
        scores = comparer.scores(comparer(one), ways)
    scores = scores[:, 1:] if ways == 1 else scores
    return view(scores.flip(-1) if flipped else scores, whole, False)[0]


@pytest.mark.parametrize("way", [1, 2])
@pytest.mark.parametrize("name", [*NETWORKS, *(name for name in methods() if name != "sd_aanet")])
def test_by_the_plan_is_one_forward_an_episode(name: str, way: int, source: ImageSource) -> None:
    method, episodes = a_method(name, way), drawn(source, way=way)
    side = method.backbone.grid.nearest(SIDE)
    expected = {one: one_by_one(method, source, one.spec, side, whole=side) for one in episodes}
    for supports, pictures, batch, budget in ((100, 3, 8, 1e9), (2, 1, 1, 0.0), (5, 2, 3, 1e6)):
        settings = {"supports": supports, "pictures": pictures, "batch": batch, "budget": budget, "side": side}
        _, found = evaluated(method, source, episodes, **settings)  # type: ignore[arg-type]
        assert set(found) == set(episodes)
        for one in episodes:
            torch.testing.assert_close(found[one], expected[one], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", methods())
def test_the_sums_of_several_processes_are_those_of_one(name: str, source: ImageSource) -> None:
    method, episodes = a_method(name), drawn(source, count=16)
    side = method.backbone.grid.nearest(SIDE)
    found = {}
    for world in (1, 2, 3):
        testers = [evaluated(method, source, dealt(episodes, rank, world), side=side)[0] for rank in range(world)]
        found[world] = sorted(row for one in testers for rows in one.rows["squashed"] for row in rows.tolist())
    assert found[1] == found[2] == found[3]


@pytest.mark.parametrize("way", [1, 2])
def test_what_several_processes_found_is_brought_together(
    source: ImageSource, way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here two that found the same."""
    monkeypatch.setattr("sd_aanet.evaluation.tester.gather_all_tensors", lambda found: [found, found])
    tester, _ = evaluated(a_method(), source, drawn(source, way=way))
    rows, pixels = torch.cat(tester.rows["squashed"]), tester.confusion
    tester.trainer = trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    assert trainer.world_size == 2
    tester.on_test_epoch_end()
    assert torch.equal(torch.cat(tester.rows["squashed"]), rows.repeat(2, 1))
    assert len(torch.cat(tester.embeddings)) == 2 * len(rows)
    if way == 1:
        assert tester.confusion is None
    else:
        assert pixels is not None
        assert tester.confusion is not None
        assert torch.equal(tester.confusion, 2 * pixels)


def test_three_shots_and_features_on_disk(source: ImageSource, tmp_path: Path) -> None:
    method, episodes = a_method(), drawn(source, shot=3)
    for _ in range(2):  # written, then read
        tester, found = evaluated(method, source, episodes, folder=tmp_path)
        for one in episodes:
            torch.testing.assert_close(found[one], one_by_one(method, source, one.spec), atol=2e-5, rtol=0)
    assert tester.comparers[0].cache is not None
    assert tester.comparers[0].cache.misses == 0
    assert {path.parent.name for path in tmp_path.rglob("*.pt")} == {"image", "masked"}


def test_each_picture_goes_through_the_backbone_once(source: ImageSource) -> None:
    backbone = CountingResNet()
    method, episodes = small(dtype=torch.float32, backbone=backbone).eval(), drawn(source, count=12)
    tester = EpisodeTester(method, Preprocess(SIDE), CLASSES, ("squashed",))
    tester.steps = plan(episodes, 100, 3)
    data = StepDataset(source, tester.steps, tester.preprocess)
    for i in range(len(data)):
        tester.test_step(data[i], i)
    pictures = {i for one in episodes for i in (one.spec.query, *(i for i, _ in one.spec.examples))}
    assert sum(backbone.seen) == len(pictures) < 12 * 3


def counts(answer: NDArray[np.int64], truth: NDArray[np.int64], n: int) -> list[int]:
    valid = truth != 255
    return [
        ((answer == n) & (truth == n) & valid).sum(),
        (((answer == n) | (truth == n)) & valid).sum(),
        ((answer == 0) & (truth == 0) & valid).sum(),
        (((answer == 0) | (truth == 0)) & valid).sum(),
        (truth == n).sum(),
    ]


def truth_of(source: ImageSource, spec: EpisodeSpec) -> NDArray[np.uint8]:
    masks = [source.mask(spec.query, c) for c in spec.classes]
    truth = np.zeros_like(masks[0])
    for n, mask in reversed(list(enumerate(masks, start=1))):
        truth[mask == 1] = n
    truth[np.any([mask == 255 for mask in masks], 0)] = 255
    return truth


@pytest.mark.parametrize("way", [1, 3])
@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("ignore_boundary", [True, False])
def test_both_resolutions_from_one_pass(source: ImageSource, resize: str, ignore_boundary: bool, way: int) -> None:
    episodes, preprocess = drawn(source, way=way), Preprocess(SIDE, resize)
    settings = {"resize": resize, "ignore_boundary": ignore_boundary}
    tester, found = evaluated(a_method(), source, episodes, "original", "squashed", **settings)  # type: ignore[arg-type]
    by_place = {(one.seed, one.index): one for one in episodes}
    mixed = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for name, rows in tester.rows.items():
        table = torch.cat(rows).numpy()
        assert sorted(map(tuple, table[::way, :2].tolist())) == sorted(by_place)
        for place in range(0, len(table), way):
            one = by_place[table[place, 0], table[place, 1]]
            truth = truth_of(source, one.spec)
            truth = truth if ignore_boundary else np.where(truth == 255, 0, truth).astype(np.uint8)
            shown = found[one]
            if name == "original":
                shown = preprocess.restore(shown, truth.shape)
            else:
                truth = preprocess.mask(truth).numpy().astype(np.uint8)
            answer = (shown[0] > 0.5).long().numpy() if way == 1 else shown.argmax(0).numpy()
            np.testing.assert_array_equal(answer, answers(shown).numpy())
            for n, c in enumerate(one.spec.classes, start=1):
                row = table[place + n - 1]
                assert row.tolist() == [one.seed, one.index, c, *counts(answer, truth, n)]
            if name == "original":
                ids = np.array([0, *one.spec.classes])
                valid = truth != 255
                np.add.at(mixed, (ids[truth[valid]], ids[answer[valid]]), 1)
    assert torch.cat(tester.embeddings).shape == (len(episodes) * way, 8)
    if way == 1:
        assert tester.confusion is None
    else:
        assert tester.confusion is not None
        np.testing.assert_array_equal(tester.confusion.numpy(), mixed)


@pytest.mark.parametrize("way", [1, 2])
def test_views_are_averaged(source: ImageSource, way: int) -> None:
    method, episodes = a_method(), drawn(source, count=4, way=way)
    _, found = evaluated(method, source, episodes, views=Views((0.5, 1.0), flip=True))
    for one in episodes:
        each = [one_by_one(method, source, one.spec, side, flip) for side in (17, SIDE) for flip in (False, True)]
        torch.testing.assert_close(found[one], torch.stack(each).mean(0), atol=2e-5, rtol=0)


def test_a_picture_at_its_own_scale_keeps_its_key(source: ImageSource) -> None:
    """What runs without views have kept of it serves here, too."""
    pictures = StepDataset(source, plan(drawn(source), 100, 3), Preprocess(SIDE))[0]
    (own, _), (half, _) = Views((1.0, 0.5)).of(pictures, Grid(8, 1, 17))
    assert (own.keys, own.mask_keys) == (pictures.keys, pictures.mask_keys)
    assert not {*half.keys, *half.mask_keys} & {*own.keys, *own.mask_keys}


def test_scales_are_of_sides_that_the_backbone_takes() -> None:
    assert Views((0.5, 1.0, 1.6)).sides(33, Grid(8, 1, 17)) == [17, 33, 49]
    assert Views((0.5, 1.0, 1.6)).sides(56, Grid(14, 0, 28)) == [28, 56, 84]
    for scales in ((), (0.1,), (1.0, 5.0)):
        with pytest.raises(ConfigError, match=r"^scales=\[[^\n]*\], expected numbers from 0.25 to 4: set [^\n]*$"):
            Views(scales)


def test_the_budget_bounds_the_supports() -> None:
    half, whole = (EpisodeTester(a_method(), Preprocess(473), CLASSES, ("squashed",), budget=b) for b in (1e9, 2e9))
    assert half.most_supports() == pytest.approx(whole.most_supports() / 2, abs=1)
    assert half.most_supports() * 512 * 60 * 60 * 4 <= 1e9 / 2
    views = Views((0.5, 1.0), flip=True)
    every = EpisodeTester(a_method(), Preprocess(473), CLASSES, ("squashed",), views, budget=1e9)
    assert every.most_supports() < half.most_supports() / 2
