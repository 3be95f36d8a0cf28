"""`make bench-gpu`: training steps and evaluations on a CUDA device, against the reference on the same device.

For each batch size and way of running: episodes per second, the share of the chip's bf16 rate, peak memory, and the
ratio to the reference (one episode at a time in an evaluation, the same batch in training, float32 without TF32).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reference import loss, segment
from benchmarks.rows import network_of
from benchmarks.workload import Workload
from sd_aanet.episode import Episode
from sd_aanet.training.module import SDAANetModule

WAYS = ("float32", "tf32", "bf16", "bf16 compiled")
GMAC = {"evaluation": 267.0, "training": 3 * 0.46 * (57 + 34) + 2 * 0.46 * 92}
"""Of a 1-shot episode as the reference does it, at 473 px (evaluation) and 321 px (training)."""


def timed(run: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Median seconds of a call, after two that are not counted."""
    times = []
    for place in range(repeat + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if place > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def autocast(way: str, device: torch.device) -> AbstractContextManager[object]:
    """What a way of running needs around it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way == "tf32"
    return torch.autocast(device.type, torch.bfloat16) if way.startswith("bf16") else nullcontext()


def batch_of(work: Workload, training: bool, size: int, device: torch.device) -> Episode:
    """Episodes on the device."""
    data = work.episodes(1, size, augment="published")
    data.setup("fit" if training else "test")
    episodes = data.train_data if training else data.test_data
    assert episodes is not None
    return Episode.collate([episodes[index] for index in range(size)]).to(device)


def tensors(batch: Episode) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the reference takes."""
    return batch.query, batch.query_mask, batch.support, batch.support_mask


def evaluation(module: SDAANetModule, batch: Episode) -> Callable[[], object]:
    """A forward of the whole network."""
    module.eval()

    def run() -> None:
        with torch.inference_mode():
            module.network(batch.query, batch.support, batch.support_mask)

    return run


def training(module: SDAANetModule, value: Callable[[], Tensor]) -> Callable[[], object]:
    """A step of SGD."""
    module.train()
    optimizer = torch.optim.SGD([p for p in module.network.parameters() if p.requires_grad], 0.0025, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        value().backward()
        optimizer.step()

    return run


def our_loss(module: SDAANetModule, batch: Episode) -> Tensor:
    """The loss of a batch."""
    prediction = module.network(batch.query, batch.support, batch.support_mask)
    total: Tensor = module.loss(prediction, batch.query_mask, batch.support_mask).total
    return total


def measure(work: Workload, what: str, way: str, size: int, device: torch.device, repeat: int, peak: float) -> str:
    """A row of the table."""
    batch = batch_of(work, what == "training", size, device)
    module, plainly = work.module().to(device), work.module().to(device)
    network = network_of(plainly)
    with autocast("float32", device):
        if what == "training":
            plain = training(plainly, lambda: loss(network, plainly.loss, *tensors(batch)))
            slow = timed(plain, device, repeat) / size
        else:
            one = batch_of(work, False, 1, device)
            network.eval()

            def plain_forward() -> None:
                with torch.inference_mode():
                    segment(network, *tensors(one))

            slow = timed(plain_forward, device, repeat)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if way.endswith("compiled"):
        module.network.compile()
    with autocast(way, device):
        run = training(module, lambda: our_loss(module, batch)) if what == "training" else evaluation(module, batch)
        fast = timed(run, device, repeat) / size
    memory = torch.cuda.max_memory_allocated(device) / 1024**3 if device.type == "cuda" else float("nan")
    share = 2e9 * GMAC[what] / fast / peak
    return f"| {what} | {way} | {size} | {1 / fast:.1f} | {share:.1%} | {memory:.1f} GB | {slow / fast:.1f} |"


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=473, help="of an evaluation's pictures")
    parser.add_argument("--train-size", type=int, default=321)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peak", type=float, default=989e12, help="the chip's bf16 operations a second")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    work, device = Workload(given.size, given.train_size, given.data, given.weights), torch.device(given.device)
    print(f"| what | how | batch | episodes/s | share of bf16 rate | memory | ratio |\n|{' --- |' * 7}")
    for what in ("training", "evaluation"):
        for way in WAYS:
            for size in given.batches:
                print(measure(work, what, way, size, device, given.repeat, given.peak), flush=True)


main()
