"""`python -m benchmarks.roofline`: how near each part of the network comes to what the machine can do.

Operations are those of convolutions and products, a multiplication and an addition being two. Bytes are what the
operations read and write, each of its inputs and outputs once, as if no cache held anything between two of them. The
machine's rates are those of a product of two large matrices and of a copy; a part can reach the smaller of the first
and of the second times its operations a byte.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import keeping, our_loss
from benchmarks.timing import seconds
from benchmarks.workload import Workload
from sd_aanet.episode import Episode

HEAD = "| part | Goperations | GB | operations a byte | time | reached | attainable | share |\n|" + " --- |" * 8


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.total += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors)  # an expanded one is small
        return out


def rates() -> tuple[float, float]:
    """Operations and bytes a second that the machine reaches."""
    a, b = torch.rand(4096, 4096), torch.rand(4096, 4096)
    long, other = torch.rand(2**27), torch.rand(2**27)  # 512 MB each
    product = min(seconds(lambda: a @ b) for _ in range(5))
    copy = min(seconds(lambda: other.copy_(long)) for _ in range(5))
    return 2 * 4096**3 / product, 2 * long.nbytes / copy


def row(part: str, run: Callable[[], object], operations_rate: float, bytes_rate: float) -> str:
    """A line of the table."""
    run()
    with Bytes() as counted, FlopCounterMode(display=False) as counter:
        run()
    operations = counter.get_total_flops()
    spent = statistics.median(seconds(run) for _ in range(5))
    intensity = operations / counted.total
    attainable = min(operations_rate, intensity * bytes_rate)
    cells = (
        *(f"{operations / 1e9:.0f}", f"{counted.total / 1e9:.2f}", f"{intensity:.0f}", f"{spent:.3f} s"),
        *(f"{operations / spent / 1e9:.0f} G/s", f"{attainable / 1e9:.0f} G/s"),
        f"{operations / spent / attainable:.0%}",
    )
    return f"| {part} | {' | '.join(cells)} |"


def parts(work: Workload) -> dict[str, Callable[[], object]]:
    """The parts of a query with five supports, and of a training step of four episodes."""
    method, data = work.method().eval(), work.episodes(5)
    data.setup("test")
    assert data.test_data is not None
    episode = data.test_data[0]
    masks, rows, size = episode.support_mask[0, 0], [0] * 5, (work.size, work.size)
    with torch.no_grad():
        mid, of_supports = method.image_features(episode.query), method.image_features(episode.support[0, 0])
        supports = method.encode_support(of_supports, method.masked_features(of_supports, masks), masks)
        sets = method.support_set(supports, 5)
        queries = method.encode_query(mid, method.masked_features(mid, None))
        priors = method.pair(queries, rows, supports)

    def without_gradient(run: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(run)

    return {
        "stages 0 to 3 of a query": without_gradient(lambda: method.image_features(episode.query)),
        "its stage 4": without_gradient(lambda: method.masked_features(mid, None)),
        "its projection, and share of SAAM": without_gradient(lambda: method.encode_query(mid, None)),
        "its prior": without_gradient(lambda: method.pair(queries, rows, supports)),
        "its attention and decoder": without_gradient(lambda: method.compare(queries, sets, priors, size)),
        "a training step of 4 episodes, after the backbone": training(work),
    }


def training(work: Workload) -> Callable[[], object]:
    """Forward, loss and backward of the head."""
    comparer, data = keeping(work.method().train()), work.episodes(1, 4)
    data.setup("fit")
    assert data.train_data is not None
    batch = Episode.cat([data.train_data[index] for index in range(4)])
    comparer(batch)  # from here on the backbone has nothing to do

    def run() -> None:
        comparer.method.zero_grad()
        our_loss(comparer, batch).backward()

    return run


def main() -> None:
    """Print the machine's rates and the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--data", type=Path, help="a data set in VOC's layout; otherwise pictures of shapes")
    work = Workload(473, 321, parser.parse_args().data)
    machine = rates()
    print(f"{machine[0] / 1e9:.0f} G operations/s, {machine[1] / 1e9:.1f} GB/s\n\n{HEAD}", flush=True)
    for part, run in parts(work).items():
        print(row(part, run, *machine), flush=True)


if __name__ == "__main__":
    main()
