"""As many workers as the machine has cores to spare."""

import os

import pytest

from sd_aanet.machine import resolve_workers


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 0), (2, 1, 1), (64, 1, 8), (16, 4, 3), (2, 4, 0)])
def test_workers_by_themselves(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert resolve_workers("auto", processes) == expected
    assert resolve_workers(5, processes) == 5
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert resolve_workers("auto", processes) == expected
