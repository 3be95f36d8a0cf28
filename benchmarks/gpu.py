"""`make bench-gpu`: training steps and evaluations on a CUDA device, against the reference on the same device.

A training step is forward, loss, backward and SGD, with the pictures at hand; an evaluation is all 5-shot episodes of a
class, as `sd-aanet evaluate` does them, from files to counts. The reference trains in batches of 4 and evaluates one
episode after the other; ratios are to its float32. For each way of running and batch size: episodes per second,
operations done per second as a share of the chip's bf16 rate, peak memory, and the ratio.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import loss, segment
from benchmarks.rows import evaluate, listed, our_loss, plain
from benchmarks.workload import Workload
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.machine import resolve_workers
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.precision import autocast, set_tf32

SHOT, BATCH = 5, 4
"""Shots of an evaluation; episodes of a reference training step."""
Run = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """A way of running.

    Attributes:
        precision: "32-true" or "bf16-mixed".
        tf32: float32 products of rounded factors.
        contiguous: the network in PyTorch's default memory layout, not in channels last.
        compiled: a mode of `torch.compile`; "reduce-overhead" is CUDA graphs.
    """

    precision: str = "32-true"
    tf32: bool = False
    contiguous: bool = False
    compiled: str | None = None

    @contextmanager
    def around(self, device: torch.device) -> Iterator[None]:
        """What it needs around a measurement, which begins with nothing compiled before and no memory in use."""
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        set_tf32(self.tf32)
        with autocast(self.precision, device):
            yield

    def method(self, work: Workload, device: torch.device) -> SDAANet:
        """A method as it wants it."""
        method = work.method().to(device)
        return plain(method) if self.contiguous else method


PLAIN = Way()
WAYS = {
    "float32": PLAIN,
    "tf32": Way(tf32=True),
    "bf16": Way("bf16-mixed"),
    "bf16-contiguous": Way("bf16-mixed", contiguous=True),
    "bf16-compiled": Way("bf16-mixed", compiled="default"),
    "bf16-graphs": Way("bf16-mixed", compiled="reduce-overhead"),
}


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        name: in the table.
        reference, ours: of a workload, a way, a batch size and a device: something to run, and how many episodes it
            does.
        target: of the ratio.
        ways: of running ours.
    """

    name: str
    reference: Callable[[Workload, Way, int, torch.device], tuple[Run, int]]
    ours: Callable[[Workload, Way, int, torch.device], tuple[Run, int]]
    target: float
    ways: tuple[str, ...]


def training(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Run, int]:
    """Our step of SGD."""
    method, batch = way.method(work, device).train(), batch_of(work, size, device)
    value = partial(our_loss, Comparer(method), batch)
    return stepping(method, value if way.compiled is None else torch.compile(value, mode=way.compiled)), size


def plain_training(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Run, int]:
    """The reference's step of SGD."""
    network, batch = plain(work.method().to(device).train()), batch_of(work, size, device)
    return stepping(network, lambda: loss(network, batch)), size


def stepping(method: SDAANet, value: Callable[[], Tensor]) -> Run:
    """A step of SGD on a loss."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.0025, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        value().backward()
        optimizer.step()

    return step


def batch_of(work: Workload, size: int, device: torch.device) -> Episode:
    """Episodes of a training, on the device."""
    data = work.episodes(1, size, augment="published")
    data.setup("fit")
    assert data.train_data is not None
    return Episode.cat([data.train_data[index] for index in range(size)]).to(device)


def evaluation(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Run, int]:
    """All our episodes of the first class."""
    method, data = way.method(work, device).eval(), work.episodes(SHOT)
    if way.compiled is not None:
        for part in ("image_features", "masked_features", "encode_query", "compare"):  # where the time goes
            setattr(method, part, torch.compile(getattr(method, part), mode=way.compiled))
    everything = listed(data)
    some = [one for one in everything if one.spec.classes == everything[0].spec.classes]
    return lambda: evaluate(method, data, some, batch=size, workers=resolve_workers("auto")), len(some)


def plain_evaluation(work: Workload, way: Way, size: int, device: torch.device) -> tuple[Run, int]:
    """The reference's forward of one episode."""
    network, data = plain(work.method().to(device).eval()), work.episodes(SHOT)
    data.setup("test")
    assert data.test_data is not None
    one = data.test_data[0].to(device)

    def run() -> None:
        with torch.inference_mode():
            segment(network, one)

    return run, 1


