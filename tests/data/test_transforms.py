import collections
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd_aanet.data import transforms
from sd_aanet.data.transforms import AUGMENTS, Augment, Preprocess
from sd_aanet.episode import Prediction
from sd_aanet.errors import ConfigError

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def painted(height: int = 65, width: int = 65) -> Pair:
    """An image that is white where its mask is 1, black where it is 0; a shape that no flip or turn maps to itself."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 6 : height // 2, width // 5 : width // 3] = 1
    mask[height // 2 : 4 * height // 5, width // 5 : 3 * width // 4] = 1
    return np.repeat(mask[..., None] * 255, 3, axis=-1), mask


def agreement(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """The share of the counted pixels at which image and mask say the same."""
    counted = mask != 255
    return float(((image[..., 0] > 127) == (mask == 1))[counted].mean())


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (225, 300), (33, 33)])
def test_mask_follows_image_through_resizing(resize: str, shape: tuple[int, int]) -> None:
    image, mask = Preprocess(65, resize).resize_pair(*painted(*shape))
    assert image.shape == (65, 65, 3)
    assert mask.shape == (65, 65)
    assert agreement(image, mask) > 0.985


def test_keep_aspect_pads_below_or_right_with_the_mean() -> None:
    preprocess = Preprocess(65, "keep_aspect")
    image, mask = preprocess.resize_pair(*painted(50, 100))
    assert (mask[:32] < 255).all()
    assert (mask[32:] == 255).all()
    assert preprocess.normalise(image)[:, 32:].abs().max() < 0.02
    _, mask = preprocess.resize_pair(*painted(100, 50))
    assert (mask[:, 32:] == 255).all()


def test_normalise_is_imagenets() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(image) / 255 - mean) / deviation
    tensor = Preprocess(9).normalise(image)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor, expected.permute(2, 0, 1), rtol=0, atol=1e-5)


def test_one_picture_or_mask_alone_as_in_a_pair() -> None:
    preprocess = Preprocess(33, "keep_aspect")
    image, mask = painted(40, 70)
    small, small_mask = preprocess.resize_pair(image, mask)
    assert torch.equal(preprocess.image(image), preprocess.normalise(small))
    assert torch.equal(preprocess.mask(mask), torch.from_numpy(small_mask).long())
    assert preprocess.mask(mask).dtype == torch.int64


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["squash", "keep_aspect"]), st.integers(40, 300), st.integers(40, 300))
def test_restore_undoes_the_resizing(resize: str, height: int, width: int) -> None:
    preprocess = Preprocess(129, resize)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width)).astype(np.uint8)
    small = preprocess.resize_pair(np.repeat(ramp[..., None], 3, axis=-1), ramp)[0][..., 0]
    back = preprocess.restore(torch.from_numpy(small).float(), (height, width))
    assert back.shape == (height, width)
    # Only the outermost pixels are further off, where bilinear has nothing beyond to go by.
    assert (back - torch.from_numpy(ramp)).abs().max() < 6
    assert (back - torch.from_numpy(ramp)).abs().mean() < 1.2


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
@pytest.mark.parametrize("size", [(40, 200), (201, 33), (17, 17), (1, 5)])
def test_a_map_in_strips_is_the_whole_one(resize: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess, values = Preprocess(17, resize), torch.rand(17, 17)
    whole = preprocess.restore(values, size)
    for strip in (1, 300, 10**6):
        monkeypatch.setattr(transforms, "_STRIP", strip)
        restored = preprocess.restored(values, size)
        torch.testing.assert_close(torch.from_numpy(restored.whole()), whole)
        rows = [part for part, _ in restored.strips()]
        assert len(rows) == -(-size[0] // max(1, strip // size[1]))


def test_restore_keeps_leading_axes() -> None:
    values = torch.rand(2, 3, 17, 17)
    whole = Preprocess(17, "keep_aspect").restore(values, (20, 40))
    assert whole.shape == (2, 3, 20, 40)
    torch.testing.assert_close(whole[1, 2], Preprocess(17, "keep_aspect").restore(values[1, 2], (20, 40)))


def test_borders_are_of_the_mean_colour() -> None:
    assert Preprocess(9).colour == Augment().fill == (124, 116, 104)
    assert Preprocess(9, mean=(0.5, 0.0, 1.0)).colour == (128, 0, 255)


@pytest.mark.parametrize("resize", ["squash", "keep_aspect"])
def test_attention_is_stretched_from_its_least_to_its_most(resize: str) -> None:
    """The last map of a row at the picture's own size, as a plain resizing of it has it."""
    preprocess, random = Preprocess(17, resize), np.random.default_rng(0)
    maps = {name: torch.from_numpy(random.normal(3, 2, (2, 1, 17, 17))) for name in ("prior", "attention")}
    prediction = Prediction(logits=torch.zeros(2, 2, 17, 17), maps=maps, embedding=None)
    for row in (0, 1):
        restored = preprocess.attention(prediction, row, (34, 51))
        assert restored is not None
        found = restored.whole()
        assert found.dtype == np.float32
        inner = maps["attention"][row, 0, : 17 if resize == "squash" else 11].float().numpy()
        whole = cv2.resize(inner, (51, 34), interpolation=cv2.INTER_LINEAR)
        expected = (whole - whole.min()) / (whole.max() - whole.min())
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert preprocess.attention(Prediction(logits=torch.zeros(2, 2, 9, 9), maps={}, embedding=None), 0, (9, 9)) is None
    flat = Prediction(logits=torch.zeros(1, 2, 9, 9), maps={"prior": torch.ones(1, 1, 3, 3)}, embedding=None)
    restored = Preprocess(9).attention(flat, 0, (5, 5))
    assert restored is not None
    assert not restored.whole().any()


