"""The rows of the table, each a function that measures."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from sd_aanet.memory import GIGABYTE, FeatureMemory

from benchmarks.reference import loss, segment
from benchmarks.timing import Row, compared, of_pairs, seconds
from benchmarks.workload import Workload
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.loader import Loader
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode
from sd_aanet.evaluation.loading import LabelledPictures, StepDataset
from sd_aanet.evaluation.plan import Job, plan
from sd_aanet.evaluation.tester import EpisodeTester
from sd_aanet.metrics import class_sums, episode_counts
from sd_aanet.metrics import scores as figures
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.precision import autocast
from sd_aanet.segmenter import FewShotSegmenter
from sd_aanet.training.module import SDAANetModule

T = TypeVar("T")
PRECISIONS = (False, True) if torch.cpu._is_avx512_bf16_supported() else (False,)
"""Whether in bf16: emulated, without instructions for it, it is slower than float32 and says nothing."""


def half(on: bool) -> AbstractContextManager[object]:
    """bf16 autocast on the CPU, or nothing."""
    return autocast("bf16-mixed" if on else "32-true", torch.device("cpu"))


def plain(module: SDAANetModule) -> SDAANet:
    """Its network for the reference, in PyTorch's default memory layout."""
    assert isinstance(module.network, SDAANet)
    module.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module.network


def prepared(
    module: SDAANetModule,
    data: EpisodeDataModule,
    jobs: list[Job],
    budget: float = 8 * GIGABYTE,
    batch: int = 4,
    workers: int = 0,
) -> tuple[EpisodeTester, Loader[LabelledPictures]]:
    """What `sd-aanet evaluate` makes of a module and episodes, and the loader of their pictures."""
    tester = EpisodeTester(module.eval(), data.preprocess, ("squashed",), batch=batch, budget=budget)
    tester.steps = plan(jobs, tester.most_supports(), batch)
    return tester, Loader(StepDataset(data.source("val"), tester.steps, data.preprocess), workers, batch_size=None)


def evaluate(module: SDAANetModule, data: EpisodeDataModule, jobs: list[Job], **how: Any) -> EpisodeTester:
    """What `sd-aanet evaluate` does with episodes, from files to counts, on the module's device.

    Args:
        how: further arguments of `prepared`.
    """
    tester, pictures = prepared(module, data, jobs, **how)
    with torch.inference_mode():
        for place, step in enumerate(pictures):
            tester.test_step(step.to(module.device), place)
    return tester


def jobs_of(data: EpisodeDataModule) -> list[Job]:
    """All test episodes."""
    return [Job(0, index, spec) for index, spec in enumerate(data.test_specs(0))]


def miou(rows: list[torch.Tensor], classes: int) -> float:
    """Of episodes, as `EpisodeTester.rows` has them."""
    all_rows = torch.cat(rows)
    return float(figures(*class_sums(all_rows[:, 3:], all_rows[:, 2], classes))["miou"])


