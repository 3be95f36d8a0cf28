"""Jobs side by side on one machine: how many, and for each a device or a share of the cores that no other one uses."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sd_aanet.machine import cores


def jobs_at_once() -> int:
    """As many as there are GPUs; without one, for every 4 cores one, at least 2 where there are 2 cores."""
    return len(visible_gpus()) or min(cores(), max(2, cores() // 4))


def visible_gpus() -> list[str]:
    """A name for each GPU that torch sees here, by which another process, to which others are visible, knows it too."""
    import torch

    indices = [str(i) for i in range(torch.cuda.device_count())]
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[: len(indices)] if len(named) >= len(indices) else indices


@contextmanager
def device_of_its_own(strategy: dict[str, Any], number: int, at_once: int) -> Iterator[dict[str, Any]]:
    """Hand out a GPU, where the strategy takes one and there is one, and a share of the cores.

    Args:
        strategy: conf/strategy/*.yaml. A list of devices stays as it is: the user handed them out.
        number: of the job, whose first choice is the device of that number, modulo theirs.
        at_once: how many jobs share the cores.

    Yields:
        The strategy with the device that is this job's until the block ends or the process dies.
    """
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // at_once)))
    gpus = visible_gpus() if strategy["accelerator"] != "cpu" and strategy["devices"] == 1 else []
    if not gpus:
        yield strategy
        return
    with free_device(gpus, number) as device:
        yield {**strategy, "devices": [device]}


@contextmanager
def free_device(names: Sequence[str], first: int, folder: Path | None = None, pause: float = 1.0) -> Iterator[int]:
    """Wait for a device that nobody holds, and hold it until the block ends or the process dies.

    Args:
        names: of the devices, the same in all processes.
        first: the index to begin with, modulo their number.
        folder: of the lock files; None for one that all sweeps of this user on this machine share.
        pause: seconds between two rounds of looking.

    Yields:
        The device's index in `names`.
    """
    folder = _shared_folder() if folder is None else folder
    locks = [FileLock(folder / f"{re.sub(r'[^a-zA-Z0-9-]', '_', name)}.lock") for name in names]
    order = [(first + i) % len(locks) for i in range(len(locks))]
    device = _take(locks, order)
    if device is None:
        print("waiting for a device: others use all of them", flush=True)
    while device is None:
        time.sleep(pause)
        device = _take(locks, order)
    try:
        yield device
    finally:
        locks[device].release()


def _take(locks: Sequence[FileLock], order: Sequence[int]) -> int | None:
    for index in order:
        try:
            locks[index].acquire(blocking=False)
        except Timeout:
            continue
        return index
    return None


def _shared_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folder = Path(tempfile.gettempdir()) / f"sd_aanet_devices_{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
