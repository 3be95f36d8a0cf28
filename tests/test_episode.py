"""The types that everything passes."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from networks import episode
from sd_aanet.episode import Episode, check_size
from sd_aanet.errors import CheckpointError, ConfigError, DataError, SDAANetError


def test_collate_joins_in_order() -> None:
    names = [["a", "b", "c"], ["d", "a", "b"], ["c", "d", "a"]]
    whole = episode(names, [1, 2, 3])
    parts = [episode([row], [c]) for row, c in zip(names, [1, 2, 3], strict=True)]
    joined = Episode.collate([parts[0], Episode.collate(parts[1:])])
    for field in dataclasses.fields(Episode):
        ours, expected = getattr(joined, field.name), getattr(whole, field.name)
        if field.name == "index":
            assert ours.tolist() == [0, 0, 0]
        elif isinstance(ours, torch.Tensor):
            assert torch.equal(ours, expected)
        else:
            assert ours == expected
    assert joined.query_key == ("a", "d", "c")
    assert joined.support_key == (("b", "c"), ("a", "b"), ("d", "a"))


def test_to_moves_every_tensor() -> None:
    moved = episode([["a", "b"]], [1]).to("meta")
    for field in dataclasses.fields(Episode):
        value = getattr(moved, field.name)
        assert not isinstance(value, torch.Tensor) or value.device.type == "meta"
    assert moved.query_key == ("a",)


def test_pin_memory_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called by torch's DataLoader, which knows no dataclasses but this method's name."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    one = episode([["a", "b"]], [4])
    pinned = one.pin_memory()
    assert pinned.class_id.tolist() == [5]
    assert torch.equal(pinned.query, one.query + 1)
    assert pinned.support_key == (("b",),)


def test_an_episode_passes_processes_and_loaders() -> None:
    one = episode([["a", "b"]], [1])
    assert torch.equal(pickle.loads(pickle.dumps(one)).support, one.support)
    loader = DataLoader([one, one], batch_size=2, collate_fn=Episode.collate)  # type: ignore[arg-type]
    assert next(iter(loader)).query.shape == (2, 3, 33, 33)


def test_an_episode_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        episode([["a", "b"]], [1]).index = torch.zeros(1)  # type: ignore[misc]


@given(st.integers(-10, 2000))
def test_a_good_size_is_8n_plus_1(size: int) -> None:
    good = [8 * n + 1 for n in range(2, 300)]
    if size in good:
        check_size(size)
        return
    with pytest.raises(ConfigError) as error:
        check_size(size)
    message = str(error.value)
    assert message.startswith(f"size={size}, expected 8n + 1: the nearest good size is ")
    named = int(message.rsplit(" ", 1)[1])
    assert named in good
    assert abs(named - size) == min(abs(g - size) for g in good)


def test_every_mistake_is_of_one_family() -> None:
    for error in (ConfigError, DataError, CheckpointError):
        assert issubclass(error, SDAANetError)
