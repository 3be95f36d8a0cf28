"""8-bit weights of a ResNet with folded batch norms, in NumPy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.resnet import Stride
from sd_aanet.errors import CheckpointError


def stride_of(source: str | None) -> Stride:
    """Where a file's network has its stride: the 8-bit ones hold the original ResNet, all others torchvision's."""
    return "1x1" if source is not None and source.endswith(".npz") else "3x3"


def read_int8(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """A torchvision-style state dict from 8-bit weights with folded batch norms.

    For each convolution: `<name>.q` int8, `<name>.frac` (weight = q / 2**frac), `<name>.bias` float32. The batch norm
    behind it becomes the identity with that bias.

    Raises:
        CheckpointError: the file is missing or not of that form.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file}
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
        q, frac, shift = arrays[key], arrays[f"{name}.frac"], arrays[f"{name}.bias"]
        whole = q.dtype == np.int8 and np.issubdtype(frac.dtype, np.integer) and frac.ndim == 0 and abs(int(frac)) < 64
        if not whole or not np.issubdtype(shift.dtype, np.floating) or not np.isfinite(shift).all():
            raise CheckpointError(
                f"weights '{path}' have other than int8, a whole number of bits and finite floats as {name}.q, .frac "
                "and .bias: not of this form"
            )
        state[f"{name}.weight"] = torch.from_numpy(q.astype(np.float32) / 2.0 ** int(frac))
        bias = torch.from_numpy(shift.astype(np.float32))
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
