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

from benchmarks.reference import loss, segment
from benchmarks.timing import Row, compared, of_pairs, seconds
from benchmarks.workload import Workload
from sd_aanet.comparing import Comparer
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.loader import Loader
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode
from sd_aanet.evaluation.loading import LabelledPictures, StepDataset
from sd_aanet.evaluation.plan import ListedEpisode, plan
from sd_aanet.evaluation.tester import EpisodeTester
from sd_aanet.feature_cache import GIGABYTE, FeatureCache
from sd_aanet.metrics import class_sums, episode_counts, scores
from sd_aanet.models.base import Method
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.precision import autocast
from sd_aanet.segmenting.segmenter import FewShotSegmenter

T = TypeVar("T")
PRECISIONS = (False, True) if torch.cpu._is_avx512_bf16_supported() else (False,)
"""Whether in bf16: emulated, without instructions for it, it is slower than float32 and says nothing."""


def half(on: bool) -> AbstractContextManager[object]:
    """bf16 autocast on the CPU, or nothing."""
    return autocast("bf16-mixed" if on else "32-true", torch.device("cpu"))


def plain(method: SDAANet) -> SDAANet:
    """The same for the reference, in PyTorch's default memory layout."""
    method.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return method


def prepared(
    method: Method,
    data: EpisodeDataModule,
    episodes: list[ListedEpisode],
    budget: float = 8 * GIGABYTE,
    batch: int = 4,
    workers: int = 0,
) -> tuple[EpisodeTester, Loader[LabelledPictures]]:
    """What `sd-aanet evaluate` makes of a method and episodes, and the loader of their pictures."""
    source = data.source("val")
    tester = EpisodeTester(
        method.eval(), data.preprocess, len(source.classes), ("squashed",), batch=batch, budget=budget
    )
    tester.steps = plan(episodes, tester.most_supports(), batch)
    return tester, Loader(StepDataset(source, tester.steps, data.preprocess), workers, batch_size=None)


def evaluate(method: Method, data: EpisodeDataModule, episodes: list[ListedEpisode], **how: Any) -> EpisodeTester:
    """What `sd-aanet evaluate` does with episodes, from files to counts, on the method's device.

    Args:
        how: further arguments of `prepared`.
    """
    tester, pictures = prepared(method, data, episodes, **how)
    device = next(method.parameters()).device
    with torch.inference_mode():
        for place, step in enumerate(pictures):
            tester.test_step(step.to(device), place)
    return tester


def listed(data: EpisodeDataModule) -> list[ListedEpisode]:
    """All test episodes."""
    return [ListedEpisode(0, index, spec) for index, spec in enumerate(data.test_specs(0))]


def miou(rows: list[torch.Tensor], classes: int) -> float:
    """Of episodes, as `EpisodeTester.rows` has them."""
    all_rows = torch.cat(rows)
    return float(scores(*class_sums(all_rows[:, 3:], all_rows[:, 2], classes))["miou"])


