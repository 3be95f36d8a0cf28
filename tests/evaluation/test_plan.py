"""The plan of an evaluation: every episode once, its supports before it, never more of them than the budget holds."""

from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.data.episodes import EpisodeSpec
from sd_aanet.evaluation.plan import ListedEpisode, dealt, plan


@st.composite
def listed(draw: st.DrawFn) -> list[ListedEpisode]:
    shot, way = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    many = []
    for index in range(draw(st.integers(1, 12))):
        query = draw(st.integers(0, 5))
        others = [i for i in range(6) if i != query]
        classes = tuple(draw(st.permutations([1, 2, 3]))[:way])
        supports = tuple(tuple(draw(st.permutations(others))[:shot]) for _ in classes)
        many.append(ListedEpisode(draw(st.integers(0, 1)), index, EpisodeSpec(classes, query, supports)))
    return many


@given(listed(), st.integers(1, 12), st.integers(1, 4))
def test_every_episode_once_with_its_supports_at_hand(
    episodes: list[ListedEpisode], supports: int, pictures: int
) -> None:
    held: set[tuple[int, int]] = set()
    done: list[ListedEpisode] = []
    for step in plan(episodes, supports, pictures):
        assert 1 <= len(step.images) <= pictures
        assert len(step.pairs) == len(set(step.pairs))
        if step.fresh:
            held.clear()
        if not step.episodes:
            held |= set(step.pairs)
            assert len(held) <= max(supports, len(episodes[0].spec.examples))
            continue
        assert {(one.spec.query, c) for one in step.episodes for c in one.spec.classes} == set(step.pairs)
        for one in step.episodes:
            assert set(one.spec.examples) <= held
        done += step.episodes
    assert sorted(done, key=episodes.index) == episodes


@given(listed())
def test_with_room_for_all_each_picture_is_looked_at_once_as_support_and_once_as_query(
    episodes: list[ListedEpisode],
) -> None:
    steps = plan(episodes, supports=1000, pictures=2)
    for as_query in (False, True):
        images = [image for step in steps if bool(step.episodes) == as_query for image in step.images]
        assert len(images) == len(set(images))
    assert [step.fresh for step in steps].count(True) == 1


@given(listed(), st.integers(1, 5))
def test_processes_are_dealt_each_episode_once_and_few_classes_twice(episodes: list[ListedEpisode], world: int) -> None:
    shares = [dealt(episodes, rank, world) for rank in range(world)]
    assert sorted((one for share in shares for one in share), key=episodes.index) == episodes
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    of_classes = [{one.spec.classes for one in share} for share in shares]
    assert sum(map(len, of_classes)) <= len(set().union(*of_classes)) + world - 1


def test_no_episode_is_no_step() -> None:
    assert plan([], 1, 1) == []
