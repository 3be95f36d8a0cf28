"""FewShotSegmenter: the same as the network itself, at any picture's size, and one clear line for bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples import mask, picture, refused
from networks import SMALL, CountingResNet, predict, tiny
from sd_aanet.checkpoint import Trained, save_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError, ConfigError, DataError
from sd_aanet.models import build_method, methods
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.segmenting.result import Segmentation
from sd_aanet.segmenting.segmenter import FewShotSegmenter

SIZE = 65


def make_trained(resize: str = "squash", high: str = "stage3", **arguments: Any) -> Trained:
    torch.manual_seed(0)
    backbone = {"name": "resnet18", "high": high, "trainable": True, "norm": "batch"}
    network = {"method": "sd_aanet", "backbone": backbone, "channels": 16} | arguments
    return Trained(build_method(**network).eval(), network, Preprocess(SIZE, resize), classes=20)


def make_segmenter(resize: str = "squash", **network: Any) -> FewShotSegmenter:
    trained = make_trained(resize, **network)
    return FewShotSegmenter(trained.method, trained.preprocess, device="cpu")


def supports(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(picture(i, 60 + 7 * i, 90), mask(60 + 7 * i, 90)) for i in range(count)]


def close(a: Segmentation, b: Segmentation) -> bool:
    assert a.attention is not None
    assert b.attention is not None
    same = np.allclose(a.probability, b.probability, atol=1e-5)
    return same and np.allclose(a.attention, b.attention, atol=1e-4)


# What it computes


def expected(segmenter: FewShotSegmenter, query: np.ndarray, shot: int) -> np.ndarray:
    """The probability that one forward of the method gives."""
    preprocess, method = segmenter.preprocess, segmenter.method
    pairs = [preprocess.resize_pair(*pair) for pair in supports(shot)]
    with torch.no_grad():
        prediction = predict(
            method,
            preprocess.image(query)[None],
            torch.stack([preprocess.normalise(image) for image, _ in pairs])[None],
            torch.stack([torch.from_numpy(values).long() for _, values in pairs])[None],
        )
        scores = Comparer(method).scores(prediction, 1)
    return preprocess.restore(scores[0, 1], query.shape[:2]).numpy()


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("network", [{}, {"saam": False}, {"high": "stage4", "sdpm": False}, {"prior": False}])
def test_it_is_the_networks_own_forward(resize: str, shot: int, network: dict[str, Any]) -> None:
    segmenter = make_segmenter(resize, **network)
    query = picture(9, 130, 70)
    segmenter.remember(supports(shot))
    found = segmenter.segment(query)
    np.testing.assert_allclose(found.probability, expected(segmenter, query, shot), atol=1e-5)
    np.testing.assert_array_equal(found.mask, found.probability > 0.5)


@pytest.mark.parametrize("name", methods())
def test_any_method_segments(name: str) -> None:
    method = tiny(name, dtype=torch.float32, ways=1)
    backbone = method.backbone
    preprocess = Preprocess(backbone.grid.nearest(SIZE), mean=backbone.mean, std=backbone.std)
    segmenter = FewShotSegmenter(method, preprocess, device="cpu")
    segmenter.remember(supports(2), batch=1)
    for query in (picture(9, 130, 70), picture(4)):
        found = segmenter.segment(query)
        np.testing.assert_allclose(found.probability, expected(segmenter, query, 2), atol=1e-5)
        assert found.mask.shape == query.shape[:2]


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("size", [(40, 200), (201, 33), (65, 65)])
def test_results_have_the_pictures_own_size(resize: str, size: tuple[int, int]) -> None:
    segmenter = make_segmenter(resize)
    segmenter.remember(supports(1))
    found = segmenter.segment(picture(3, *size))
    assert found.attention is not None
    assert found.mask.shape == found.probability.shape == found.attention.shape == size
    assert found.mask.dtype == np.uint8
    assert found.probability.dtype == found.attention.dtype == np.float32
    assert set(np.unique(found.mask)) <= {0, 1}
    assert 0 <= found.probability.min() <= found.probability.max() <= 1
    assert found.attention.min() == pytest.approx(0, abs=1e-5)
    assert found.attention.max() == pytest.approx(1, abs=1e-5)


def test_what_it_looked_at() -> None:
    """The attention of SAAM; without it the prior; without either nothing."""
    for network, looks in (({}, True), ({"saam": False}, True), ({"saam": False, "prior": False}, False)):
        segmenter = make_segmenter(**network)
        segmenter.remember(supports(1))
        assert (segmenter.segment(picture(3)).attention is not None) == looks


def test_the_order_of_the_supports_is_nothing() -> None:
    segmenter = make_segmenter()
    segmenter.remember(supports(5))
    forward = segmenter.segment(picture(7))
    segmenter.remember(supports(5)[::-1], batch=2)
    assert close(forward, segmenter.segment(picture(7)))


def test_many_queries_are_each_as_if_alone() -> None:
    segmenter = make_segmenter()
    segmenter.remember(supports(2))
    queries = [picture(i, 50 + i, 80 - i) for i in range(5)]
    together = list(segmenter.segment_all(queries, batch=3))
    assert len(together) == 5
    assert all(close(segmenter.segment(query), found) for query, found in zip(queries, together, strict=True))


def test_queries_are_read_as_they_are_needed() -> None:
    segmenter = make_segmenter()
    segmenter.remember(supports(1))
    found = segmenter.segment_all((picture(i) if i < 2 else pytest.fail("read too early") for i in range(9)), batch=2)
    assert next(found).mask.shape == (60, 90)


def test_what_was_remembered_stays_and_is_replaced() -> None:
    segmenter = make_segmenter()
    segmenter.remember(supports(2))
    first = segmenter.segment(picture(7))
    segmenter.segment(picture(8))
    assert close(first, segmenter.segment(picture(7)))
    with pytest.raises(DataError):
        segmenter.remember([(picture(1), mask(value=0))])
    assert close(first, segmenter.segment(picture(7)))
    segmenter.remember(supports(1))
    alone = make_segmenter()
    alone.remember(supports(1))
    assert close(alone.segment(picture(7)), segmenter.segment(picture(7)))


def test_supports_are_computed_once() -> None:
    backbone = CountingResNet()
    segmenter = FewShotSegmenter(SDAANet(backbone, **SMALL["sd_aanet"]), Preprocess(SIZE), device="cpu")
    segmenter.remember(supports(5), batch=4)
    for i in range(3):
        segmenter.segment(picture(i))
    assert backbone.seen == [4, 1, 1, 1, 1]


def test_a_turned_photograph_gets_a_mask_as_a_viewer_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(picture(0, 60, 90)).copy()).save(tmp_path / "phone.png", exif=exif)
    segmenter = make_segmenter()
    segmenter.remember([(tmp_path / "phone.png", mask(60, 90))])
    assert segmenter.segment(tmp_path / "phone.png").mask.shape == (60, 90)


# What it refuses


def test_nothing_to_remember_and_nothing_remembered() -> None:
    segmenter = make_segmenter()
    with refused(ConfigError, "remember"):
        segmenter.segment(picture(0))
    with refused(ConfigError, "remember"):
        segmenter.segment_all([])
    with refused(DataError, "empty"):
        segmenter.remember([])


@pytest.mark.parametrize("batch", [0, -1, "4", 2.0])
def test_what_is_no_number_of_pictures(batch: Any) -> None:
    segmenter = make_segmenter()
    with refused(ConfigError, "batch=", "expected a whole number of at least 1"):
        segmenter.remember(supports(1), batch=batch)
    segmenter.remember(supports(1))
    with refused(ConfigError, "batch=", "expected a whole number of at least 1"):
        segmenter.segment_all([picture(0)], batch=batch)


def test_what_is_no_class_and_what_has_no_pixel() -> None:
    segmenter = make_segmenter()
    with refused(ConfigError, "class_id='1', expected a whole number"):
        segmenter.remember(supports(1), class_id="1")  # type: ignore[arg-type]
    with refused(DataError, "the image of support 1 has no pixel"):
        segmenter.remember([(np.zeros((0, 9, 3), np.uint8), np.zeros((0, 9), np.uint8))])
    segmenter.remember(supports(1))
    with refused(DataError, "query has no pixel"):
        segmenter.segment(np.zeros((9, 0), np.uint8))


def test_an_object_that_no_feature_sees_is_refused() -> None:
    dot = np.zeros((600, 900), np.uint8)
    dot[300, 305] = 1
    with refused(DataError, "support 2", "1 of 540000 pixels", "crop"):
        make_segmenter().remember([(picture(0), mask()), (picture(0, 600, 900), dot)])


# Checkpoints and devices


def test_a_checkpoint_brings_network_and_preprocessing(tmp_path: Path) -> None:
    save_trained(make_trained("keep_aspect"), tmp_path / "best.ckpt")
    loaded = FewShotSegmenter.from_checkpoint(tmp_path / "best.ckpt", device="cpu")
    assert loaded.preprocess == Preprocess(65, "keep_aspect")
    loaded.remember(supports(1))
    segmenter = make_segmenter("keep_aspect")
    segmenter.remember(supports(1))
    assert close(segmenter.segment(picture(5)), loaded.segment(picture(5)))


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    save_trained(make_trained(), tmp_path / "whole.ckpt")
    data = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(data[: len(data) // 2])
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.ckpt")
    for name, word in {"absent": "does not exist", "half": "truncated", "other": "not one of sd-aanet"}.items():
        with refused(CheckpointError, f"{name}.ckpt", word):
            FewShotSegmenter.from_checkpoint(tmp_path / f"{name}.ckpt")


def test_devices_that_are_not_here() -> None:
    method = make_trained().method
    with refused(ConfigError, "device=gpu", "auto, cpu or cuda"):
        FewShotSegmenter(method, Preprocess(65), device="gpu")
    if not torch.cuda.is_available():
        with refused(ConfigError, "device=cuda", "no CUDA"):
            FewShotSegmenter(method, Preprocess(65), device="cuda")


def test_bf16_finds_what_float32_finds() -> None:
    method, preprocess, found = make_trained().method, Preprocess(65), {}
    for precision in ("32-true", "bf16-mixed"):
        segmenter = FewShotSegmenter(method, preprocess, "cpu", precision)
        segmenter.remember(supports(2))
        found[precision] = segmenter.segment(picture(9)).probability
    assert 0 < np.abs(found["bf16-mixed"] - found["32-true"]).max() < 0.05
    automatic = FewShotSegmenter(method, preprocess, "cpu", "auto").precision
    assert automatic == ("bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true")
    with refused(ConfigError, "precision=64-true", "32-true, bf16-mixed or auto"):
        FewShotSegmenter(method, preprocess, "cpu", "64-true")


def test_a_size_that_is_not_8n_plus_1() -> None:
    with refused(ConfigError, "64", "65"):
        FewShotSegmenter(make_trained().method, Preprocess(64))


def test_a_method_that_cannot_be_used_here_is_refused() -> None:
    """Rather than answer from pictures that are normalised otherwise, or fail when it compares."""
    lite = build_method("prototype", {"name": "efficientnet_lite0"})
    with pytest.raises(ConfigError, match=r"preprocess has mean .* but EfficientNet-Lite0 expects"):
        FewShotSegmenter(lite, Preprocess(65), "cpu")
    FewShotSegmenter(lite, Preprocess(65, mean=lite.backbone.mean, std=lite.backbone.std), "cpu")
    pairs = build_method("sd_aanet_multi", {"name": "resnet18"}, channels=8, ways=2)
    with pytest.raises(ConfigError, match="made for 2 classes at once"):
        FewShotSegmenter(pairs, Preprocess(65), "cpu")


def test_a_small_object_is_seen_by_a_method_that_looks_closer(tmp_path: Path) -> None:
    """HSNet's finest map has a stride of 8, the prototype's one of 16 on the same backbone."""
    small = np.zeros((65, 65), np.uint8)
    small[22:28, 22:28] = 1
    Image.fromarray(picture(0, 65, 65)).save(tmp_path / "far.png")
    for name, seen in (("hsnet", True), ("prototype", False)):
        method = build_method(name, {"name": "efficientnet_lite0", "mid": ["stage5"], "output_stride": 32})
        backbone = method.backbone
        segmenter = FewShotSegmenter(method, Preprocess(65, mean=backbone.mean, std=backbone.std), "cpu")
        if seen:
            segmenter.remember([(picture(0, 65, 65), small)])
        else:
            with pytest.raises(DataError, match=r"far\.png\) has .* too few for the network to see"):
                segmenter.remember([(tmp_path / "far.png", small)])
            with pytest.raises(DataError, match="too few for the network to see"):  # what is ignored shows nothing
                segmenter.remember([(picture(0, 65, 65), np.where(small, 1, np.pad([[255]], ((0, 64), (0, 64)))))])