def evaluation(work: Workload, shot: int, episodes: int, sample: int, targets: tuple[float, float]) -> Iterator[Row]:
    """All episodes of a fold, in float32 and in bf16; a pair is one class and `sample` episodes of the reference.

    The reference costs the same for every episode, so it is timed on some; ours gets faster as pictures repeat, so it
    does them all. Met is a row only where mIoU is the reference's to 1e-4, in bf16 float32's to 0.2 points.
    """
    method, data = work.method().eval(), work.episodes(shot, episodes)
    plainly = plain(work.method().eval())
    everything, classes = listed(data), len(data.source("val").classes)
    found: list[float] = []
    assert data.test_data is not None
    for on, target in zip(PRECISIONS, targets, strict=False):
        measured, all_of_ours, ours, theirs = [], [], [], []
        for class_id in sorted({one.spec.classes[0] for one in everything}):
            some = [one for one in everything if one.spec.classes[0] == class_id]
            places = [one.index for one in some[:: max(1, len(some) // sample)][:sample]]
            start = time.perf_counter()
            logits = {place: _by_reference(plainly, data.test_data[place]) for place in places}
            slow = (time.perf_counter() - start) / len(places) * len(some)
            start = time.perf_counter()
            with half(on):
                rows = torch.cat(evaluate(method, data, some).rows["squashed"])  # (E, 8), see `EpisodeTester`
            measured.append((slow, time.perf_counter() - start))
            all_of_ours.append(rows)
            for place in places:
                counts = episode_counts(logits[place].argmax(1), data.test_data[place].query_mask)
                theirs.append(torch.cat([torch.tensor([[0, place, class_id]]), counts], 1))
                ours.append(rows[rows[:, 1] == place])
        apart = abs(miou(ours, classes) - miou(theirs, classes))
        note = f"mIoU of the reference's {len(theirs)} episodes {miou(theirs, classes):.4f}, ours {apart:.0e} from it"
        found.append(miou(all_of_ours, classes))
        exact = apart <= 1e-4
        if on:
            note += f"; of all {abs(found[1] - found[0]) * 100:.2f} points from float32"
            exact = abs(found[1] - found[0]) <= 0.002
        row = of_pairs(f"{episodes} {shot}-shot episodes, {'bf16' if on else 'float32'}", measured, target)
        slow, fast = (sum(column) for column in zip(*measured, strict=True))
        yield replace(row, reference=slow, ours=fast, note=note, holds=exact)


def _by_reference(network: SDAANet, episode: Episode) -> torch.Tensor:
    with torch.inference_mode():
        return segment(network, episode)


def queries(work: Workload, pairs: int, targets: tuple[float, float]) -> Iterator[Row]:
    """A query against five remembered supports, from the picture to the mask."""
    data = work.episodes(5, 10)
    spec, source = data.test_specs(0)[0], data.source("val")
    assert data.test_data is not None
    episode, plainly = data.test_data[0], plain(work.method().eval())
    picture = source.image(spec.query)
    for on, target in zip(PRECISIONS, targets, strict=False):
        precision = "bf16-mixed" if on else "32-true"
        segmenter = FewShotSegmenter(work.method(), Preprocess(work.size), "cpu", precision)
        segmenter.remember([(source.image(i), source.mask(i, c)) for i, c in spec.examples])
        what = f"a query with 5 remembered supports, {'bf16' if on else 'float32'}"
        ours = partial(segmenter.segment, picture)
        yield compared(what, lambda: _by_reference(plainly, episode), ours, pairs, target)


def training(work: Workload, pairs: int, targets: tuple[float, float], kept: tuple[float, float]) -> Iterator[Row]:
    """A step of four episodes with augmentation, and one from kept features."""
    batch, recurring = (_batch(work.episodes(1, augment=augment)) for augment in ("published", "none"))
    plainly = plain(work.method().train())
    plain_step = _step(plainly, lambda: loss(plainly, batch))
    for on, target in zip(PRECISIONS, targets, strict=False):
        step = our_step(Comparer(work.method().train()), batch, on)
        yield compared(f"a training step of 4 episodes, {'bf16' if on else 'float32'}", plain_step, step, pairs, target)
    for on, target in zip(PRECISIONS, kept, strict=False):
        step = our_step(keeping(work.method().train()), recurring, on)
        what = f"the same from kept features, {'bf16' if on else 'float32'}"
        yield compared(what, plain_step, step, pairs, target)


def _batch(data: EpisodeDataModule) -> Episode:
    data.setup("fit")
    assert data.train_data is not None
    return Episode.cat([data.train_data[index] for index in range(4)])


def keeping(method: Method) -> Comparer:
    """A method at work that keeps the features of its backbone."""
    return Comparer(method, FeatureCache(method, 8 * GIGABYTE))


def our_loss(comparer: Comparer, batch: Episode) -> torch.Tensor:
    """What `FewShotModule` makes smaller."""
    terms, weights = comparer.method.losses(comparer(batch), batch), comparer.method.loss_weights
    return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()


def our_step(comparer: Comparer, batch: Episode, on: bool = False) -> Callable[[], None]:
    """A step of SGD."""
    return _step(comparer.method, lambda: our_loss(comparer, batch), on)


def _step(method: Method, value: Callable[[], torch.Tensor], on: bool = False) -> Callable[[], None]:
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.0025, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with half(on):
            total = value()
        total.backward()
        optimizer.step()

    return step


def waiting(work: Workload, steps: int = 6) -> Iterator[Row]:
    """The share of the time in which there is nothing to do but wait for one worker's pictures."""
    for what, augment in (("a training step", "published"), ("a step from kept features", "none")):
        data = work.episodes(1, augment=augment)
        data.workers, data.episodes = 1, 4 * (steps + 2)
        data.setup("fit")
        comparer = Comparer(work.method().train())
        if augment == "none":
            comparer = keeping(comparer.method)
            with torch.no_grad():
                for batch in data.train_dataloader():
                    comparer(batch)
        share = _waited(data.train_dataloader(), partial(_train, comparer))
        yield Row(f"waiting for data in {what}", None, 100 * share, 10, "%")
    data = work.episodes(1, 20)
    tester, loader = prepared(work.method(), data, listed(data), workers=1)
    with torch.inference_mode():
        share = _waited(loader, lambda pictures: tester.test_step(pictures, 0))
    yield Row("waiting for data in an evaluation", None, 100 * share, 10, "%")


def _train(comparer: Comparer, batch: Episode) -> None:
    our_step(comparer, batch)()


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
from benchmarks.rows import evaluate, listed, miou
from benchmarks.workload import Workload
size, budget, shot, episodes, *files = sys.argv[1:]
data, weights, checkpoint = (Path(file) if file else None for file in files)
work = Workload(int(size), int(size), data, weights, checkpoint)
method, episodes = work.method(), work.episodes(int(shot), int(episodes))
tester = evaluate(method, episodes, listed(episodes), budget=float(budget) * 1024**3)
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
