"""Doing something with every image of a data set: in several processes, in order, with a progress bar."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sd_aanet.errors import SDAANetError
from sd_aanet.machine import cores

logger = logging.getLogger(__name__)
T = TypeVar("T")
FEW = 200
"""Fewer images than this are read in the process itself, without a bar that would only flash by."""
_WORKERS = 8
_BATCH = 32


class _Calls(Dataset[T]):
    def __init__(self, call: Callable[[int], T], count: int) -> None:
        self.call, self.count = call, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> T:
        return self.call(i)


def read_all(call: Callable[[int], T], count: int, title: str) -> Iterator[T]:
    """`call(0)`, ..., `call(count - 1)`, in this order.

    Args:
        call: reads one image; what it returns has to be picklable.
        count: of the images.
        title: what the bar says.

    Raises:
        SDAANetError: what `call` raises.
    """
    if count < FEW:
        yield from map(call, range(count))
        return
    workers = possible(min(_WORKERS, cores()))
    calls = _Calls(call, count)
    loader = DataLoader(
        calls,
        _BATCH,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=start_method(workers),
        worker_init_fn=end_in_silence,
    )
    with lines_of_workers(), tqdm(total=count, desc=title, unit="image") as bar:
        for batch in loader:
            yield from batch
            bar.update(len(batch))


def end_in_silence(worker: int) -> None:
    """In a worker: leave to the process that started it what a signal to all of them means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def possible(workers: int) -> int:
    """So many, or none where the system has no locks for other processes, /dev/shm being full or missing."""
    try:
        multiprocessing.get_context(start_method(workers)).Lock()
    except OSError as error:
        logger.warning("no process beside this one can load data (%s): it does so itself, as with workers=0", error)
        return 0
    return workers


def start_method(workers: int) -> str | None:
    """How a DataLoader's workers start: as usual on this platform, but named: in joblib's processes another is."""
    return None if workers == 0 else "fork" if sys.platform == "linux" else "spawn"


@contextlib.contextmanager
def lines_of_workers() -> Iterator[None]:
    """A user's mistake in a worker of a DataLoader keeps its one line; torch puts the traceback into the message."""
    try:
        yield
    except SDAANetError as error:
        line = str(error).strip().splitlines()[-1]
        raise type(error)(line.partition(f"{type(error).__name__}: ")[2] or line) from error
