"""The benchmarks compare like with like: the reference is the same network, and the rows are measured."""

import pytest
import torch
from benchmarks import reference
from benchmarks.rows import evaluation
from benchmarks.timing import HEAD, Row, of_pairs
from benchmarks.workload import Workload

from networks import inputs, small
from sd_aanet.training.losses import SDAANetLoss


@pytest.mark.parametrize("shot", [1, 3])
def test_the_reference_segments_as_the_network_does(shot: int) -> None:
    network = small().eval()
    query, query_mask, support, support_mask = inputs(shot=shot)
    with torch.no_grad():
        ours = network(query, support, support_mask).logits
        theirs = reference.segment(network, query, query_mask, support, support_mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_reference_trains_as_the_network_does() -> None:
    losses = SDAANetLoss()
    query, query_mask, support, support_mask = inputs(shot=2)
    ours, theirs = small().train(), small().train()
    losses(ours(query, support, support_mask), query_mask, support_mask).total.backward()
    reference.loss(theirs, losses, query, query_mask, support, support_mask).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None, name
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.slow  # a ResNet-50 over some dozen pictures
def test_rows_of_an_evaluation() -> None:
    rows = list(evaluation(Workload(65, 65, images=60), shot=1, episodes=10, sample=1, targets=(0.0, 1e9)))
    assert rows[0].met
    assert rows[0].note.endswith("ours 0e+00 from it")
    assert all(line.count("|") == HEAD.splitlines()[0].count("|") for line in (row.line() for row in rows))


def test_a_row_is_the_median_of_its_pairs() -> None:
    row = of_pairs("a thing", [(2.0, 1.0), (6.0, 2.0), (9.0, 9.0)], target=2)
    assert (row.reference, row.ours, row.ratio, row.met) == (6.0, 2.0, 2.0, True)
    assert Row("memory", None, 3.5, 3, "GB").line() == "| memory |  | 3.5 GB |  | <= 3 GB | NOT met |  |"
