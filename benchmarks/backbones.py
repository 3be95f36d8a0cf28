"""`python -m benchmarks.backbones`: what backbones take for one picture on the CPU, beside a ResNet-18.

All stages at output stride 8, as frozen backbones run: batch norms folded, channels last, no gradient. Each round
measures every backbone once, and the least of all rounds counts, since what else the machine does only ever adds.
Weights are random, which takes as long.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.timing import seconds
from sd_aanet.backbones import BACKBONES, build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.precision import autocast

REFERENCE = "resnet18"
HEAD = "| size | precision | backbone | ms | of the ResNet-18 |\n| --- | --- | --- | --- | --- |"
PRECISIONS = ("32-true", "bf16-mixed") if torch.cpu._is_avx512_bf16_supported() else ("32-true",)


def measured(backbones: dict[str, Backbone], size: int, precision: str, rounds: int) -> dict[str, float]:
    """The least seconds of each backbone for a picture of this size, after a round that is not counted."""
    image = torch.randn(1, 3, size, size)
    # Of a ResNet's outputs, those before a ReLU are left out: nothing but a copy of a stage's.
    wanted = {name: [o for o in backbone.outputs if "." not in o] for name, backbone in backbones.items()}
    least = dict.fromkeys(backbones, float("inf"))
    with torch.inference_mode(), autocast(precision, torch.device("cpu")):
        for turn in range(rounds + 1):
            for name, backbone in backbones.items():
                spent = seconds(lambda: backbone(image, wanted[name]))  # noqa: B023 - called at once
                if turn:
                    least[name] = min(least[name], spent)
    return least


def main() -> None:
    """Print a row for each size, precision and backbone."""
    parser = argparse.ArgumentParser("python -m benchmarks.backbones", description=__doc__)
    default = [name for name in BACKBONES if name.startswith("efficientnet")]
    parser.add_argument("--backbones", choices=BACKBONES, nargs="+", default=default, help="beside the ResNet-18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[225, 473], help="of the picture")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each, of which the least counts")
    given = parser.parse_args()
    names = dict.fromkeys((REFERENCE, *given.backbones))
    backbones = {name: build_backbone(name).eval().to(memory_format=torch.channels_last) for name in names}  # type: ignore[call-overload]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{HEAD}", flush=True)
    for size in given.sizes:
        for precision in PRECISIONS:
            least = measured(backbones, size, precision, given.rounds)
            for name, spent in least.items():
                ratio = spent / least[REFERENCE]
                print(f"| {size} px | {precision} | {name} | {1000 * spent:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
