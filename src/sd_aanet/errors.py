"""Errors of a user's or the machine's making: one line each: the thing, its value, what was expected, the fix."""

from __future__ import annotations

import errno
from collections.abc import Sequence

UNREADABLE = (OSError, ValueError, RecursionError)
"""What comes of reading JSON: no such file, no text, no JSON, or lists in lists without end."""


class SDAANetError(Exception):
    """Base of all errors that the command line prints as one line, leaving with exit code 2.

    Args:
        message: the line; names in it, of files and classes, may hold line breaks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class ConfigError(SDAANetError):
    """A setting that cannot work: an unknown name, a value out of range, a combination that contradicts itself."""


class DataError(SDAANetError):
    """Images, masks, lists or folders that are missing, unreadable or do not fit together.

    Args:
        message: the line.
        defect: which kind of defect it is, for `sd-aanet check`, see `data.check.defects.ERRORS`.
    """

    def __init__(self, message: str, defect: str = "entry") -> None:
        super().__init__(message)
        self.defect = defect


class CheckpointError(SDAANetError):
    """A checkpoint or weight file that is missing, truncated, of another kind, or does not fit the network."""


class PredictionError(SDAANetError):
    """Predictions that are no numbers, whose answer would be that of background everywhere."""


class TrainingError(SDAANetError):
    """A training that cannot go on: its loss is no longer a number.

    Args:
        message: the line.
        places: (epoch, index) of the episodes of the batch; none where it was no batch.
        step: of that batch.
    """

    def __init__(self, message: str, places: Sequence[tuple[int, int]] = (), step: int = 0) -> None:
        super().__init__(message)
        self.places = tuple(places)
        self.step = step


_FULL = "make room, or choose another place (out=, cache_dir=)"
_CLOSED = "give this user the right to, or choose another place (out=, cache_dir=)"
_FIXES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EROFS: _CLOSED, errno.EACCES: _CLOSED, errno.EPERM: _CLOSED}
_FIXES |= {errno.ENAMETOOLONG: "check the path", errno.EFBIG: f"raise the limit (ulimit -f), or {_FULL}"}
_FIXES |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (ulimit -n), or set workers=0")


def of_machine(error: Exception) -> SDAANetError | None:
    """What the machine refused, as a line of ours; None where the error is another one."""
    line = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _FIXES:
        name = str(error.filename or "")
        place = f"'{name[:80]}...'" if len(name) > 255 else f"'{name}'" if name else "a file"
        return SDAANetError(f"{place}: {(error.strerror or line).lower()}; {_FIXES[error.errno]}")
    if isinstance(error, RuntimeError) and line.startswith("DataLoader worker"):  # torch's only way to say so
        return SDAANetError(f"{line.partition('. ')[0]}, perhaps since memory ran out: set workers=0, or fewer of them")
    return None
