"""Batches from worker processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from numpy.typing import NDArray
from torch.multiprocessing.reductions import reduce_storage
from torch.utils.data import DataLoader, Dataset

from sd_aanet.data.reading import end_in_silence, lines_of_workers, possible, start_method

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Loader(DataLoader[T]):
    """A DataLoader whose workers' user errors keep their one line.

    Args:
        data: what is loaded.
        workers: processes; 0 loads in the process itself, as is done where none can be started.
        batching: DataLoader's arguments that say how items become batches.
    """

    def __init__(self, data: Dataset[T], workers: int, **batching: Any) -> None:
        workers = possible(workers)
        super().__init__(
            data,
            num_workers=workers,
            multiprocessing_context=start_method(workers),
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            **batching,
        )

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        with lines_of_workers():
            yield from super().__iter__()


def _start_worker(worker: int) -> None:
    """No say in signals, one OpenCV thread a worker, and what Lightning's function does, which this one displaces."""
    end_in_silence(worker)
    cv2.setNumThreads(0)
    pl_worker_init_function(worker)
    ForkingPickler.register(torch.UntypedStorage, _send)


def _send(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    """A tensor's memory on its way out of a worker: shared, as torch has it, and where that is full, as a copy.

    Torch itself would lose the batch then, with a traceback of the thread that sends, and its reader wait for ever.
    """
    try:
        shared: tuple[Any, ...] = reduce_storage(storage)
        return shared
    except (RuntimeError, OSError):  # no room in /dev/shm; no more open files
        return _receive, (torch.empty(0, dtype=torch.uint8).set_(storage).numpy(),)


def _receive(content: NDArray[np.uint8]) -> torch.UntypedStorage:
    """The memory of a tensor that came as a copy."""
    _say_that_it_is_slow()
    return torch.from_numpy(content).untyped_storage()


@cache
def _say_that_it_is_slow() -> None:
    logger.warning(
        "shared memory (/dev/shm) is too small for the batches that are loaded ahead, so they are copied, which takes "
        "longer: give the container more (docker run --shm-size=2g), or set fewer workers"
    )
