"""Errors of a user's making: each message is one line that names the thing, its value, what was expected, the fix."""

from __future__ import annotations

from collections.abc import Sequence


class SDAANetError(Exception):
    """Base of all errors that the command line prints as one line, leaving with exit code 2."""


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
    """

    def __init__(self, message: str, places: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)
