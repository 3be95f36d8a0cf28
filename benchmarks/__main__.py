"""`make bench`: how much faster an evaluation is here than one forward per episode with every image on its own.

The reference passes each image of each episode alone through the backbone, in float32, and remembers nothing. Both
sides see the same random network and the same episodes over a small pool of pictures that repeat, as in an evaluation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from sd_aanet.episode import Episode
from sd_aanet.memory import FeatureMemory
from sd_aanet.models.base import Features
from sd_aanet.models.sd_aanet import SDAANet

GIGABYTE = 1024**3


def make_episodes(count: int, pictures: int, shot: int, size: int) -> list[Episode]:
    """Episodes of one class over a pool of random pictures."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pictures, 3, size, size, generator=generator)
    masks = torch.zeros(pictures, size, size, dtype=torch.int64)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    draws = np.random.default_rng(0)
    episodes = []
    for index in range(count):
        query, *supports = draws.permutation(pictures)[: shot + 1].tolist()
        episodes.append(
            Episode(
                query=images[query][None],
                query_mask=masks[query][None],
                support=images[supports][None],
                support_mask=masks[supports][None],
                class_id=torch.tensor([1]),
                index=torch.tensor([index]),
                query_key=(str(query),),
                support_key=(tuple(map(str, supports)),),
            )
        )
    return episodes


def reference(network: SDAANet, episodes: list[Episode]) -> None:
    """One forward an episode, every image alone through the backbone."""
    for episode in episodes:
        foreground = (episode.support_mask == 1).float()
        mid = network.mid(episode.query)
        mids, highs = [], []
        for k in range(foreground.shape[1]):
            mids.append(network.mid(episode.support[:, k]))
            highs.append(network.high(mids[-1], foreground[:, k]))
        support = Features(torch.cat(mids), torch.cat([high for high in highs if high is not None]))
        network.head(Features(mid, network.high(mid)), support, foreground)


def ours(network: SDAANet, episodes: list[Episode], batch: int = 8) -> None:
    """Batches of episodes with remembered features, from an empty memory on."""
    memory = FeatureMemory(network, 8 * GIGABYTE)
    for start in range(0, len(episodes), batch):
        episode = Episode.collate(episodes[start : start + batch])
        foreground = (episode.support_mask == 1).float()
        network.head(*memory.features(episode, foreground), foreground)


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=225, help="side of the pictures, 8n + 1")
    parser.add_argument("--episodes", type=int, default=24, help="in each list")
    parser.add_argument("--pictures", type=int, default=10, help="that the episodes draw from")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each row, ours and the reference in turn")
    given = parser.parse_args()
    torch.manual_seed(0)
    network = SDAANet().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{'evaluation of ResNet-50 at ' + str(given.size) + ' px':<38}{'reference s':>12}{'ours s':>9}{'ratio':>7}")
    for shot in (1, 5):
        episodes = make_episodes(given.episodes, given.pictures, shot, given.size)
        for name, half in (("float32", False), ("bf16", True)):
            slow, fast = [], []
            with torch.inference_mode():
                ours(network, episodes[:2])
                for _ in range(given.pairs):
                    slow.append(seconds(lambda e=episodes: reference(network, e)))  # type: ignore[misc]
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        fast.append(seconds(lambda e=episodes: ours(network, e)))  # type: ignore[misc]
            ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
            label = f"{given.episodes} episodes, {shot}-shot, {name}"
            print(f"{label:<38}{statistics.median(slow):>12.1f}{statistics.median(fast):>9.1f}{ratio:>7.1f}")


main()
