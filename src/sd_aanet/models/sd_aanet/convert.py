"""`sd-aanet import-published`: the published checkpoints, to and from ours."""

from __future__ import annotations

from pathlib import Path

from sd_aanet.arguments import Parser
from sd_aanet.backbones.weights import check_finite, safe_load, safe_save, tensors
from sd_aanet.checkpoint import Trained, load_trained, save_trained
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError
from sd_aanet.models import build_method
from sd_aanet.models.sd_aanet.network import SDAANet
from sd_aanet.models.sd_aanet.published import from_published, to_published

PUBLISHED_SIZE = 473
PUBLISHED_BINS = {"resnet50": (60, 30, 15, 8), "vgg16_bn": (60, 30, 15, 8), "resnet101": (1.0, 0.5, 0.25, 0.125)}
"""The decoder's scales, which no tensor tells: PASCAL checkpoints are ResNet-50, COCO ones ResNet-101."""


def import_published(source: Path, out: Path) -> str:
    """Turn a published checkpoint into one of ours.

    Args:
        source: a file with `state_dict` (names with or without `module.`), or a bare state dict.
        out: where ours goes.

    Returns:
        The backbone's name.

    Raises:
        CheckpointError: the file cannot be read safely, or its names or shapes do not fit; they are listed.
    """
    backbone, renamed = from_published(tensors(safe_load(source)))
    network = {
        "method": SDAANet.name,
        "backbone": {"name": backbone},
        "variant": "published",
        "bins": PUBLISHED_BINS[backbone],
    }
    method = build_method(**network)  # type: ignore[arg-type]
    try:
        method.load_state_dict(renamed)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint '{source}' does not fit: {line}") from None
    check_finite(method.state_dict(), f"checkpoint '{source}'", "take another one")
    classes = 80 if backbone == "resnet101" else 20  # of COCO and of PASCAL, see `PUBLISHED_BINS`
    save_trained(Trained(method, network, Preprocess(PUBLISHED_SIZE), classes), out)
    return backbone


def export_published(source: Path, out: Path) -> None:
    """Write one of our checkpoints, of the whole network, in the published names.

    Raises:
        CheckpointError: the file cannot be read, or the network has other parts than the published one.
    """
    trained = load_trained(source)
    method = trained.method
    whole = isinstance(method, SDAANet) and method.sdpm is not None and method.saam is not None
    if not whole or method.high != "stage4":
        raise CheckpointError(
            f"checkpoint '{source}' lacks parts of the published network: only one with sdpm, saam and the prior of "
            "stage 4 can be exported"
        )
    state = to_published(method.state_dict(), str(trained.network["backbone"]["name"]))
    safe_save({"state_dict": state}, out)


def main(argv: list[str]) -> int:
    """Convert a file, either way."""
    parser = Parser("sd-aanet import-published", description="Published checkpoint <-> ours.")
    parser.add_argument("source", type=Path, help="the file to read")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--export", action="store_true", help="source is ours, out gets the published names")
    given = parser.parse_args(argv)
    if given.export:
        export_published(given.source, given.out)
        print(f"written: {given.out}, in the published names")
    else:
        print(f"written: {given.out}, a network with {import_published(given.source, given.out)}")
    return 0
