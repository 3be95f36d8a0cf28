"""Backbone weights from a file: what fits is loaded, what does not is an error, what is left over is reported."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.huggingface import is_safetensors, read_safetensors
from sd_aanet.backbones.resnet import Stride
from sd_aanet.errors import CheckpointError

SCHEME = "torchvision://"
_URL = "https://download.pytorch.org/models/"
TORCHVISION = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
}
"""The ImageNet weights ("V1") of torchvision's model zoo; a file's name ends with the start of its SHA-256."""
OURS = "method.backbone."
"""Where a checkpoint of ours has its backbone."""


@dataclass(frozen=True)
class WeightReport:
    """What became of a weight file.

    Attributes:
        source: path or name.
        loaded: how many tensors were loaded.
        unused: names in the file that the backbone has no place for.
    """

    source: str
    loaded: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = dict.fromkeys(name.partition(".")[0] for name in self.unused)
        unused = f"; {len(self.unused)} not needed ({', '.join(f'{part}.*' for part in parts)})" if parts else ""
        return f"backbone weights from {self.source}: {self.loaded} tensors, none missing{unused}"


def stride_of(source: str | None) -> Stride:
    """Where a file's network has its stride: the 8-bit ones hold the original ResNet, all others torchvision's."""
    return "1x1" if source is not None and source.endswith(".npz") else "3x3"


def load_backbone_weights(backbone: Backbone, source: str) -> WeightReport:
    """Load ImageNet weights into a backbone.

    Args:
        backbone: to fill.
        source: path of a torchvision state dict (.pth), of a checkpoint of ours (.ckpt) or of an 8-bit file (.npz, see
            `read_int8`), or "torchvision://resnet50" and the like, fetched once into torch's cache. For what comes as
            safetensors see `read_safetensors`.

    Returns:
        A report that names what was left over.

    Raises:
        CheckpointError: the file is missing, unreadable or unsafe, or tensors are missing or have other shapes.
    """
    if source.startswith(SCHEME):
        state = _fetch(source)
    elif is_safetensors(source):
        state = read_safetensors(source)
    elif source.endswith(".npz"):
        state = read_int8(Path(source), backbone)
    else:
        state = tensors(safe_load(Path(source)))
        if any(name.startswith(OURS) for name in state):  # one of our own checkpoints
            state = {name.removeprefix(OURS): value for name, value in state.items() if name.startswith(OURS)}
    state = backbone.own_names({name.removeprefix("module."): value for name, value in state.items()})
    wanted = backbone.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in counters]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or shapes:
        raise CheckpointError(
            f"weights '{source}' do not fit this backbone: {_some('missing', missing)}{_some('other shapes', shapes)}"
            "choose the backbone that they were made for"
        )
    backbone.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    unused = tuple(name for name in state if name not in wanted)
    return WeightReport(source, len(wanted) - len([c for c in counters if c not in state]), unused)


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{what}: {shown}; "


def tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint: those of its `state_dict`, or its own where it is a bare one."""
    state = checkpoint.get("state_dict", checkpoint)
    items = state.items() if isinstance(state, Mapping) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}


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


def read_int8(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """A torchvision-style state dict from 8-bit weights with folded batch norms.

    For each convolution: `<name>.q` int8, `<name>.frac` (weight = q / 2**frac), `<name>.bias` float32. The batch norm
    behind it becomes the identity with that bias.

    Raises:
        CheckpointError: the file is missing or not of that form.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise CheckpointError(f"weights '{path}' do not exist: check the path") from None
    except Exception as error:  # damaged bytes: BadZipFile, zlib.error, EOFError, TokenError, ...
        raise CheckpointError(f"weights '{path}' are truncated or no npz file ({error})") from None
    state: dict[str, Tensor] = {}
    for key in arrays:
        if not key.endswith(".q"):
            continue
        name = key.removesuffix(".q")
        if f"{name}.frac" not in arrays or f"{name}.bias" not in arrays:
            raise CheckpointError(f"weights '{path}' hold {key} without {name}.frac or {name}.bias: not of this form")
        state[f"{name}.weight"] = torch.from_numpy(arrays[key].astype(np.float32) / 2.0 ** arrays[f"{name}.frac"])
        bias = torch.from_numpy(arrays[f"{name}.bias"])
        norm = _norm_behind(name)
        if norm is None:
            state[f"{name}.bias"] = bias
            continue
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        eps = next(m.eps for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - eps)  # so that sqrt(var + eps) is one
    return state


def _norm_behind(convolution: str) -> str | None:
    """The batch norm behind a convolution of a ResNet: conv1 -> bn1, downsample.0 -> downsample.1; none behind fc."""
    head, _, last = convolution.rpartition(".")
    if last.startswith("conv"):
        return f"{head}.{last.replace('conv', 'bn')}".lstrip(".")
    return f"{head}.1" if head.endswith("downsample") else None


def _fetch(source: str) -> dict[str, Tensor]:
    name = source.removeprefix(SCHEME)
    if name not in TORCHVISION:
        raise CheckpointError(
            f"weights '{source}' are unknown: choose one of {', '.join(SCHEME + n for n in TORCHVISION)}"
        )
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            _URL + TORCHVISION[name], map_location="cpu", check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise CheckpointError(
            f"weights '{source}' could not be fetched ({error}): put {TORCHVISION[name]} into {cache}, or give a path"
        ) from None
    return state
