"""`make bench-gpu`: training steps and evaluations on a CUDA device, against the reference on the same device.

A training step is forward, loss, backward and SGD, with the pictures at hand; an evaluation is all 5-shot episodes of a
class, as `sd-aanet evaluate` does them, from files to counts. The reference trains in batches of 4 and evaluates one
episode after the other, in float32. For each way of running and batch size: episodes per second, operations done per
second as a share of the chip's bf16 rate, peak memory, and the ratio to the reference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import loss, segment
from benchmarks.rows import evaluate, jobs_of, network_of
from benchmarks.workload import Workload
from sd_aanet.episode import Episode
from sd_aanet.training.build import resolve_workers
from sd_aanet.training.module import SDAANetModule

SHOT, BATCH, REPEAT = 5, 4, 5
"""Shots of an evaluation; episodes of a reference training step; measurements of each, of which the median counts."""


@dataclass(frozen=True)
class Way:
    """A way of running.

    Attributes:
        name: in the table.
        half: bf16 autocast.
        tf32: float32 products of rounded factors.
        channels_last: the network's memory layout; otherwise contiguous, PyTorch's default.
        compiled: a mode of `torch.compile`; "reduce-overhead" is CUDA graphs.
    """

    name: str
    half: bool = False
    tf32: bool = False
    channels_last: bool = True
    compiled: str | None = None

    def around(self, device: torch.device) -> AbstractContextManager[object]:
        """What it needs around a run."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        return torch.autocast(device.type, torch.bfloat16) if self.half else nullcontext()

    def module(self, work: Workload, device: torch.device) -> SDAANetModule:
        """A module as it wants it."""
        module = work.module().to(device)
        if not self.channels_last:
            module.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self.compiled is not None:
            module.network.compile(mode=self.compiled)  # what a training calls
            for part in ("mid", "encode_queries", "compare"):  # what an evaluation calls
                setattr(module.network, part, torch.compile(getattr(module.network, part), mode=self.compiled))
        return module


PLAIN = Way("float32")
WAYS = (
    PLAIN,
    Way("float32, contiguous", channels_last=False),
    Way("tf32", tf32=True),
    Way("bf16", half=True),
    Way("bf16, contiguous", half=True, channels_last=False),
    Way("bf16, compiled", half=True, compiled="default"),
    Way("bf16, CUDA graphs", half=True, compiled="reduce-overhead"),
)
Task = Callable[[Workload, Way, int, torch.device], tuple[Callable[[], object], int]]
"""Workload, way, batch, device -> something to run, and how many episodes it does."""


def training(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """Our step of SGD."""
    module, batch = way.module(work, device).train(), batch_of(work, size, device)

    def value() -> Tensor:
        prediction = module.network(batch.query, batch.support, batch.support_mask)
        return module.loss(prediction, batch.query_mask, batch.support_mask).total  # type: ignore[no-any-return]

    return stepping(module, value), size


def plain_training(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """The reference's step of SGD."""
    module, batch = work.module().to(device).train(), batch_of(work, size, device)
    tensors = (batch.query, batch.query_mask, batch.support, batch.support_mask)
    return stepping(module, lambda: loss(network_of(module), module.loss, *tensors)), size


def stepping(module: SDAANetModule, value: Callable[[], Tensor]) -> Callable[[], object]:
    """A step of SGD on a loss."""
    optimizer = torch.optim.SGD([p for p in module.network.parameters() if p.requires_grad], 0.0025, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value().backward()
        optimizer.step()

    return step


def batch_of(work: Workload, size: int, device: torch.device) -> Episode:
    """Episodes of a training, on the device."""
    data = work.episodes(1, size, augment="published")
    data.setup("fit")
    assert data.train_data is not None
    return Episode.collate([data.train_data[index] for index in range(size)]).to(device)


def evaluation(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """All our episodes of the first class."""
    module, data = way.module(work, device).eval(), work.episodes(SHOT)
    jobs = jobs_of(data)
    jobs = [job for job in jobs if job.spec.class_id == jobs[0].spec.class_id]
    workers = resolve_workers("auto")
    return lambda: evaluate(module, data, jobs, batch=size, workers=workers), len(jobs)


def plain_evaluation(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """The reference's forward of one episode."""
    network, data = network_of(work.module().to(device).eval()), work.episodes(SHOT)
    assert data.test_data is not None
    one = data.test_data[0].to(device)

    def run() -> None:
        with torch.inference_mode():
            segment(network, one.query, one.query_mask, one.support, one.support_mask)

    return run, 1


TASKS: dict[str, tuple[Task, Task]] = {
    "training": (plain_training, training),
    f"evaluation, {SHOT} shots": (plain_evaluation, evaluation),
}


def timed(run: Callable[[], object], device: torch.device, repeat: int = REPEAT) -> float:
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


def measure(work: Workload, task: Task, way: Way, size: int, device: torch.device) -> tuple[float, float]:
    """Seconds an episode, and the peak of the device's memory in GB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with way.around(device):
        run, episodes = task(work, way, size, device)
        seconds = timed(run, device) / episodes
    memory = torch.cuda.max_memory_allocated(device) / 1024**3 if device.type == "cuda" else float("nan")
    return seconds, memory


def operations(work: Workload, task: Task, device: torch.device) -> float:
    """Of convolutions and products, an episode of ours, a multiplication and an addition being two."""
    run, episodes = task(work, PLAIN, BATCH, device)
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / episodes


def profile(work: Workload, task: Task, way: Way, size: int, device: torch.device) -> str:
    """Where the time of a run goes."""
    with way.around(device):
        run, _ = task(work, way, size, device)
        timed(run, device, repeat=1)
        with torch.profiler.profile() as profiler:
            timed(run, device, repeat=1)
    order = f"self_{device.type}_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)


def main() -> None:
    """Print the table, row by row, and a profile of the fastest way of each task."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu shows that it runs")
    parser.add_argument("--size", type=int, default=473, help="of an evaluation's pictures")
    parser.add_argument("--train-size", type=int, default=321)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--peak", type=float, default=989e12, help="the chip's bf16 operations a second")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    work, device = Workload(given.size, given.train_size, given.data, given.weights), torch.device(given.device)
    print(f"| what | how | batch | episodes/s | share of bf16 rate | memory | ratio |\n|{' --- |' * 7}", flush=True)
    profiles = []
    for what, (plain, ours) in TASKS.items():
        slow, memory = measure(work, plain, PLAIN, BATCH, device)
        print(f"| {what} | the reference | | {1 / slow:.2f} | | {memory:.1f} GB | 1 |", flush=True)
        counted = operations(work, ours, device)
        found: dict[tuple[Way, int], float] = {}
        for way in WAYS:
            for size in given.batches:
                try:
                    fast, memory = measure(work, ours, way, size, device)
                except RuntimeError as error:  # of memory, or of what torch cannot compile: the other rows go on
                    print(f"| {what} | {way.name} | {size} | {str(error).splitlines()[0][:80]} |", flush=True)
                    continue
                found[way, size] = fast
                cells = (
                    f"{1 / fast:.1f}",
                    f"{counted / fast / given.peak:.1%}",
                    f"{memory:.1f} GB",
                    f"{slow / fast:.1f}",
                )
                print(f"| {what} | {way.name} | {size} | {' | '.join(cells)} |", flush=True)
        way, size = min(found, key=lambda key: found[key])
        profiles.append(f"\n{what}, {way.name}, batch {size}\n{profile(work, ours, way, size, device)}")
    print("\n".join(profiles))


main()
