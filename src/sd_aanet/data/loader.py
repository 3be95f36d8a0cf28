"""Batches of episodes from worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

from sd_aanet.data.episodes import EpisodeDataset, PlaceSampler
from sd_aanet.data.reading import lines_of_workers
from sd_aanet.episode import Episode


class EpisodeLoader(DataLoader[Episode]):
    """A DataLoader of episodes whose workers' user errors keep their one line.

    Args:
        data: makes the episodes.
        sampler: which ones, in which order.
        batch: episodes at once.
        drop_last: leave an incomplete last batch out.
        workers: processes; 0 loads in the process itself.
    """

    def __init__(
        self, data: EpisodeDataset, sampler: PlaceSampler, batch: int, *, drop_last: bool, workers: int
    ) -> None:
        super().__init__(
            data,
            batch_size=batch,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            collate_fn=Episode.collate,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Episode]:  # type: ignore[override]
        with lines_of_workers():
            yield from super().__iter__()


def _start_worker(worker: int) -> None:
    """One OpenCV thread a worker; and what Lightning's own function does, which this one displaces."""
    cv2.setNumThreads(0)
    pl_worker_init_function(worker)