@pytest.mark.parametrize("name", AUGMENTS)
def test_mask_follows_image_through_every_view(name: str) -> None:
    image, mask = painted()
    different = set()
    for seed in range(40):
        view, view_mask = Augment(name)(image, mask, [seed])
        assert view.shape == image.shape
        assert view_mask.shape == mask.shape
        assert view.dtype == view_mask.dtype == np.uint8
        assert set(np.unique(view_mask)) <= {0, 1, 255}
        # Blur and bilinear sampling move the edge by up to a pixel; out of step would be far below.
        assert agreement(view, view_mask) > 0.96
        if name in ("none", "flip"):
            assert any(np.array_equal(view, turned) for turned in (image, image[:, ::-1]))
        different.add(view.tobytes())
    assert len(different) == {"none": 1, "flip": 2}.get(name, len(different))
    assert name in ("none", "flip") or len(different) > 15


def test_turning_fills_with_the_mean_and_ignores_what_it_fills() -> None:
    image, mask = np.full((65, 65, 3), 255, np.uint8), np.ones((65, 65), np.uint8)
    views = [Augment("published")(image, mask, [seed]) for seed in range(30)]
    turned = [(view, view_mask) for view, view_mask in views if (view_mask == 255).any()]
    assert turned
    for view, view_mask in turned:
        corners = cv2.erode((view_mask == 255).astype(np.uint8), np.ones((5, 5))) == 1
        assert np.abs(view[corners].astype(int) - (124, 116, 104)).max(initial=0) <= 12


