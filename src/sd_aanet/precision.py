"""How precisely the network computes: what torch makes of the settings' names for it."""

from __future__ import annotations

import torch

from sd_aanet.errors import ConfigError

ON_GPU = ("auto", "gpu", "cuda")
"""The accelerators that are a GPU where there is one."""


def resolve_precision(precision: str, accelerator: str) -> str:
    """`auto`: bf16-mixed where the device computes bfloat16 natively, else 32-true; anything else stays."""
    if precision != "auto":
        return precision
    if accelerator in ON_GPU and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def set_tf32(on: bool) -> None:
    """Whether a GPU may round the factors of float32 products to mantissas of 10 bits, in the whole process.

    PyTorch by itself lets it in convolutions; so that float32 means the same on every device, commands call this.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that "32-true" or "bf16-mixed" needs on a device, as Lightning makes it.

    Raises:
        ConfigError: another precision.
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ConfigError(f"precision={precision}, expected 32-true, bf16-mixed or auto: choose one")
    half = precision == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)
