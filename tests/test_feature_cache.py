"""Remembered features are the computed ones, whatever is kept and forgotten."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import episode, small
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.memory import FeatureMemory
from sd_aanet.models.base import Features
from sd_aanet.models.sd_aanet import SDAANet

PICTURES = ["a", "b", "c", "d", "e"]
SIDE = 5  # of the features of 33 x 33 pixels
MID, HIGH = (128 + 256) * SIDE**2 * 8, 512 * SIDE**2 * 8  # bytes of a picture, float64


@pytest.fixture(scope="module")
def network() -> SDAANet:
    return small().train()


def foreground(batch: Episode) -> torch.Tensor:
    return (batch.support_mask == 1).to(batch.query.dtype)


def batch_of(rows: list[tuple[list[str], int]]) -> Episode:
    return episode([names for names, _ in rows], [c for _, c in rows], dtype=torch.float64)


def check(memory: FeatureMemory, batch: Episode) -> None:
    with torch.no_grad():
        ours = memory.features(batch, foreground(batch))
        expected = memory.network.extract(batch.query, batch.support, foreground(batch))
    for mine, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.mid, wanted.mid, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.high, wanted.high, rtol=1e-12, atol=1e-12)


rows = st.tuples(st.lists(st.sampled_from(PICTURES), min_size=2, max_size=2), st.integers(1, 2))
batches = st.lists(rows, min_size=1, max_size=2)


@settings(max_examples=6)
@given(st.lists(batches, min_size=2, max_size=3), st.sampled_from([0, 1, 2.5, 1000]))
def test_remembered_is_computed(network: SDAANet, sequence: list[Any], pictures: float) -> None:
    """Pictures recur within a batch and between batches, as query and support, in two classes; some are forgotten."""
    memory = FeatureMemory(network, budget=pictures * (MID + HIGH))
    for rows in sequence:
        check(memory, batch_of(rows))
        assert memory.bytes == sum(row.nbytes for row in memory._kept.values())
        assert memory.bytes <= memory.budget


@pytest.mark.parametrize("prior", [{"prior": False}, {"prior_stage": 2}, {"prior_stage": 3}])
def test_other_priors(prior: dict[str, Any]) -> None:
    memory = FeatureMemory(small(**prior), budget=1e9)
    for _ in range(2):
        check(memory, batch_of([(["a", "b"], 1), (["b", "c"], 2)]))


def test_each_picture_is_computed_once(network: SDAANet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    mid = network.mid
    monkeypatch.setattr(network, "mid", lambda images: (seen.append(len(images)), mid(images))[1])
    memory = FeatureMemory(network, budget=1e9)
    first = batch_of([(["a", "b", "b"], 1), (["b", "a", "c"], 1)])
    memory.features(first, foreground(first))
    assert seen == [3]  # a, b, c of six
    assert (memory.misses, memory.hits) == (3 + 2 + 3, 6 - 3 + 0 + 1)  # pictures, queries, masked supports
    memory.features(first, foreground(first))
    assert seen == [3]
    assert memory.misses == 8


def test_a_mask_belongs_to_its_class(network: SDAANet) -> None:
    """The same support in an episode of another class has other masked features."""
    memory = FeatureMemory(network, budget=1e9)
    both = batch_of([(["a", "b"], 1), (["a", "b"], 2)])
    check(memory, both)
    high = memory.features(both, foreground(both))[1].high
    assert high is not None
    assert not torch.allclose(high[0], high[1])


def test_the_least_recently_used_goes_first() -> None:
    memory = FeatureMemory(small(prior=False), budget=3 * MID)
    for names in (["a", "b"], ["c", "a"], ["d", "d"]):  # d drives out b: a was used again
        batch = batch_of([(names, 1)])
        memory.features(batch, foreground(batch))
    assert {key[1] for key in memory._kept} == {"a", "c", "d"}
    assert memory.bytes == 3 * MID
    misses = memory.misses
    batch = batch_of([(["a", "b"], 1)])
    memory.features(batch, foreground(batch))
    assert memory.misses == misses + 1


def test_features_outlive_their_batch(network: SDAANet) -> None:
    """A kept row is no view that would keep the whole batch, and spoiling what was served spoils nothing kept."""
    memory = FeatureMemory(network, budget=1e9)
    batch = batch_of([(["a", "b"], 1), (["c", "d"], 1)])
    served = memory.features(batch, foreground(batch))
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in memory._kept.values())
    for part in served:
        part.mid.zero_()
    check(memory, batch)


def test_what_validation_remembers_serves_training() -> None:
    """Lightning validates in inference mode, whose tensors no gradient may pass."""
    network = small(dtype=torch.float32)
    memory = FeatureMemory(network, budget=1e9)
    batch = episode([["a", "b"], ["b", "c"]], [1, 2])
    with torch.inference_mode():
        memory.features(batch, foreground(batch))
    network.head(*memory.features(batch, foreground(batch)), foreground(batch)).logits.sum().backward()
    assert network.project_query.weight.grad is not None


def test_a_training_backbone_is_refused() -> None:
    for arguments in ({"backbone_trainable": True}, {"backbone_norm": "batch"}):
        network = small(prior_stage=3, **arguments)
        with pytest.raises(ConfigError, match=r"^features=remember needs a backbone that stands still: set [^\n]*$"):
            FeatureMemory(network, 1e9)
        check(FeatureMemory(network.eval(), 1e9), batch_of([(["a", "b"], 1)]))  # for evaluation it stands still


def test_views_without_a_key_are_refused(network: SDAANet) -> None:
    memory = FeatureMemory(network, budget=1e9)
    for names in (["", "b"], ["a", ""]):
        batch = batch_of([(names, 1)])
        with pytest.raises(ConfigError, match=r"^features=remember needs pictures that recur: set augment=none[^\n]*$"):
            memory.features(batch, foreground(batch))


class Forgotten(AssertionError):
    """The backbone was asked."""


def recall(network: SDAANet, folder: Path, preparation: str = "") -> tuple[Features, Features]:
    """What a folder remembers, without computing anything."""

    def refuse(*_: Any) -> torch.Tensor:
        raise Forgotten

    network.mid = refuse  # type: ignore[method-assign]
    try:
        batch = batch_of([(["a", "b"], 1)])
        return FeatureMemory(network, 0, folder, preparation).features(batch, foreground(batch))
    finally:
        del network.mid  # type: ignore[method-assign]


def test_a_folder_serves_other_runs(tmp_path: Path) -> None:
    network = small()
    memory = FeatureMemory(network, 0, tmp_path)
    batch = batch_of([(["a", "b"], 1), (["b", "b"], 2)])
    check(memory, batch)
    check(memory, batch)
    assert memory.bytes == 0  # nothing in memory
    assert not list(tmp_path.rglob(".*"))  # no half files
    expected = network.extract(*(x[:1] for x in (batch.query, batch.support, foreground(batch))))
    for mine, wanted in zip(recall(small(), tmp_path), expected, strict=True):
        torch.testing.assert_close(mine.mid, wanted.mid, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.high, wanted.high, rtol=1e-12, atol=1e-12)
    assert all(not array.dtype.hasobject for array in map(np.load, tmp_path.rglob("*.npy")))


def test_a_folder_keeps_apart_what_differs(tmp_path: Path) -> None:
    """Other weights, pixels, precision, strides or stage of the prior: other features of the same picture."""
    base: dict[str, Any] = {"backbone": "resnet50", "prior_stage": 3}
    network = small(**base)
    batch = batch_of([(["a", "b"], 1)])
    FeatureMemory(network, 0, tmp_path).features(batch, foreground(batch))
    recall(network, tmp_path)
    with pytest.raises(Forgotten):
        recall(network, tmp_path, preparation="another size")
    other = small(**base | {"prior_stage": 2})
    other.backbone.load_state_dict(network.backbone.state_dict())
    with pytest.raises(Forgotten):
        recall(other, tmp_path)
    other = small(**base | {"stride_on": "1x1"})
    other.backbone.load_state_dict(network.backbone.state_dict())
    with pytest.raises(Forgotten):
        recall(other, tmp_path)
    with torch.no_grad():
        network.backbone.get_parameter("layer1.0.conv1.weight")[0, 0] += 1e-3
    with pytest.raises(Forgotten):
        recall(network, tmp_path)


def test_a_folder_holds_bfloat16_as_it_is(tmp_path: Path) -> None:
    network = small(dtype=torch.float32)
    batch = episode([["a", "b"], ["c", "a"]], [1, 2])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        kept = FeatureMemory(network, 1e9).features(batch, foreground(batch))
        FeatureMemory(network, 0, tmp_path).features(batch, foreground(batch))
        read = FeatureMemory(network, 0, tmp_path).features(batch, foreground(batch))
    for mine, wanted in zip(read, kept, strict=True):
        assert mine.mid.dtype == torch.bfloat16
        torch.testing.assert_close(mine.mid, wanted.mid, rtol=0, atol=0)
        torch.testing.assert_close(mine.high, wanted.high, rtol=0, atol=0)
