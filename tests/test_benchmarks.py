"""The benchmarks compare like with like: the reference is the same network, and the rows are measured."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import marks, reference
from benchmarks.refiner import folded, part_of, with_norms
from benchmarks.rows import _waited, evaluation
from benchmarks.timing import HEAD, Row, of_pairs
from benchmarks.workload import Workload

from data.fake_voc import make_voc
from networks import CountingResNet, inputs, losses, made, predict, small
from sd_aanet.models.parts.refiner import Refiner


@pytest.mark.parametrize("shot", [1, 3])
def test_the_reference_segments_as_the_network_does(shot: int) -> None:
    network = small().eval()
    query, query_mask, support, support_mask = inputs(shot=shot)
    with torch.no_grad():
        ours = predict(network, query, support, support_mask).logits
        theirs = reference.segment(network, made(query, query_mask, support, support_mask))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_reference_trains_as_the_network_does() -> None:
    ours, theirs = small().train(), small().train()
    losses(ours, *inputs(shot=2))["total"].backward()
    reference.loss(theirs, made(*inputs(shot=2))).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None, name
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-8)


def test_the_reference_takes_each_episode_and_picture_on_its_own() -> None:
    """One forward an episode, each shot alone, in eval mode too; with nothing folded."""
    backbone = CountingResNet()
    network = small(backbone=backbone).eval()
    with torch.no_grad():
        for _ in range(2):
            reference.segment(network, made(*inputs(batch=1, shot=3)))
    assert backbone.seen == [1] * 2 * (1 + 3)


@pytest.mark.slow  # a ResNet-50 over some dozen pictures
def test_rows_of_an_evaluation() -> None:
    rows = list(evaluation(Workload(65, 65, images=60), shot=1, episodes=10, sample=1, targets=(0.0, 1e9)))
    found = re.fullmatch(r"mIoU of the reference's 5 episodes (\d\.\d+), ours 0e\+00 from it", rows[0].note)
    assert found is not None
    assert float(found[1]) > 0, "the network sees something"
    assert all(line.count("|") == HEAD.splitlines()[0].count("|") for line in (row.line() for row in rows))


@pytest.mark.slow  # each runs a ResNet-50 for half a minute
@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("gpu", "--device cpu --size 33 --train-size 33 --batches 2 --ways bf16", "bf16 | 2 |"),
        ("index", "--images 40", "second start"),
    ],
)
def test_the_other_programs_run(module: str, arguments: str, words: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert words in done.stdout


def test_a_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.rows.time.perf_counter", lambda: clock[0])

    def passing(seconds: float) -> None:
        clock[0] += seconds

    def loader() -> Iterator[int]:
        for place in range(5):
            passing(90 if place < 2 else 1)  # the first two start it
            yield place

    assert _waited(loader(), lambda _: passing(3)) == 0.25


def test_a_row_is_the_median_of_its_pairs() -> None:
    row = of_pairs("a thing", [(2.0, 1.0), (6.0, 2.0), (9.0, 9.0)], target=2)
    assert (row.reference, row.ours, row.ratio, row.met) == (6.0, 2.0, 2.0, True)
    assert not replace(row, holds=False).met, "fast, and wrong"
    assert Row("memory", None, 3.5, 3, "GB").line() == "| memory |  | 3.5 GB |  | <= 3 GB | NOT met |  |"


def test_marks_against_true_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_voc(tmp_path)
    monkeypatch.setattr("sys.argv", ["marks", "--data", str(tmp_path), "--pictures", "3"])
    marks.main()
    found = capsys.readouterr().out
    assert "| 3 pictures of val |" in found
    assert re.search(r"\| \*\*`Box`\*\* \| (0\.9|1\.0)", found), found
    assert found.count(" | 1.000 | 1.000 | 1.000 | 0 |") >= 2, "exact polygons"


def test_a_trained_refiner_is_the_one_that_is_used() -> None:
    """Batch norms, folded into the convolutions, give what they gave."""
    torch.manual_seed(0)
    trained, used = with_norms(Refiner(5, 4, 3, (8, 6, 4))), Refiner(5, 4, 3, (8, 6, 4))
    maps = (torch.randn(3, 5, 9, 9), torch.randn(3, 4, 17, 17), torch.randn(3, 3, 33, 33))
    z = torch.randn(3, 1, 9, 9)
    for _ in range(20):
        trained(z, *maps)  # in train mode, where the norms learn their statistics
    used.load_state_dict({name: value.float() for name, value in folded(trained.eval()).items()})
    with torch.no_grad():
        for ours, expected in zip(used.levels(z, *maps), trained.levels(z, *maps), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)  # saved in half precision


@pytest.mark.parametrize(("side", "rows", "columns"), [("u", 3, 8), ("d", 3, 8), ("l", 6, 4), ("r", 6, 4)])
def test_a_part_of_an_object_is_cut_off_by_a_line(side: str, rows: int, columns: int) -> None:
    mask = torch.zeros(12, 12, dtype=torch.uint8)
    mask[2:8, 3:11] = 1
    mask[0] = 255
    part = part_of(mask, side, 0.5)
    inside = (part == 1).nonzero()
    assert (inside.max(0).values - inside.min(0).values + 1).tolist() == [rows, columns]
    first = inside.min(0).values.tolist()
    assert first == {"u": [2, 3], "d": [5, 3], "l": [2, 3], "r": [2, 7]}[side]
    assert (part[0] == 255).all()
