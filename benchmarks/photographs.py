"""`make bench-photographs`: what a person with photographs waits for, from files to masks.

The network that ships (`FewShotSegmenter()`, 641 px) beside SD-AANet on a ResNet-50 at 473 px (random weights, which
take as long as trained ones), in the same run: seconds for each query, three supports, and for `remember`; then, in
processes of their own, from the import to the first mask, and a folder of a hundred pictures with its peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.rows import PRECISIONS, machine
from sd_aanet.building import ready_made
from sd_aanet.data.transforms import Preprocess
from sd_aanet.models import build_method
from sd_aanet.segmenting.segmenter import FewShotSegmenter

SIZE = (480, 640)
FOLDER = """
import re, sys, time
start = time.perf_counter()
from pathlib import Path
from sd_aanet import FewShotSegmenter
folder, precision, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
seg = FewShotSegmenter(precision=precision)
seg.remember("disc", [folder / f"{i}.jpg" for i in range(3)], [folder / f"{i}_mask.png" for i in range(3)])
seg.segment(folder / "3.jpg")
first = time.perf_counter() - start
start = time.perf_counter()
for found in seg.segment_all([folder / f"{3 + i}.jpg" for i in range(count)]):
    pass
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # of this program, not of who started it
print(first, time.perf_counter() - start, int(peak[1]) / 1024**2 if peak else float("nan"))
"""


def draw(folder: Path, count: int) -> None:
    """Discs on textured grounds, as JPEG, and the masks of the first three."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for i in range(count):
        rng = np.random.default_rng(i)
        ground = rng.integers(60, 160, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
        image = np.array(Image.fromarray(ground).resize((SIZE[1], SIZE[0])))
        disc = (x - rng.integers(150, 490)) ** 2 + (y - rng.integers(150, 330)) ** 2 < rng.integers(60, 140) ** 2
        image[disc] = image[disc] // 2 + np.array([120, 20, 20], np.uint8)
        Image.fromarray(image).save(folder / f"{i}.jpg", quality=90)
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / f"{i}_mask.png")


def reference() -> FewShotSegmenter:
    """SD-AANet as it is published, at 473 px."""
    torch.manual_seed(0)
    method = build_method("sd_aanet", {"name": "resnet50"}, variant="published", bins=[60, 30, 15, 8]).eval()
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FewShotSegmenter(method, Preprocess(473), "cpu", "32-true")


def timed(segmenters: list[FewShotSegmenter], folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Medians of seconds a query and of `remember`, of each, in turn so that what else runs slows all alike."""
    supports = [(folder / f"{i}.jpg", folder / f"{i}_mask.png") for i in range(3)]
    queries: list[list[float]] = [[] for _ in segmenters]
    remembered: list[list[float]] = [[] for _ in segmenters]
    for i in range(rounds):
        for seg, of_query, of_supports in zip(segmenters, queries, remembered, strict=True):
            if i < 3:
                start = time.perf_counter()
                seg.remember(supports)
                seg.segment(folder / "3.jpg")  # which fits to them
                of_supports.append(time.perf_counter() - start)
            start = time.perf_counter()
            seg.segment(folder / f"{4 + i}.jpg")
            of_query.append(time.perf_counter() - start)
    return [
        (statistics.median(q), statistics.median(r) - statistics.median(q))
        for q, r in zip(queries, remembered, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=int, default=100, help="pictures of the folder")
    arguments = parser.parse_args()
    precisions = ["bf16-mixed" if half else "32-true" for half in PRECISIONS]
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, max(arguments.folder + 3, arguments.rounds + 4))
        segmenters = [FewShotSegmenter(*ready_made(), "cpu", precision) for precision in precisions]
        *ours, theirs = timed([*segmenters, reference()], folder, arguments.rounds)
        print(f"SD-AANet, ResNet-50, 473 px, 32-true: {theirs[0]:.3f} s a query, remember {theirs[1]:.2f} s")
        for precision, (query, remember) in zip(precisions, ours, strict=True):
            print(
                f"ready-made, 641 px, {precision}: {query:.3f} s a query ({theirs[0] / query:.1f} times as fast), "
                f"remember {remember:.2f} s"
            )
        for precision in precisions:
            command = [sys.executable, "-c", FOLDER, str(folder), precision, str(arguments.folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            first, whole, memory = map(float, done.stdout.split())
            print(
                f"{precision}: import to first mask {first:.1f} s; {arguments.folder} pictures {whole:.1f} s, "
                f"peak {memory:.2f} GB"
            )


if __name__ == "__main__":
    main()
