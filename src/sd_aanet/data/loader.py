"""Batches from worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset

from sd_aanet.data.reading import end_in_silence, lines_of_workers, start_method

T = TypeVar("T")


class Loader(DataLoader[T]):
    """A DataLoader whose workers' user errors keep their one line.

    Args:
        data: what is loaded.
        workers: processes; 0 loads in the process itself.
        batching: DataLoader's arguments that say how items become batches.
    """

    def __init__(self, data: Dataset[T], workers: int, **batching: Any) -> None:
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
