"""What this process may use of the machine; imports nothing that takes time."""

from __future__ import annotations

import os

MOST_WORKERS = 8
"""By themselves; more wait for one another's disk and memory before a batch waits for them."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_workers(workers: int | str, processes: int = 1) -> int:
    """`auto`: of the cores of each of so many processes side by side all but one, at most 8; a number stays."""
    return workers if isinstance(workers, int) else min(max(cores() // processes - 1, 0), MOST_WORKERS)
