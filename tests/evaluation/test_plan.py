"""The plan of an evaluation: every episode once, its supports before it, never more of them than the budget holds."""

from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.data.episodes import EpisodeSpec
from sd_aanet.evaluation.plan import Job, plan


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    shot = draw(st.integers(1, 3))
    many = []
    for index in range(draw(st.integers(1, 12))):
        query, *supports = draw(st.permutations(range(6)))[: shot + 1]
        spec = EpisodeSpec(draw(st.integers(1, 2)), query, tuple(supports))
        many.append(Job(draw(st.integers(0, 1)), index, spec))
    return many


@given(jobs(), st.integers(1, 12), st.integers(1, 4))
def test_every_episode_once_with_its_supports_at_hand(jobs: list[Job], supports: int, pictures: int) -> None:
    held: set[tuple[int, int]] = set()
    done: list[Job] = []
    for step in plan(jobs, supports, pictures):
        assert 1 <= len(step.images) <= pictures
        assert len(step.pairs) == len(set(step.pairs))
        if step.fresh:
            held.clear()
        if not step.jobs:
            held |= set(step.pairs)
            assert len(held) <= max(supports, len(jobs[0].spec.supports))
            continue
        assert {(job.spec.query, job.spec.class_id) for job in step.jobs} == set(step.pairs)
        for job in step.jobs:
            assert {(i, job.spec.class_id) for i in job.spec.supports} <= held
        done += step.jobs
    assert sorted(done, key=jobs.index) == jobs


@given(jobs())
def test_with_room_for_all_each_picture_is_looked_at_once_as_support_and_once_as_query(jobs: list[Job]) -> None:
    steps = plan(jobs, supports=1000, pictures=2)
    for as_query in (False, True):
        images = [image for step in steps if bool(step.jobs) == as_query for image in step.images]
        assert len(images) == len(set(images))
    assert [step.fresh for step in steps].count(True) == 1


def test_no_episode_is_no_step() -> None:
    assert plan([], 1, 1) == []