def evaluation(work: Workload, shot: int, episodes: int, sample: int, targets: tuple[float, float]) -> Iterator[Row]:
    """All episodes of a fold, in float32 and in bf16; a pair is one class and `sample` episodes of the reference.

    The reference costs the same for every episode, so it is timed on some; ours gets faster as pictures repeat, so it
    does them all. Met is a row only where mIoU is the reference's to 1e-4, in bf16 float32's to 0.2 points.
    """
    module, data = work.module().eval(), work.episodes(shot, episodes)
    plainly = plain(work.module().eval())
    jobs, classes = jobs_of(data), len(data.source("val").classes)
    scores: list[float] = []
    assert data.test_data is not None
    for on, target in zip(PRECISIONS, targets, strict=False):
        measured, all_of_ours, ours, theirs = [], [], [], []
        for class_id in sorted({job.spec.class_id for job in jobs}):
            some = [job for job in jobs if job.spec.class_id == class_id]
            places = [job.index for job in some[:: max(1, len(some) // sample)][:sample]]
            start = time.perf_counter()
            logits = {place: _by_reference(plainly, data.test_data[place]) for place in places}
            slow = (time.perf_counter() - start) / len(places) * len(some)
            start = time.perf_counter()
            with half(on):
                rows = torch.cat(evaluate(module, data, some).rows["squashed"])  # (E, 8), see `EpisodeTester`
            measured.append((slow, time.perf_counter() - start))
            all_of_ours.append(rows)
            for place in places:
                counts = episode_counts(logits[place].argmax(1), data.test_data[place].query_mask)
                theirs.append(torch.cat([torch.tensor([[0, place, class_id]]), counts], 1))
                ours.append(rows[rows[:, 1] == place])
        apart = abs(miou(ours, classes) - miou(theirs, classes))
        note = f"mIoU of the reference's {len(theirs)} episodes {miou(theirs, classes):.4f}, ours {apart:.0e} from it"
        scores.append(miou(all_of_ours, classes))
        exact = apart <= 1e-4
        if on:
            note += f"; of all {abs(scores[1] - scores[0]) * 100:.2f} points from float32"
            exact = abs(scores[1] - scores[0]) <= 0.002
        row = of_pairs(f"{episodes} {shot}-shot episodes, {'bf16' if on else 'float32'}", measured, target)
        slow, fast = (sum(column) for column in zip(*measured, strict=True))
        yield replace(row, reference=slow, ours=fast, note=note, holds=exact)


def _by_reference(network: SDAANet, episode: Episode) -> torch.Tensor:
    with torch.inference_mode():
        return segment(network, episode.query, episode.query_mask, episode.support, episode.support_mask)


def queries(work: Workload, pairs: int, targets: tuple[float, float]) -> Iterator[Row]:
    """A query against five remembered supports, from the picture to the mask."""
    data = work.episodes(5, 10)
    spec, source = data.test_specs(0)[0], data.source("val")
    assert data.test_data is not None
    episode, plainly = data.test_data[0], plain(work.module().eval())
    picture = source.image(spec.query)
    for on, target in zip(PRECISIONS, targets, strict=False):
        precision = "bf16-mixed" if on else "32-true"
        segmenter = FewShotSegmenter(work.module().network, Preprocess(work.size), "cpu", precision)
        segmenter.remember([(source.image(i), source.mask(i, spec.class_id)) for i in spec.supports])
        what = f"a query with 5 remembered supports, {'bf16' if on else 'float32'}"
        ours = partial(segmenter.segment, picture)
        yield compared(what, lambda: _by_reference(plainly, episode), ours, pairs, target)


def training(
    work: Workload, pairs: int, targets: tuple[float, float], remembered: tuple[float, float]
) -> Iterator[Row]:
    """A step of four episodes with augmentation, and one from remembered features."""
    data = work.episodes(1, augment="published")
    data.setup("fit")
    assert data.train_data is not None
    batch = Episode.collate([data.train_data[index] for index in range(4)])
    keyed = work.episodes(1)
    keyed.setup("fit")
    assert keyed.train_data is not None
    recurring = Episode.collate([keyed.train_data[index] for index in range(4)])
    plainly = work.module().train()
    plain(plainly)
    plain_step = _step(plainly, lambda: _reference_loss(plainly, batch))
    for on, target in zip(PRECISIONS, targets, strict=False):
        module = work.module().train()
        step = _step(module, lambda m=module: _our_loss(m, batch), on)  # type: ignore[misc]
        yield compared(f"a training step of 4 episodes, {'bf16' if on else 'float32'}", plain_step, step, pairs, target)
    for on, target in zip(PRECISIONS, remembered, strict=False):
        module = work.module().train()
        module.memory = FeatureMemory(module.network, 8 * GIGABYTE)
        step = _step(module, lambda m=module: _our_loss(m, recurring), on)  # type: ignore[misc]
        what = f"the same from remembered features, {'bf16' if on else 'float32'}"
        yield compared(what, plain_step, step, pairs, target)


def _step(module: SDAANetModule, loss: Callable[[], torch.Tensor], on: bool = False) -> Callable[[], None]:
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.0025, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with half(on):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def _reference_loss(module: SDAANetModule, batch: Episode) -> torch.Tensor:
    tensors = (batch.query, batch.query_mask, batch.support, batch.support_mask)
    return loss(plain(module), module.loss, *tensors)


def _our_loss(module: SDAANetModule, batch: Episode) -> torch.Tensor:
    return module.loss(module(batch), batch.query_mask, batch.support_mask).total  # type: ignore[no-any-return]


def waiting(work: Workload, steps: int = 6) -> Iterator[Row]:
    """The share of the time in which there is nothing to do but wait for one worker's pictures."""
    for what, augment in (("a training step", "published"), ("a step from remembered features", "none")):
        data = work.episodes(1, augment=augment)
        data.workers, data.episodes = 1, 4 * (steps + 2)
        data.setup("fit")
        module = work.module().train()
        if augment == "none":
            module.memory = FeatureMemory(module.network, 8 * GIGABYTE)
            with torch.no_grad():
                for batch in data.train_dataloader():
                    module(batch)
        step = partial(_train, module)
        yield Row(f"waiting for data in {what}", None, 100 * _waited(data.train_dataloader(), step), 10, "%")
    data = work.episodes(1, 20)
    tester, loader = prepared(work.module(), data, jobs_of(data), workers=1)
    with torch.inference_mode():
        share = _waited(loader, lambda pictures: tester.test_step(pictures, 0))
    yield Row("waiting for data in an evaluation", None, 100 * share, 10, "%")


def _train(module: SDAANetModule, batch: Episode) -> None:
    _step(module, lambda: _our_loss(module, batch))()


def _waited(loader: Iterable[T], step: Callable[[T], object]) -> float:
    """The share of the time that passes until the next batch is there, after the first two, which start the loader."""
    spans = []
    batches, start = iter(loader), time.perf_counter()
    while (batch := next(batches, None)) is not None:
        loaded = time.perf_counter()
        step(batch)
        end = time.perf_counter()
        spans.append((loaded - start, end - start))
        start = end
    waited, whole = zip(*spans[2:], strict=True)
    return float(sum(waited) / sum(whole))


PEAK = """
import resource, sys
from pathlib import Path
from benchmarks.rows import evaluate, jobs_of, miou
from benchmarks.workload import Workload
size, budget, shot, episodes, *files = sys.argv[1:]
data, weights, checkpoint = (Path(file) if file else None for file in files)
work = Workload(int(size), int(size), data, weights, checkpoint)
module, episodes = work.module(), work.episodes(int(shot), int(episodes))
tester = evaluate(module, episodes, jobs_of(episodes), budget=float(budget) * 1024**3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
print(miou(tester.rows["squashed"], len(episodes.source("val").classes)))
"""


def peak(work: Workload, budget: float, shot: int, episodes: int) -> tuple[float, float, float]:
    """An evaluation in a process of its own, from its start to its end: peak memory in GB, seconds, and mIoU."""
    given = [
        str(given or "") for given in (work.size, budget, shot, episodes, work.data, work.weights, work.checkpoint)
    ]
    start = time.perf_counter()
    gigabytes, score = _output([sys.executable, "-c", PEAK, *given]).split()
    return float(gigabytes), time.perf_counter() - start, float(score)


def memory(work: Workload, budgets: tuple[float, ...], episodes: int) -> Iterator[Row]:
    """What an evaluation takes at most, from its start to its end, beyond the budget it was given."""
    for budget in budgets:
        gigabytes, seconds, score = peak(work, budget, 5, episodes)
        note = f"peak {gigabytes:.2f} GB, {seconds:.0f} s, mIoU {score:.6f}"
        what = f"memory of {episodes} 5-shot episodes beyond a budget of {budget:g} GB"
        yield Row(what, None, max(0.0, gigabytes - budget), 3, "GB", note=note)


def starting() -> Iterator[Row]:
    """The package's own share of its import, and the help of the command."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import sd_aanet"], capture_output=True, text=True, check=True
    )
    own = [int(m[1]) for m in re.finditer(r"import time: +(\d+) \| +\d+ \| +sd_aanet", done.stderr)]
    yield Row("import of the package, its own share", None, sum(own) / 1e6, 0.3)
    times = [seconds(lambda: _output([sys.executable, "-m", "sd_aanet", "--help"])) for _ in range(5)]
    yield Row("sd-aanet --help", None, statistics.median(times), 1.5)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine() -> str:
    """What measured."""
    model = "an unknown processor"
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    native = "with bf16" if len(PRECISIONS) > 1 else "without bf16, whose rows are left out"
    return f"{torch.get_num_threads()} threads of {model}, {native}; torch {torch.__version__}"
