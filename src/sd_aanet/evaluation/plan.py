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
class ListedEpisode:
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
        episodes: those in which one of them is the query; none where they are supports.
        fresh: a group begins here, and no support that was encoded before is needed again.
    """

    images: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    episodes: tuple[ListedEpisode, ...]
    fresh: bool

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(image, class) of every mask that is wanted, images outermost."""
        return [(image, c) for image, classes in zip(self.images, self.classes, strict=True) for c in classes]


def plan(episodes: Iterable[ListedEpisode], supports: int, pictures: int) -> list[Step]:
    """The steps of an evaluation.

    Args:
        episodes: all of them, in any order.
        supports: how many labelled pictures may be held at a time; one episode's always may.
        pictures: how many go through the backbone together.
    """
    steps: list[Step] = []
    for group in _groups(sorted(episodes, key=_by_class), supports):
        labelled = _by_image(pair for one in group for pair in one.spec.examples)
        queries = _by_image((one.spec.query, c) for one in group for c in one.spec.classes)
        for images in _batches(list(labelled), pictures):
            classes = tuple(labelled[i] for i in images)
            steps.append(Step(images, classes, (), fresh=images[0] == next(iter(labelled))))
        for images in _batches(list(queries), pictures):
            classes = tuple(queries[i] for i in images)
            steps.append(Step(images, classes, tuple(one for one in group if one.spec.query in images), fresh=False))
    return steps


def dealt(episodes: Iterable[ListedEpisode], rank: int, world: int) -> list[ListedEpisode]:
    """One process's share: those of a class stay together but where shares of one size divide them.

    Args:
        episodes: all of them, in any order.
        rank: of the process, 0 to `world` - 1.
        world: the number of processes.
    """
    ordered = sorted(episodes, key=_by_class)
    return ordered[len(ordered) * rank // world : len(ordered) * (rank + 1) // world]


def _by_class(one: ListedEpisode) -> tuple[tuple[int, ...], int]:
    return one.spec.classes, one.spec.query


def _groups(episodes: Sequence[ListedEpisode], supports: int) -> Iterable[list[ListedEpisode]]:
    """Runs of episodes that need at most so many labelled pictures."""
    group: list[ListedEpisode] = []
    held: set[tuple[int, int]] = set()
    for one in episodes:
        needed = set(one.spec.examples)
        if group and len(held | needed) > supports:
            yield group
            group, held = [], set()
        group.append(one)
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