TASKS = (
    Task("training", plain_training, training, 3, tuple(WAYS)),
    # After the backbone everything is in channels last anyway, and what a CUDA graph gives is gone with its next run,
    # while an evaluation compares an encoded query with many supports.
    Task(f"evaluation, {SHOT} shots", plain_evaluation, evaluation, 10, ("float32", "tf32", "bf16", "bf16-compiled")),
)


def timed(run: Run, device: torch.device, repeat: int) -> float:
    """Median seconds of so many calls, after two that are not counted."""
    times = []
    for place in range(repeat + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if place > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(
    part: Callable[[Workload, Way, int, torch.device], tuple[Run, int]],
    work: Workload,
    way: Way,
    size: int,
    device: torch.device,
    repeat: int,
) -> tuple[float, float]:
    """Seconds an episode, and the peak of the device's memory in GB."""
    with way.around(device):
        run, episodes = part(work, way, size, device)
        seconds = timed(run, device, repeat) / episodes
    memory = torch.cuda.max_memory_allocated(device) / 1024**3 if device.type == "cuda" else float("nan")
    return seconds, memory


def operations(task: Task, work: Workload, device: torch.device) -> float:
    """Of convolutions and products, an episode of ours, a multiplication and an addition being two."""
    with PLAIN.around(device):
        run, episodes = task.ours(work, PLAIN, BATCH, device)
        with FlopCounterMode(display=False) as counter:
            run()
    return float(counter.get_total_flops()) / episodes


def profile(task: Task, work: Workload, way: Way, size: int, device: torch.device) -> str:
    """Where the time of a run goes."""
    with way.around(device):
        run, _ = task.ours(work, way, size, device)
        run()
        with torch.profiler.profile() as profiler:
            run()
    order = f"self_{device.type}_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60))


def say(*cells: str) -> None:
    """Print a row of the table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table, row by row, and a profile of the fastest way of each task."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu shows that it runs")
    parser.add_argument("--size", type=int, default=473, help="of an evaluation's pictures")
    parser.add_argument("--train-size", type=int, default=321)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS), help="some of the ways of running")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each, of which the median counts")
    parser.add_argument("--peak", type=float, default=989e12, help="the chip's bf16 operations a second")
    parser.add_argument("--data", type=Path, help="a data set in VOC's layout; otherwise pictures of shapes")
    parser.add_argument("--weights", type=Path, help="of the ResNet-50; otherwise random, which takes as long")
    given = parser.parse_args()
    work, device = Workload(given.size, given.train_size, given.data, given.weights), torch.device(given.device)
    say("what", "how", "batch", "episodes/s", "share of bf16 rate", "memory", "ratio", "target", "")
    say(*["---"] * 9)
    profiles = []
    for task in TASKS:
        slow, memory = measure(task.reference, work, PLAIN, BATCH, device, given.repeat)
        say(task.name, "reference, float32", "", f"{1 / slow:.2f}", "", f"{memory:.1f} GB", "1", "", "")
        fast, memory = measure(task.reference, work, Way(tf32=True), BATCH, device, given.repeat)
        say(task.name, "reference, tf32", "", f"{1 / fast:.2f}", "", f"{memory:.1f} GB", f"{slow / fast:.1f}", "", "")
        counted = operations(task, work, device)
        found: dict[tuple[str, int], float] = {}
        for name in task.ways:
            for size in given.batches if name in given.ways else ():
                try:
                    fast, memory = measure(task.ours, work, WAYS[name], size, device, given.repeat)
                except RuntimeError as error:  # of memory, or of what torch cannot compile: the other rows go on
                    say(task.name, name, f"{size}", str(error).splitlines()[0][:80], *[""] * 5)
                    continue
                found[name, size] = fast
                rate, share = f"{1 / fast:.1f}", f"{counted / fast / given.peak:.1%}"
                verdict = (f">= {task.target:g}", "met" if slow / fast >= task.target else "NOT met")
                say(task.name, name, f"{size}", rate, share, f"{memory:.1f} GB", f"{slow / fast:.1f}", *verdict)
        if found:
            name, size = min(found, key=lambda key: found[key])
            profiles.append(f"\n{task.name}, {name}, batch {size}\n{profile(task, work, WAYS[name], size, device)}")
    print("\n".join(profiles))


if __name__ == "__main__":
    main()
