"""`sd-aanet prepare`: a benchmark's folder from the archives that its pictures and labels come in."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_aanet.arguments import Parser
from sd_aanet.errors import ConfigError

SPLITS = ("train", "val")


def main(argv: list[str]) -> int:
    """`sd-aanet prepare BENCHMARK`.

    Raises:
        ConfigError: arguments that are missing or contradict each other, or a folder that cannot be written.
        DataError: files that are missing, damaged or do not fit together.
    """
    given = _parser().parse_args(argv)
    try:
        if given.benchmark == "pascal5i":
            _pascal5i(given)
        else:
            _coco20i(given)
    except OSError as error:
        raise ConfigError(f"--out {given.out} cannot be made ({error}): choose another folder") from error
    return 0


def _parser() -> Parser:
    parser = Parser(
        "sd-aanet prepare",
        description="Build a benchmark's folder; a repeated call continues where the last one stopped.",
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    pascal = benchmarks.add_parser("pascal5i", help="PASCAL VOC 2012 with the masks of SBD")
    pascal.add_argument("--voc", type=Path, metavar="FOLDER", help="VOCdevkit/VOC2012")
    pascal.add_argument(
        "--sbd",
        type=Path,
        metavar="FOLDER",
        help="benchmark_RELEASE; without it VOC's SegmentationClassAug is taken as it is",
    )
    coco = benchmarks.add_parser("coco20i", help="COCO 2014, or 2017")
    coco.add_argument("--coco", type=Path, metavar="FOLDER", help="holds annotations/, train2014/ and val2014/")
    coco.add_argument("--png", action="store_true", help="draw the masks now (out/masks), not when they are needed")
    for benchmark, name in ((pascal, "pascal5i"), (coco, "coco20i")):
        benchmark.add_argument("--out", type=Path, default=Path("data", name), help="the folder to make (%(default)s)")
        benchmark.add_argument("--download", action="store_true", help="fetch what no option names, to OUT/downloads")
    return parser


def _pascal5i(given: argparse.Namespace) -> None:
    from sd_aanet.data.prepare.download import download
    from sd_aanet.data.prepare.pascal5i import build

    voc, sbd = given.voc, given.sbd
    if given.download:
        voc = voc or download("voc", given.out / "downloads") / "VOCdevkit" / "VOC2012"
        sbd = sbd or download("sbd", given.out / "downloads") / "benchmark_RELEASE"
    if voc is None:
        raise ConfigError("--voc is missing: give --voc VOCdevkit/VOC2012, or --download to fetch it")
    build(voc, sbd, given.out)


def _coco20i(given: argparse.Namespace) -> None:
    from sd_aanet.data.prepare.coco20i import build
    from sd_aanet.data.prepare.download import download

    coco = given.coco
    if given.download:
        coco = coco or download("coco", given.out / "downloads")
    if coco is None:
        raise ConfigError("--coco is missing: give --coco FOLDER, or --download to fetch it")
    build(coco, given.out, given.png)