@pytest.mark.parametrize("name", ["flip", "published", "scale"])
def test_views_depend_on_their_seed_alone(name: str) -> None:
    pair = painted()
    first = [Augment(name)(*pair, [3, 1, seed]) for seed in range(6)]
    np.random.seed(5)
    again = [Augment(name)(*pair, [3, 1, seed]) for seed in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_steps_of_the_published_view_are_independent() -> None:
    """Rotation, blur and flip each come half of the time, and in all eight combinations."""
    image, mask = painted()
    image = (image * 0.5 + np.random.default_rng(0).integers(0, 120, image.shape)).astype(np.uint8)
    seen: collections.Counter[tuple[bool, bool, bool]] = collections.Counter()
    sharpness = cv2.Laplacian(image, cv2.CV_32F).std()
    for seed in range(200):
        view, view_mask = Augment("published")(image, mask, [seed])
        turned = bool((view_mask == 255).any())
        flipped = bool((view_mask[14:28, 33:] == 1).sum() > (view_mask[14:28, :33] == 1).sum())
        blurred = bool(cv2.Laplacian(view[12:-12, 12:-12], cv2.CV_32F).std() < 0.3 * sharpness)
        seen[turned, blurred, flipped] += 1
    for axis in range(3):
        assert 60 < sum(count for combination, count in seen.items() if combination[axis]) < 140
    assert len(seen) == 8


@pytest.mark.parametrize(("name", "least", "most"), [("published", 1.0, 1.0), ("scale", 0.8, 1.25)])
def test_how_far_views_are_scaled_and_turned(name: str, least: float, most: float) -> None:
    """By the moments of a bar about its middle; half of the views are neither scaled nor turned."""
    mask = np.zeros((257, 257), np.uint8)
    mask[112:145, 68:189] = 1  # 121 long, 33 high, about the middle
    scales, turns = [], []
    for seed in range(400):
        view = Augment(name)(np.repeat(mask[..., None], 3, -1), mask, [seed])[1] == 1
        y, x = np.nonzero(view)
        around = np.cov(np.stack([x, y]))
        (small, large), axes = np.linalg.eigh(around)
        sides = np.sqrt(12 * large) / 121, np.sqrt(12 * small) / 33
        assert sides[0] == pytest.approx(sides[1], abs=0.03)  # both alike
        assert (x.mean(), y.mean()) == pytest.approx((128, 128), abs=1)
        scales.append(float(np.mean(sides)))
        turns.append(abs(float(np.degrees(np.arctan(axes[1, 1] / axes[0, 1])))))
    still = [abs(scale - 1) < 1e-3 and turn < 1e-3 for scale, turn in zip(scales, turns, strict=True)]
    assert 160 < sum(still) < 240
    assert least - 0.01 < min(scales) < least + 0.02
    assert most - 0.02 < max(scales) < most + 0.01
    assert 9 < max(turns) < 10.2
    assert min(turn for turn, at_rest in zip(turns, still, strict=True) if not at_rest) < 1


def test_a_view_never_loses_its_object() -> None:
    image, mask = painted()
    mask[:] = 0
    mask[0, 0] = 1  # any turn puts it outside
    for seed in range(40):
        assert (Augment("published")(image, mask, [seed])[1] == 1).any()


def test_what_shows_no_object_is_seen_in_every_view_too() -> None:
    image, mask = painted()
    mask[:] = 0
    views = [Augment("published")(image, mask, [seed]) for seed in range(20)]
    assert any((view != image).any() for view, _ in views)
    assert any((view_mask == 255).any() for _, view_mask in views)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="resize='crop', expected one of squash, keep_aspect"):
        Preprocess(65, "crop")
    with pytest.raises(ConfigError, match="augment='strong', expected one of none, flip, published, scale"):
        Augment("strong")


def test_views_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in AUGMENTS:
            Augment(name)(*painted(), [0])


def test_cameras_images_are_averaged() -> None:
    """A fine pattern becomes its mean, not some of its pixels."""
    fine = np.zeros((400, 600, 3), np.uint8)
    fine[::2, ::2] = 255
    image, _ = Preprocess(65).resize_pair(fine, np.zeros((400, 600), np.uint8))
    assert abs(image.astype(int) - 64).max() <= 20
    assert image.std() < 8
    small, _ = Preprocess(201).resize_pair(fine, np.zeros((400, 600), np.uint8))
    np.testing.assert_array_equal(small, cv2.resize(fine, (201, 201), interpolation=cv2.INTER_LINEAR))
