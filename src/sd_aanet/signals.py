"""Being asked to stop: SIGTERM, which job systems send before they kill, becomes an exception like Ctrl-C's."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The signal `number` asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


class _State:
    received: int | None = None
    patient = False


def set_patient(patient: bool) -> None:
    """Whether a first SIGTERM is only remembered: what runs looks for it itself, between two steps."""
    _State.patient = patient


def raise_at_once() -> None:
    """Take SIGTERM back from Lightning, whose processes on several devices wait for one another when it comes."""
    signal.signal(signal.SIGTERM, _stop)


def received() -> int:
    """The signal that stopped this process: where none was noticed, that of Ctrl-C."""
    return _State.received or signal.SIGINT


@contextmanager
def raising() -> Iterator[None]:
    """Raise `Stopped` for SIGTERM until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handler
        return
    _State.received, _State.patient = None, False
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def not_as_exits() -> Iterator[None]:
    """Raise `Stopped` where Lightning makes a SystemExit of a signal, or a signal is why something else failed."""
    others = multiprocessing.active_children()
    try:
        yield
    except (SystemExit, Exception) as error:
        exits = isinstance(error, SystemExit) and error.code in (None, 1)
        if not exits and _State.received is None:
            raise
        for process in multiprocessing.active_children():  # ddp_spawn's, which nobody else would end
            if process not in others:
                process.kill()
        raise Stopped(received()) from None


def _stop(number: int, frame: FrameType | None) -> None:
    first, _State.received = _State.received is None, number
    if not (first and _State.patient):
        raise Stopped(number)
