"""mIoU and FB-IoU against NumPy, whatever the batches and processes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd_aanet.metrics import FewShotIoU, class_iou, confusion, episode_counts

Array = NDArray[np.int64]
CLASSES = 6


def draw(seed: int, episodes: int, ways: int = 1) -> tuple[Array, Array, Array]:
    """Predictions, masks with 255, and class ids that leave some classes out: (B, N), distinct in each episode."""
    rng = np.random.default_rng(seed)
    shape = (episodes, 5, 7)
    classes = [rng.permutation([1, 3, 4, 6][: 3 + (ways > 3)])[:ways] for _ in range(episodes)]
    return rng.integers(0, ways + 1, shape), rng.choice([*range(ways + 1), 255], shape), np.array(classes)


def by_hand(prediction: Array, mask: Array, class_id: Array) -> dict[str, Any]:
    """Each class of each episode is one foreground against all else; the background is that of the whole episode."""
    foreground: dict[int, list[int]] = {}
    background = [0, 0]
    for p, m, classes in zip(prediction, mask, class_id, strict=True):
        p, m = p[m != 255], m[m != 255]
        for n, c in enumerate(classes, start=1):
            sums = foreground.setdefault(int(c), [0, 0])
            sums[0] += int(((p == n) & (m == n)).sum())
            sums[1] += int(((p == n) | (m == n)).sum())
            background[0] += int(((p == 0) & (m == 0)).sum())
            background[1] += int(((p == 0) | (m == 0)).sum())
    iou = {c: i / max(1, u) for c, (i, u) in foreground.items()}
    both = [sum(i for i, _ in foreground.values()), sum(u for _, u in foreground.values())]
    fg, bg = both[0] / max(1, both[1]), background[0] / max(1, background[1])
    return {"iou": iou, "miou": np.mean(list(iou.values())), "fb_iou": (fg + bg) / 2,
            "foreground_iou": fg, "background_iou": bg}  # fmt: skip


def tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def check(metric: FewShotIoU, expected: dict[str, Any]) -> None:
    values = metric.compute()
    assert values.keys() == expected.keys() - {"iou"}
    for name, value in values.items():
        assert value.item() == pytest.approx(expected[name], abs=1e-12), name


def check_classes(metric: FewShotIoU, expected: dict[str, Any]) -> None:
    for c, iou in enumerate(class_iou(metric.counts, metric.episodes).tolist()):
        if c in expected["iou"]:
            assert iou == pytest.approx(expected["iou"][c], abs=1e-12)
        else:
            assert np.isnan(iou)  # not 0: the class had no episode


@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3))
def test_the_scores_are_numpys_however_the_episodes_are_batched(seed: int, batches: list[int], ways: int) -> None:
    arrays = draw(seed, sum(batches), ways)
    metric, start = FewShotIoU(CLASSES), 0
    for size in batches:
        metric.update(*tensors(*(array[start : start + size] for array in arrays)))
        start += size
    check(metric, by_hand(*arrays))
    check_classes(metric, by_hand(*arrays))
    assert metric.episodes.sum() == sum(batches) * ways


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_counts_of_each_class_of_each_episode(seed: int, episodes: int, ways: int) -> None:
    prediction, mask, _ = draw(seed, episodes, ways)
    counts = episode_counts(*tensors(prediction, mask), ways)
    assert counts.dtype == torch.int64
    assert counts.shape == (episodes * ways, 5)
    rows = iter(counts.tolist())
    for p, m in zip(prediction, mask, strict=True):
        pairs = [(int(a), int(b)) for a, b in zip(p.flat, m.flat, strict=True) if b != 255]
        for n in range(1, ways + 1):
            assert next(rows) == [
                pairs.count((n, n)),
                sum(n in pair for pair in pairs),
                pairs.count((0, 0)),
                sum(0 in pair for pair in pairs),
                int((m == n).sum()),
            ]


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_what_was_taken_for_what(seed: int, episodes: int, ways: int) -> None:
    prediction, mask, class_id = draw(seed, episodes, ways)
    expected = np.zeros((CLASSES + 1, CLASSES + 1), int)
    for p, m, classes in zip(prediction, mask, class_id, strict=True):
        ids = [0, *classes]
        for a, b in zip(p.flat, m.flat, strict=True):
            if b != 255:
                expected[ids[b], ids[a]] += 1
    ours = confusion(*tensors(prediction, mask, class_id), CLASSES)
    assert ours.dtype == torch.int64
    np.testing.assert_array_equal(ours.numpy(), expected)
    assert ours.sum() == (mask != 255).sum()


def test_a_class_is_one_sum_not_a_mean_of_episodes() -> None:
    metric = FewShotIoU(2)
    prediction = torch.tensor([[[1, 1, 1, 1]], [[1, 0, 0, 0]]])
    mask = torch.tensor([[[1, 1, 1, 1]], [[0, 1, 0, 255]]])
    metric.update(prediction, mask, torch.tensor([[2], [2]]))
    assert class_iou(metric.counts, metric.episodes)[2] == 4 / 6  # not (1 + 0) / 2
    assert metric.compute()["miou"] == 4 / 6
    assert metric.compute()["background_iou"] == 1 / 3


def test_without_an_episode_nothing_is_known() -> None:
    metric = FewShotIoU(CLASSES)
    assert metric.compute()["miou"].isnan()
    metric.update(torch.ones(1, 2, 2).long(), torch.ones(1, 2, 2).long(), torch.tensor([[5]]))
    assert metric.compute()["miou"] == 1
    metric.reset()
    assert class_iou(metric.counts, metric.episodes).isnan().all()


def test_an_episode_that_is_ignored_throughout_counts_nothing() -> None:
    metric = FewShotIoU(CLASSES)
    metric.update(torch.ones(1, 2, 2).long(), torch.full((1, 2, 2), 255), torch.tensor([[1]]))
    assert metric.counts.eq(0).all()
    assert metric.episodes[1] == 1


def _rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    metric = FewShotIoU(CLASSES)
    arrays = draw(7, 9)
    for index in range(rank, 9, 2):  # unequal shares: five and four
        metric.update(*tensors(*(array[index : index + 1] for array in arrays)))
    check(metric, by_hand(*arrays))
    with metric.sync_context():
        check_classes(metric, by_hand(*arrays))
    (Path(folder) / f"rank{rank}").write_text(str(metric.compute()["miou"].item()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two fresh processes import torch
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    values = {(tmp_path / f"rank{rank}").read_text() for rank in range(2)}
    assert values == {str(float(by_hand(*draw(7, 9))["miou"]))}
