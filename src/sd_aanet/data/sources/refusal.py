"""Whether a wrong entry of a list or of annotations ends the work, or is told with all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sd_aanet.errors import DataError

_COLLECTED: ContextVar[list[DataError] | None] = ContextVar("collected", default=None)


def refuse(*lines: str, defect: str = "entry") -> None:
    """Raise a `DataError`, but within `collecting` note it: then the caller leaves out what is wrong, and goes on.

    Args:
        lines: one for each thing that is wrong, if any; the error is the first of them and says how many follow.
        defect: their kind.
    """
    collected = _COLLECTED.get()
    if collected is not None:
        collected += [DataError(line, defect) for line in lines]
    elif lines:
        raise DataError(lines[0] + more(len(lines) - 1), defect)


def more(count: int) -> str:
    """Behind a line on one of several: how many more there are."""
    return f" (and {count} more like this: sd-aanet check lists them)" if count else ""


@contextmanager
def collecting() -> Iterator[list[DataError]]:
    """What is refused in this block, instead of the first of it as an error.

    No argument of the sources, which are made from a user's settings: nobody is to train on what is left. Where that
    is too little to go on with, the first refusal is the error.
    """
    collected: list[DataError] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    except DataError:
        if collected:
            raise collected[0] from None
        raise
    finally:
        _COLLECTED.reset(token)
