"""Weights of Hugging Face's hub and of its file format, safetensors, which holds tensors and nothing that could run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sd_aanet.errors import CheckpointError, ConfigError

SCHEME = "huggingface://"
FILE = "model.safetensors"
"""What a model's page and a saved model's folder call it."""


def require(package: str) -> Any:
    """A package of the extra `vit`, imported now that it is needed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"package {error.name} is missing, DINO backbones and {SCHEME} weights need it: pip install 'sd-aanet[vit]'"
        ) from None


def is_safetensors(source: str) -> bool:
    """Whether `read_safetensors` is the one to read it."""
    return source.startswith(SCHEME) or source.endswith(".safetensors") or Path(source).is_dir()


def read_safetensors(source: str) -> dict[str, Tensor]:
    """The named tensors of a file.

    Args:
        source: path of the file or of a folder with a `model.safetensors`, or "huggingface://facebook/dinov2-small"
            and the like, fetched once into the hub's cache.

    Raises:
        CheckpointError: the file is missing, damaged or cannot be fetched.
        ConfigError: the packages that it takes are not installed.
    """
    path = _fetch(source) if source.startswith(SCHEME) else Path(source)
    if path.is_dir():
        path /= FILE
    if not path.is_file():
        raise CheckpointError(f"weights '{path}' do not exist: check the path, or save them as safetensors")
    try:
        state: dict[str, Tensor] = require("safetensors.torch").load_file(path)
    except require("safetensors").SafetensorError as error:
        raise CheckpointError(f"weights '{path}' are truncated or no safetensors file: {error}") from None
    return state


def _fetch(source: str) -> Path:
    hub, errors = require("huggingface_hub"), require("huggingface_hub.errors")
    name = source.removeprefix(SCHEME)
    page = f"https://huggingface.co/{name}"
    try:
        try:
            return Path(hub.hf_hub_download(name, FILE, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            # The download itself would knock for half a minute where there is no network; this asks once.
            hub.get_hf_file_metadata(hub.hf_hub_url(name, FILE))
            return Path(hub.hf_hub_download(name, FILE))
    except errors.GatedRepoError:
        why = f"its licence has to be accepted: do so at {page}, log in by `hf auth login` or HF_TOKEN,"
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.HFValidationError):
        why = f"{page} has no {FILE} for you to read: check the name, log in by `hf auth login` if it is private,"
    except Exception as error:  # of whichever HTTP library the hub uses: no network, offline mode, a proxy
        line = (str(error) or type(error).__name__).splitlines()[0]
        why = f"the hub cannot be reached, {line.rstrip('.')}: fetch it where there is a network,"
    raise CheckpointError(f"weights '{source}' could not be fetched, {why} or give the path of a local copy")
