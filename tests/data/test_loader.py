"""Batches come from worker processes whatever the machine gives for sharing them."""

import logging
import multiprocessing.synchronize
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sd_aanet.data import loader
from sd_aanet.data.loader import Loader
from sd_aanet.data.reading import read_all

Item = dict[str, Tensor]


class Numbers(Dataset[Item]):
    """Tensors of several types, views and an empty one among them."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Item:
        whole = torch.arange(1000.0) + i
        return {
            "a": whole,
            "view": whole[3:7],
            "b": torch.full((2, 3), i),
            "mask": torch.tensor([True]),
            "none": torch.zeros(0),
        }


@pytest.mark.parametrize("error", [RuntimeError("No space left on device (28)"), OSError(24, "Too many open files")])
def test_without_shared_memory_batches_are_copied_and_that_is_said_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(storage: torch.UntypedStorage) -> None:
        raise error

    monkeypatch.setattr(loader, "reduce_storage", full)
    loader._say_that_it_is_slow.cache_clear()
    expected = [Numbers()[i] for i in range(6)]
    for workers in (0, 2):
        for _ in range(2):
            with caplog.at_level(logging.WARNING, "sd_aanet"):
                batches = list(Loader(Numbers(), workers, batch_size=None))
            for batch, item in zip(batches, expected, strict=True):
                assert batch.keys() == item.keys()
                assert all(torch.equal(batch[name], value) for name, value in item.items())
                batch["a"] += 1  # a tensor like any other
                assert batch["view"][0] == item["view"][0] + 1, "views still share what they shared"
        assert len(caplog.records) == (workers > 0)
    assert "shm-size" in caplog.text


def test_where_no_process_can_be_started_the_data_is_loaded_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    assert len(list(Loader(Numbers(), 2, batch_size=None))) == 6
    assert "Read-only file system" in caplog.text
    assert [*read_all(int, 300, "numbers")] == [*range(300)]


TRAIN = """
import sys
from sd_aanet.data.datamodule import EpisodeDataModule
data = EpisodeDataModule(
    {"_target_": "sd_aanet.data.sources.shapes.Shapes", "size": 97, "images": 200},
    shot=5, size=257, batch_size=8, workers=2, episodes=24, min_object_pixels=10,
)
data.setup("fit")
print(sum(float(batch.query.sum()) for batch in data.train_dataloader()))
"""


def in_a_container(megabytes: int) -> subprocess.CompletedProcess[str]:
    """The loading of batches of 60 MB with so much shared memory, as a container has it."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "-m", "sh", "-c", mount, sys.executable, TRAIN]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a folder on Linux alone")
def test_64_megabytes_of_shared_memory_hang_nothing() -> None:
    small = in_a_container(64)
    if "unshare" in small.stderr or "mount" in small.stderr:
        pytest.skip(f"no mount of its own can be made here: {small.stderr.splitlines()[0]}")
    assert small.returncode == 0, small.stderr
    assert small.stderr.count("shm-size") == 1
    assert small.stdout == in_a_container(4096).stdout
