"""The embedded data set: the same pictures everywhere, sound masks, every class often enough."""

import hashlib

import numpy as np
import pytest

from sd_aanet.data.sources.shapes import FOLDS, Shapes
from sd_aanet.errors import ConfigError


@pytest.fixture(scope="module", params=["train", "val"])
def whole(request: pytest.FixtureRequest) -> Shapes:
    return Shapes(request.param)


def test_pictures_do_not_depend_on_the_order_of_access() -> None:
    one, other = Shapes("train", images=6, size=97), Shapes("train", images=6, size=97)
    other.pixels()
    backwards = {i: other.image(i) for i in reversed(range(6))}
    for i in range(6):
        np.testing.assert_array_equal(one.image(i), backwards[i])
        np.testing.assert_array_equal(one.image(i), one.image(i))
        for c in range(1, 21):
            np.testing.assert_array_equal(one.mask(i, c), other.mask(i, c))


def test_a_picture_can_be_changed_without_harm() -> None:
    shapes = Shapes("val", images=1)
    shapes.image(0)[:] = 0
    shapes.mask(0, 1)[:] = 7
    assert shapes.image(0).any()
    assert shapes.mask(0, 1).max() == 1


def test_fewer_images_are_the_first_of_more() -> None:
    few, many = Shapes("val", images=3), Shapes("val", images=30)
    np.testing.assert_array_equal(few.image(2), many.image(2))
    assert few.key(2) == many.key(2)
    np.testing.assert_array_equal(few.pixels(), many.pixels()[:3])


def test_the_recorded_layouts_and_pictures() -> None:
    """Other numbers here mean another data set: results measured on it before no longer compare."""
    shapes = Shapes("train", images=40, size=97)
    labels = np.stack([sum(c * shapes.mask(i, c) for c in range(1, 21)) for i in range(40)])
    assert hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()[:16] == "dafe99ef494b927d"
    pictures = np.stack([shapes.image(i) for i in range(40)])
    assert pictures.mean() == pytest.approx(102.8803, abs=1e-3)
    assert pictures.std() == pytest.approx(51.2127, abs=1e-3)


def test_splits_seeds_and_pictures_differ() -> None:
    pictures = [Shapes("train", images=2).image(0), Shapes("train", images=21).image(20)]
    pictures += [Shapes("val", images=1).image(0), Shapes("train", images=1, seed=1).image(0)]
    assert len({p.tobytes() for p in pictures}) == 4
    keys = {
        Shapes(split, images=1, size=s, seed=n).key(0) for split in ("train", "val") for s in (97, 129) for n in (0, 1)
    }
    assert len(keys) == 8


@pytest.mark.parametrize("size", [33, 97, 129])
def test_images_and_masks_have_the_size_and_the_types(size: int) -> None:
    shapes = Shapes("train", images=5, size=size)
    for i in range(5):
        image, mask = shapes.image(i), shapes.mask(i, 1 + i)
        assert image.shape == (size, size, 3)
        assert mask.shape == (size, size)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert image.std() > 5


def test_pixels_are_those_of_the_masks() -> None:
    shapes = Shapes("val", images=25, size=97)
    pixels = shapes.pixels()
    assert pixels.dtype == np.int64
    counted = [[int(shapes.mask(i, c).sum()) for c in range(1, 21)] for i in range(25)]
    np.testing.assert_array_equal(pixels, counted)


def test_every_class_is_there_often_and_large_enough(whole: Shapes) -> None:
    pixels, area = whole.pixels(), whole.size**2
    assert pixels.shape == (len(whole), 20) == ({"train": 1500, "val": 500}[whole.split], 20)
    usable = pixels >= 0.04 * area
    assert usable.sum(axis=0).min() >= len(whole) / 20
    assert (usable.sum(axis=1) >= 1).mean() >= 0.95
    assert pixels.sum(axis=1).max() < 0.7 * area  # ground is left
    assert ((pixels > 0).sum(axis=1) >= 2).mean() > 0.95  # there is something to tell it from


def test_each_outline_and_each_texture_serves_two_classes_of_different_folds() -> None:
    for part in (0, 1):
        by_fold = [{pair[part] for pair in fold} for fold in FOLDS]
        assert [len(parts) for parts in by_fold] == [5, 5, 5, 5]
        assert all(sum(p in parts for parts in by_fold) == 2 for p in set().union(*by_fold))
    assert len({pair for fold in FOLDS for pair in fold}) == 20


def test_folds_divide_the_classes() -> None:
    shapes = Shapes("train", images=1)
    novel = [c for fold in range(shapes.folds) for c in shapes.fold_classes(fold)]
    assert novel == list(range(1, 21))
    assert len(set(shapes.classes)) == 20
    assert shapes.classes[shapes.fold_classes(1)[0] - 1] == "zigzag arrow"


def test_a_class_comes_in_many_shades() -> None:
    """The mean colours of the objects of one class scatter by more than 10 of 255, in every class."""
    shapes = Shapes("train", images=200, size=97)
    means = np.array([shapes.image(i)[shapes.mask(i, 1 + i % 20) == 1].mean(axis=0) for i in range(200)])
    assert means.reshape(10, 20, 3).std(axis=0).max(axis=1).min() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split 'test'"),
        ({"split": "train", "images": 0}, "images=0"),
        ({"split": "train", "size": 8}, "size=8"),
        ({"split": "train", "seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Shapes(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
