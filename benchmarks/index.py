"""`python -m benchmarks.index`: what the first and the second start on a large data set take.

The data set is made of links to a few small files, in VOC's layout, so that reading costs what a system call costs and
the index itself shows. Each start is a process of its own; what its imports take is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

START = """
import resource, sys, time
from sd_aanet.data.sources.pascal5i import Pascal5i
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
pixels = Pascal5i(sys.argv[1], "train").pixels()
seconds = time.perf_counter() - start
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) / 1024
print(f"{seconds:8.2f} s {megabytes:6.0f} MB {pixels.shape}")
"""


def make(root: Path, images: int) -> None:
    """A folder in VOC's layout with so many images, each with two classes."""
    pictures, masks, lists = root / "JPEGImages", root / "SegmentationClassAug", root / "ImageSets/Segmentation"
    for folder in (pictures, masks, lists):
        folder.mkdir(parents=True)
    for c in range(20):
        Image.new("RGB", (64, 48)).save(root / f"{c}.jpg")
        label = np.zeros((48, 64), np.uint8)
        label[:20, :30], label[30:, 40:] = c + 1, (c + 7) % 20 + 1
        Image.fromarray(label).save(root / f"{c}.png")
    for i in range(images):
        os.link(root / f"{i % 20}.jpg", pictures / f"{i:06d}.jpg")
        os.link(root / f"{i % 20}.png", masks / f"{i:06d}.png")
    (lists / "train.txt").write_text("".join(f"{i:06d}\n" for i in range(images)))


def main() -> None:
    """Print a line for each size and start."""
    parser = argparse.ArgumentParser("python -m benchmarks.index", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 80_000], help="numbers of images")
    for images in parser.parse_args().images:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "voc", images)
            environment = os.environ | {"SD_AANET_CACHE": f"{folder}/cache"}
            for which in ("first", "second"):
                command = [sys.executable, "-c", START, f"{folder}/voc"]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                print(f"{images:>8} images, {which:<6} start {done.stdout.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
