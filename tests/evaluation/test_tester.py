"""An evaluation by its plan gives what one forward an episode gives; scoring against plain NumPy; views."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.fake_voc import make_voc
from sd_aanet.data.episodes import EpisodeSampler, EpisodeSpec
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.transforms import Preprocess
from sd_aanet.evaluation.loading import StepDataset
from sd_aanet.evaluation.plan import Job, plan
from sd_aanet.evaluation.tester import EpisodeTester, Views
from sd_aanet.training.module import SDAANetModule

SIDE = 33
NETWORK = {"backbone": "resnet18", "channels": 8, "bins": (1.0, 0.5), "dropout": 0.0}
NETWORKS = {
    "stage 4": {},
    "stage 3": {"prior_stage": 3},
    "no prior": {"prior": False},
    "baseline": {"saam": False, "sdpm": False},
    "prototype": {"method": "prototype", "backbone": "resnet18"},
}
Found = dict[Job, Tensor]


def a_module(name: str = "stage 4") -> SDAANetModule:
    torch.manual_seed(0)
    arguments = NETWORKS[name] if name == "prototype" else NETWORK | NETWORKS[name]
    return SDAANetModule(arguments, {}, {"size": SIDE}, classes=20).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """A third of its pictures show two classes, 1 and 6 or 2 and 7."""
    return Pascal5i(make_voc(tmp_path_factory.mktemp("voc"), 5), "val")


def drawn(source: ImageSource, shot: int = 2, count: int = 8) -> list[Job]:
    sampler = EpisodeSampler(source.pixels(), (1, 2, 6), shot, 0, min_object_pixels=1, order="classes")
    return [Job(seed, index, sampler.draw(seed, index)) for seed in (3, 4) for index in range(count // 2)]


def evaluated(
    module: SDAANetModule,
    source: ImageSource,
    jobs: Sequence[Job],
    *resolutions: str,
    supports: int = 100,
    pictures: int = 3,
    ignore_boundary: bool = True,
    resize: str = "squash",
    **settings: object,
) -> tuple[EpisodeTester, Found]:
    """What a tester makes of jobs: itself, after its test, and the probabilities."""
    preprocess = Preprocess(SIDE, resize)
    tester = EpisodeTester(module, preprocess, resolutions or ("squashed",), **settings)  # type: ignore[arg-type]
    tester.steps = plan(jobs, supports, pictures)
    data = StepDataset(source, tester.steps, preprocess, ignore_boundary)
    found: Found = {}
    with torch.inference_mode():
        for i in range(len(data)):
            for some, probability, _ in tester.segment(data[i]):
                found |= dict(zip(some, probability, strict=True))
        for i in range(len(data)):
            tester.test_step(data[i], i)
    return tester, found


def view(x: Tensor, side: int, flipped: bool, nearest: bool = False) -> Tensor:
    if x.shape[-1] != side:
        how = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "align_corners": True}
        x = torch.nn.functional.interpolate(x, (side, side), **how)  # type: ignore[arg-type]
    return x.flip(-1) if flipped else x


def one_by_one(
    module: SDAANetModule, source: ImageSource, spec: EpisodeSpec, side: int = SIDE, flipped: bool = False
) -> Tensor:
    """The probability of one forward of the whole network."""
    preprocess = Preprocess(SIDE)
    images = torch.stack([preprocess.image(source.image(i)) for i in (spec.query, *spec.supports)])
    masks = torch.stack([preprocess.mask(source.mask(i, spec.class_id)) for i in spec.supports])
    images = view(images, side, flipped)
    masks = view(masks[:, None].float(), side, flipped, nearest=True)[:, 0]
    with torch.no_grad():
        logits = module.network(images[:1], images[None, 1:], masks[None].long()).logits
    return view(logits.softmax(1)[:, 1:].flip(-1) if flipped else logits.softmax(1)[:, 1:], SIDE, False)[0, 0]


@pytest.mark.parametrize("network", NETWORKS)
def test_by_the_plan_is_one_forward_an_episode(network: str, source: ImageSource) -> None:
    module, jobs = a_module(network), drawn(source)
    expected = {job: one_by_one(module, source, job.spec) for job in jobs}
    for supports, pictures, batch, budget in ((100, 3, 8, 1e9), (2, 1, 1, 0.0), (5, 2, 3, 1e6)):
        settings = {"supports": supports, "pictures": pictures, "batch": batch, "budget": budget}
        _, found = evaluated(module, source, jobs, **settings)  # type: ignore[arg-type]
        assert set(found) == set(jobs)
        for job in jobs:
            torch.testing.assert_close(found[job], expected[job], atol=2e-5, rtol=0)


def test_five_shots_and_features_on_disk(source: ImageSource, tmp_path: Path) -> None:
    module, jobs = a_module(), drawn(source, shot=3)
    for _ in range(2):  # written, then read
        _, found = evaluated(module, source, jobs, folder=tmp_path)
        for job in jobs:
            torch.testing.assert_close(found[job], one_by_one(module, source, job.spec), atol=2e-5, rtol=0)
    assert {path.parent.name for path in tmp_path.rglob("*.npy")} == {"mid", "high", "masked"}


def test_each_picture_goes_through_the_backbone_once(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    module, jobs = a_module(), drawn(source, count=12)
    seen: list[int] = []
    mid = module.network.mid
    monkeypatch.setattr(module.network, "mid", lambda images: (seen.append(len(images)), mid(images))[1])
    tester = EpisodeTester(module, Preprocess(SIDE), ("squashed",))
    tester.steps = plan(jobs, 100, 3)
    data = StepDataset(source, tester.steps, tester.preprocess)
    for i in range(len(data)):
        tester.test_step(data[i], i)
    pictures = {i for job in jobs for i in (job.spec.query, *job.spec.supports)}
    assert sum(seen) == len(pictures) < 12 * 3


def counts(mask: NDArray[np.bool_], truth: NDArray[np.uint8]) -> list[int]:
    valid, true = truth != 255, truth == 1
    return [
        (mask & true & valid).sum(),
        ((mask | true) & valid).sum(),
        (~mask & ~true & valid).sum(),
        ((~mask | ~true) & valid).sum(),
        true.sum(),
    ]


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("ignore_boundary", [True, False])
def test_both_resolutions_from_one_pass(source: ImageSource, resize: str, ignore_boundary: bool) -> None:
    jobs, preprocess = drawn(source), Preprocess(SIDE, resize)
    settings = {"resize": resize, "ignore_boundary": ignore_boundary}
    tester, found = evaluated(a_module(), source, jobs, "original", "squashed", **settings)  # type: ignore[arg-type]
    by_place = {(job.seed, job.index): job for job in jobs}
    for name, rows in tester.rows.items():
        table = torch.cat(rows).numpy()
        assert sorted(map(tuple, table[:, :2].tolist())) == sorted(by_place)
        for row in table:
            job = by_place[row[0], row[1]]
            truth = source.mask(job.spec.query, job.spec.class_id)
            truth = truth if ignore_boundary else np.where(truth == 255, 0, truth).astype(np.uint8)
            shown = found[job]
            if name == "original":
                shown = preprocess.restore(shown, truth.shape)
            else:
                truth = preprocess.mask(truth).numpy().astype(np.uint8)
            assert row[2:].tolist() == [job.spec.class_id, *counts((shown > 0.5).numpy(), truth)]
    assert torch.cat(tester.prototypes).shape == (len(jobs), 8)


def test_views_are_averaged(source: ImageSource) -> None:
    module, jobs = a_module(), drawn(source, count=4)
    _, found = evaluated(module, source, jobs, views=Views((0.5, 1.0), flip=True))
    for job in jobs:
        each = [one_by_one(module, source, job.spec, side, flip) for side in (17, SIDE) for flip in (False, True)]
        torch.testing.assert_close(found[job], torch.stack(each).mean(0), atol=2e-5, rtol=0)


def test_scales_are_of_sides_that_the_network_takes() -> None:
    assert Views((0.5, 1.0, 1.6)).sides(33) == [17, 33, 49]


def test_the_budget_bounds_the_supports() -> None:
    half, whole = (EpisodeTester(a_module(), Preprocess(473), ("squashed",), budget=b) for b in (1e9, 2e9))
    assert half.most_supports() == pytest.approx(whole.most_supports() / 2, abs=1)
    assert half.most_supports() * 512 * 60 * 60 * 4 <= 1e9 / 2
