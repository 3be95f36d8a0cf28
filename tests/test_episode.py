"""The types that everything passes."""

import dataclasses
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from networks import episode
from sd_aanet.episode import Batch, Episode, Prediction, Rows, joined_masks
from sd_aanet.errors import CheckpointError, ConfigError, DataError, SDAANetError, TrainingError


def check(ours: Episode, expected: Episode) -> None:
    for field in dataclasses.fields(Episode):
        mine, wanted = getattr(ours, field.name), getattr(expected, field.name)
        if isinstance(mine, Tensor):
            assert torch.equal(mine, wanted), field.name
        else:
            assert mine == wanted, field.name


# A batch of rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [[1, 2, 3], [(1, 4), (2, 1), (3, 2)]])
def test_rows_are_joined_in_order(classes: list[int | tuple[int, ...]]) -> None:
    ways = 1 if classes == [1, 2, 3] else 2
    names = [row * ways for row in (["b", "c"], ["a", "b"], ["d", "a"])]
    names = [[query, *row] for query, row in zip("adc", names, strict=True)]
    whole = episode(names, classes)
    parts = [episode([row], [c]) for row, c in zip(names, classes, strict=True)]
    joined = Episode.cat([parts[0], Episode.cat(parts[1:])])
    assert joined.index.tolist() == [0, 0, 0]
    check(dataclasses.replace(joined, index=whole.index), whole)
    assert joined.query_key == ("a", "d", "c")
    assert joined.support_key == whole.support_key
    assert [[key[0] for key in row[:2]] for row in joined.support_key] == [["b", "c"], ["a", "b"], ["d", "a"]]
    assert (len(joined), joined.ways, joined.shots) == (3, ways, 2)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_some_of_the_rows(chosen: list[int]) -> None:
    whole = episode([["a", "b"], ["c", "a"], ["b", "d"]], [1, 2, 3], size=17)
    check(whole.select(chosen), Episode.cat([whole.unbind()[i] for i in chosen]))


def test_neighbours_and_repeats_are_views() -> None:
    whole = episode([["a", "b"], ["c", "a"], ["b", "d"]], [1, 2, 3], size=17)
    for chosen in ([0, 1, 2], [1, 2], [1, 1, 1, 1]):
        assert whole.select(chosen).query.untyped_storage().data_ptr() == whole.query.untyped_storage().data_ptr()
    assert whole.select(range(3)) is whole


@dataclass(frozen=True)
class Inner(Batch):
    one: Tensor


@dataclass(frozen=True)
class Both(Rows):
    maps: Tensor | None
    parts: tuple[Inner, ...] | tuple[Tensor, ...] | None = None


def test_a_row_has_memory_of_its_own() -> None:
    """And keeps no batch alive."""
    whole = Both(torch.randn(4, 3), tuple(torch.randn(4, 5)))
    for i, row in enumerate(whole.unbind()):
        assert row.maps is not None
        assert row.parts is not None
        assert torch.equal(row.maps, whole.maps[i : i + 1])  # type: ignore[index]
        assert torch.equal(row.parts[0], whole.parts[i])  # type: ignore[index, arg-type]
        for tensor in (row.maps, row.parts[0]):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes  # type: ignore[union-attr]
        assert row.nbytes == (3 + 5) * 4
    assert whole.nbytes == 4 * (3 + 5) * 4


def test_what_is_none_is_none_for_all_rows() -> None:
    parts = Both(None, tuple(Inner(torch.full((2,), float(i))) for i in range(3)))
    assert len(parts) == 3
    chosen = Both.cat([parts.select([2, 0]), parts.unbind()[1]])
    assert chosen.maps is None
    assert [part.one[0].item() for part in chosen.parts] == [2, 0, 1]  # type: ignore[union-attr]
    assert parts.nbytes == 3 * 2 * 4


def test_to_moves_every_tensor() -> None:
    moved = episode([["a", "b"]], [1]).to("meta")
    for field in dataclasses.fields(Episode):
        value = getattr(moved, field.name)
        assert not isinstance(value, torch.Tensor) or value.device.type == "meta"
    assert moved.query_key == ("a",)
    nested = Both(None, (Inner(torch.ones(2)),)).to("meta")
    assert nested.parts[0].one.device.type == "meta"  # type: ignore[index, union-attr]
    prediction = Prediction(torch.ones(1), {"prior": torch.ones(1)}).to("meta")
    assert prediction.maps["prior"].device.type == "meta"
    assert prediction.nbytes == 8


def test_pin_memory_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called by torch's DataLoader, which knows no dataclasses but this method's name."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    one = episode([["a", "b"]], [4])
    pinned = one.pin_memory()
    assert pinned.class_id.tolist() == [[5]]
    assert torch.equal(pinned.query, one.query + 1)
    assert pinned.support_key == one.support_key


def test_an_episode_passes_processes_and_loaders() -> None:
    one = episode([["a", "b"]], [1])
    assert torch.equal(pickle.loads(pickle.dumps(one)).support, one.support)
    loader = DataLoader([one, one], batch_size=2, collate_fn=Episode.cat)  # type: ignore[arg-type]
    assert next(iter(loader)).query.shape == (2, 3, 33, 33)


def test_an_episode_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        episode([["a", "b"]], [1]).index = torch.zeros(1)  # type: ignore[misc]


# Several classes -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(0, 1000))
def test_masks_of_several_classes_are_one(ways: int, seed: int) -> None:
    masks = np.random.default_rng(seed).choice([0, 0, 1, 255], (ways, 3, 5, 7), p=[0.3, 0.3, 0.35, 0.05])
    expected = np.zeros((3, 5, 7), int)
    for place in np.ndindex(3, 5, 7):
        values = [int(masks[n][place]) for n in range(ways)]
        expected[place] = 255 if 255 in values else values.index(1) + 1 if 1 in values else 0
    for dtype in (torch.int64, torch.uint8):
        ours = joined_masks([torch.from_numpy(mask).to(dtype) for mask in masks])
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours.numpy(), expected)


def test_several_classes_as_episodes_of_one() -> None:
    names = [["q", "a", "b", "c", "d"], ["r", "c", "a", "b", "e"]]
    whole = episode(names, [(2, 5), (4, 1)], size=17)
    ones = whole.one_way()
    assert (len(ones), ones.ways, ones.shots) == (4, 1, 2)
    for row in range(4):
        b, n = divmod(row, 2)
        assert torch.equal(ones.query[row], whole.query[b])
        assert torch.equal(ones.support[row, 0], whole.support[b, n])
        assert torch.equal(ones.support_mask[row, 0], whole.support_mask[b, n])
        assert ones.class_id[row].tolist() == [whole.class_id[b, n].item()]
        assert ones.index[row] == whole.index[b]
        mask = whole.query_mask[b].numpy()
        expected = np.where(mask == 255, 255, np.where(mask == n + 1, 1, 0))
        np.testing.assert_array_equal(ones.query_mask[row].numpy(), expected)
    assert ones.query_mask.dtype == torch.int64
    assert ones.query_key == ("q", "q", "r", "r")
    assert ["".join(key[0] for key in row) for row in ones.support_key] == ["ab", "cd", "ca", "be"]
    assert ones.one_way() is ones


def test_every_mistake_is_of_one_family() -> None:
    for error in (ConfigError, DataError, CheckpointError, TrainingError):
        assert issubclass(error, SDAANetError)
