"""Episodes of several classes: what a draw promises, and the episode that is made of it."""

from typing import Literal

import numpy as np
import pytest
import torch
from fake_voc import Voc
from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.data.episodes import EpisodeDataset, EpisodeSampler
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.transforms import Augment, Preprocess
from sd_aanet.errors import ConfigError

PIXELS = np.random.default_rng(1).integers(0, 8000, (60, 7))
CLASSES = (1, 3, 4, 6)
PLACES = ((0, 0), (0, 1), (3, 2))
Order = Literal["random", "classes", "pairs"]
ONE_WAY: dict[Order, list[tuple[int, int, tuple[int, ...]]]] = {
    "random": [(6, 41, (49, 59)), (3, 44, (12, 10)), (3, 15, (10, 43))],
    "classes": [(1, 7, (34, 8)), (3, 26, (44, 12)), (4, 49, (22, 56))],
    "pairs": [(1, 0, (7, 34)), (3, 0, (26, 44)), (4, 0, (49, 22))],
}
"""Draws of seed 7 from before there were several classes: every number reported before rests on them."""


@pytest.mark.parametrize("order", ONE_WAY)
def test_one_class_is_drawn_as_ever(order: Order) -> None:
    sampler = EpisodeSampler(PIXELS, CLASSES, 2, 7, order=order)
    drawn = [sampler.draw(*place) for place in PLACES]
    assert [(*spec.classes, spec.query, *spec.supports) for spec in drawn] == ONE_WAY[order]
    assert [len(spec.classes) for spec in drawn] == [1, 1, 1]


@given(
    st.integers(0, 2**40),
    st.integers(0, 1000),
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["random", "classes", "pairs"]),
)
def test_what_a_draw_promises(seed: int, epoch: int, index: int, shot: int, way: int, order: Order) -> None:
    sampler = EpisodeSampler(PIXELS, CLASSES, shot, seed, way=way, order=order)
    spec = sampler.draw(epoch, index)
    assert len(spec.classes) == len(set(spec.classes)) == len(spec.supports) == way
    assert set(spec.classes) <= set(CLASSES)
    assert any(PIXELS[spec.query, c - 1] >= 2048 for c in spec.classes), "the query shows one of them"
    for c, images in zip(spec.classes, spec.supports, strict=True):
        assert len(set(images)) == len(images) == shot
        assert spec.query not in images
        assert (PIXELS[list(images), c - 1] >= 2048).all()
    assert spec.examples == [(i, c) for c, images in zip(spec.classes, spec.supports, strict=True) for i in images]
    if order == "classes":
        assert PIXELS[spec.query, CLASSES[index % 4] - 1] >= 2048
        assert CLASSES[index % 4] in spec.classes, "each in turn, in any place"
    # A fresh sampler, asked for other things first, says the same.
    other = EpisodeSampler(PIXELS, CLASSES, shot, seed, way=way, order=order)
    other.draw(7, 7)
    assert other.draw(epoch, index) == spec


def test_other_classes_are_spread_evenly() -> None:
    sampler = EpisodeSampler(np.full((10, 4), 9999), (1, 2, 3, 4), 1, 0, way=2)
    drawn = [sampler.draw(0, index).classes for index in range(2400)]
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(pairs) == 4 * 3
    assert (np.abs(counts - 200) < 5 * 200**0.5).all()


def test_images_that_are_just_enough() -> None:
    """A query may be one of the only K + 1 images of another class."""
    pixels = np.full((3, 2), 9999)
    for index in range(20):
        spec = EpisodeSampler(pixels, (1, 2), 2, 0, way=2).draw(0, index)
        assert all(sorted([spec.query, *images]) == [0, 1, 2] for images in spec.supports)


@pytest.mark.parametrize("way", [0, 3])
def test_as_many_ways_as_there_are_classes(way: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"^way={way}, expected 1 to 2, the number of classes to draw from: set [^\n]*$"
    ):
        EpisodeSampler(np.full((5, 2), 9999), (1, 2), 1, 0, way=way)


def test_an_episode_is_what_its_spec_says(voc: Voc) -> None:
    source = Pascal5i(voc(4), "val")
    sampler = EpisodeSampler(source.pixels(), (1, 2, 6, 7), 2, 11, way=3, min_object_pixels=1)
    data = EpisodeDataset(source, sampler, Preprocess(33), Augment("none"), 10)
    both = 0
    for index in range(10):
        episode, spec = data[index], data.spec(index)
        assert episode.query.shape == (1, 3, 33, 33)
        assert episode.support.shape == (1, 3, 2, 3, 33, 33)
        assert episode.support_mask.shape == (1, 3, 2, 33, 33)
        assert (episode.ways, episode.shots, len(episode)) == (3, 2, 1)
        assert episode.class_id.tolist() == [list(spec.classes)]
        for n, (c, images) in enumerate(zip(spec.classes, spec.supports, strict=True)):
            for k, i in enumerate(images):
                assert torch.equal(episode.support[0, n, k], data.preprocess.image(source.image(i)))
                assert torch.equal(episode.support_mask[0, n, k], data.preprocess.mask(source.mask(i, c)))
        masks = [source.mask(spec.query, c) for c in spec.classes]
        truth = np.zeros_like(masks[0])
        for n, mask in reversed(list(enumerate(masks, start=1))):
            truth[mask == 1] = n
        truth[np.any([mask == 255 for mask in masks], 0)] = 255
        assert torch.equal(episode.query_mask[0], data.preprocess.mask(truth))
        assert {1, 2, 3} & set(episode.query_mask.unique().tolist())
        both += len({1, 2, 3} & set(episode.query_mask.unique().tolist())) > 1
    assert both > 0, "some query shows two of its classes"
