"""The order in which an evaluation looks at pictures: each once or nearly so, however many episodes it takes part in.

An evaluation knows all its episodes beforehand, and a picture's side of the network is the same in each of them. So
the episodes are grouped: first the supports of a group are encoded, then its queries, each query compared with all
that it meets. What must be held at one time is the supports of one group, and a group ends where a budget does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sd_aanet.data.episodes import EpisodeSpec


@dataclass(frozen=True)
class Job:
    """An episode to score.

    Attributes:
        seed: of its list.
        index: its place in the list.
        spec: which images make it.
    """

    seed: int
    index: int
    spec: EpisodeSpec


@dataclass(frozen=True)
class Step:
    """Pictures to look at together.

    Attributes:
        images: their places in the image source.
        classes: for each, the classes whose mask is wanted.
        jobs: the episodes in which one of them is the query; none where they are supports.
        fresh: a group begins here, and no support that was encoded before is needed again.
    """

    images: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    jobs: tuple[Job, ...]
    fresh: bool

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(image, class) of every mask that is wanted, images outermost."""
        return [(image, c) for image, classes in zip(self.images, self.classes, strict=True) for c in classes]


def plan(jobs: Iterable[Job], supports: int, pictures: int) -> list[Step]:
    """The steps of an evaluation.

    Args:
        jobs: all episodes, in any order.
        supports: how many labelled pictures may be held at a time; one episode's are always.
        pictures: how many go through the backbone together.
    """
    steps: list[Step] = []
    for group in _groups(sorted(jobs, key=lambda job: (job.spec.class_id, job.spec.query)), supports):
        labelled = _by_image((i, job.spec.class_id) for job in group for i in job.spec.supports)
        queries = _by_image((job.spec.query, job.spec.class_id) for job in group)
        for images in _batches(list(labelled), pictures):
            classes = tuple(labelled[i] for i in images)
            steps.append(Step(images, classes, (), fresh=images[0] == next(iter(labelled))))
        for images in _batches(list(queries), pictures):
            classes = tuple(queries[i] for i in images)
            steps.append(Step(images, classes, tuple(job for job in group if job.spec.query in images), fresh=False))
    return steps


def _groups(jobs: Sequence[Job], supports: int) -> Iterable[list[Job]]:
    """Runs of jobs that need at most so many labelled pictures."""
    group: list[Job] = []
    held: set[tuple[int, int]] = set()
    for job in jobs:
        needed = {(i, job.spec.class_id) for i in job.spec.supports}
        if group and len(held | needed) > supports:
            yield group
            group, held = [], set()
        group.append(job)
        held |= needed
    if group:
        yield group


def _by_image(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """{image: its classes}, images in order."""
    classes: dict[int, set[int]] = {}
    for image, class_id in pairs:
        classes.setdefault(image, set()).add(class_id)
    return {image: tuple(sorted(classes[image])) for image in sorted(classes)}


def _batches(images: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    return (tuple(images[start : start + size]) for start in range(0, len(images), size))
