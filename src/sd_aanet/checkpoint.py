"""Checkpoints: ours, read without executing anything from them, and the published ones, to and from ours."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sd_aanet.arguments import Parser
from sd_aanet.errors import CheckpointError
from sd_aanet.files import written_whole
from sd_aanet.models.published import from_published, to_published
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.training.module import SDAANetModule
from sd_aanet.weights import safe_load, tensors

PUBLISHED_SIZE = 473
PUBLISHED_BINS = {"resnet50": (60, 30, 15, 8), "vgg16_bn": (60, 30, 15, 8), "resnet101": (1.0, 0.5, 0.25, 0.125)}
"""The decoder's scales, which no tensor tells: PASCAL checkpoints are ResNet-50, COCO ones ResNet-101."""


def load_module(path: str | Path) -> SDAANetModule:
    """The trained module of a checkpoint, in eval mode on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, unsafe or of another kind, or does not fit its own settings.
    """
    checkpoint = safe_load(Path(path))
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, Mapping) or not {"network", "preprocess", "classes"} <= set(settings):
        raise CheckpointError(
            f"checkpoint '{path}' is not one of sd-aanet: expected one that `sd-aanet train` wrote"
            + ("; a published one becomes ours with `sd-aanet import-published`" if _is_published(checkpoint) else "")
        )
    try:
        module = SDAANetModule(**settings)
        module.load_state_dict(checkpoint["state_dict"])
    except (TypeError, KeyError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint '{path}' does not fit this version of sd-aanet: {line}") from None
    return module.eval()


def _is_published(checkpoint: Mapping[str, Any]) -> bool:
    state = checkpoint.get("state_dict", checkpoint)
    return isinstance(state, Mapping) and any("down_query" in str(name) for name in state)


def save_module(module: SDAANetModule, path: Path) -> None:
    """Write what `load_module` and a Lightning trainer read."""
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": version("pytorch-lightning"),
    }
    with written_whole(path) as temporary:
        torch.save(checkpoint, temporary)


def import_published(source: Path, out: Path, classes: int | None = None) -> str:
    """Turn a published checkpoint into one of ours.

    Args:
        source: a file with `state_dict` (names with or without `module.`), or a bare state dict.
        out: where ours goes.
        classes: the data set's; None for 80 where the backbone is a ResNet-101 (COCO), else 20 (PASCAL).

    Returns:
        The backbone's name.

    Raises:
        CheckpointError: the file cannot be read safely, or its names or shapes do not fit; they are listed.
    """
    backbone, renamed = from_published(tensors(safe_load(source)))
    module = SDAANetModule(
        network={"backbone": backbone, "variant": "published", "bins": PUBLISHED_BINS[backbone]},
        loss={},
        preprocess={"size": PUBLISHED_SIZE, "resize": "squash"},
        classes=classes or (80 if backbone == "resnet101" else 20),
    )
    try:
        module.network.load_state_dict(renamed)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint '{source}' does not fit: {line}") from None
    save_module(module, out)
    return backbone


def export_published(source: Path, out: Path) -> None:
    """Write one of our checkpoints, of the whole network, in the published names.

    Raises:
        CheckpointError: the file cannot be read, or the network has other parts than the published one.
    """
    module = load_module(source)
    network = module.network
    whole = isinstance(network, SDAANet) and network.sdpm is not None and network.saam is not None
    if not whole or network.prior_stage != 4:
        raise CheckpointError(
            f"checkpoint '{source}' lacks parts of the published network: only one with sdpm, saam and the prior of "
            "stage 4 can be exported"
        )
    state = to_published(network.state_dict(), str(module.hparams["network"]["backbone"]))
    with written_whole(out) as temporary:
        torch.save({"state_dict": state}, temporary)


def main(argv: list[str]) -> int:
    """`sd-aanet import-published`."""
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
