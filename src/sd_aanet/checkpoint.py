"""Checkpoints: a trained method with all that it needs to be used, read without executing anything of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sd_aanet.backbones.weights import check_finite, safe_load, safe_save, tensors
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError
from sd_aanet.models import build_method
from sd_aanet.models.base import Method
from sd_aanet.rules import Rule, check, or_null, text, whole
from sd_aanet.settings import RULES, named

METHOD = "method."
"""Where a checkpoint has the method's tensors."""


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


SETTINGS = {"classes": whole(0), "training": or_null(Rule("settings", lambda v: isinstance(v, Mapping), "null"))}
"""What a checkpoint holds beside its network and its preparation of pictures, which check themselves."""
TRAINING = {
    "dataset": text("shapes"),
    **{f"classes.{stage}": or_null(Rule("a list of names", _listed, "[cat,dog]")) for stage in ("train", "val")},
}
"""And of what it says of its training the part that is not made of settings."""


@dataclass(frozen=True)
class Trained:
    """A method, trained or not, with what made it.

    Attributes:
        method: in eval mode where it was loaded.
        network: the arguments of `build_method`.
        preprocess: what prediction must do to a picture.
        classes: the largest class id of the data set that it was made for.
        training: what it was trained on (data set, fold, seed, ...); None where that is unknown, or there was none.
    """

    method: Method
    network: Mapping[str, Any]
    preprocess: Preprocess
    classes: int
    training: Mapping[str, Any] | None = None


def load_trained(path: str | Path, not_finite: str = "refuse") -> Trained:
    """What a training wrote, in eval mode on the CPU.

    Args:
        path: of the file.
        not_finite: "use" takes tensors that hold NaN or infinity as they are.

    Raises:
        CheckpointError: the file is missing, truncated, unsafe or of another kind, does not fit its own settings, or
            holds what is not finite.
    """
    checkpoint = safe_load(Path(path))
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, Mapping) or not {"network", "preprocess", "classes"} <= set(settings):
        raise CheckpointError(
            f"checkpoint '{path}' is not one of sd-aanet: expected one that `sd-aanet train` wrote"
            + ("; a published one becomes ours with `sd-aanet import-published`" if _is_published(checkpoint) else "")
        )
    try:
        network, state = dict(settings["network"]), tensors(checkpoint)
        method = build_method(**network)
        method.load_state_dict({n.removeprefix(METHOD): v for n, v in state.items() if n.startswith(METHOD)})
        check(settings, SETTINGS)
        preprocess, training = Preprocess(**settings["preprocess"]), settings.get("training")
        check(training or {}, {name: RULES[name] for name in named("recorded")} | TRAINING)
    except Exception as error:  # of odd settings nearly anything
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint '{path}' does not fit this version of sd-aanet: {line}; train again, or use the version that "
            "wrote it"
        ) from None
    if not_finite != "use":
        check_finite(
            method.state_dict(), f"checkpoint '{path}'", "take an earlier one; not_finite=use takes it as it is"
        )
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(method.eval(), network, preprocess, settings["classes"], training)


def save_trained(trained: Trained, path: Path) -> None:
    """Write what `load_trained` and a training (`checkpoint=`) read."""
    checkpoint = {
        "state_dict": {f"{METHOD}{name}": value for name, value in trained.method.state_dict().items()},
        "hyper_parameters": {
            "network": dict(trained.network),
            "preprocess": vars(trained.preprocess),
            "classes": trained.classes,
            "training": trained.training,
        },
        "pytorch-lightning_version": version("pytorch-lightning"),
    }
    safe_save(checkpoint, path)


def _is_published(checkpoint: Mapping[str, Any]) -> bool:
    state = checkpoint.get("state_dict", checkpoint)
    return isinstance(state, Mapping) and any("down_query" in str(name) for name in state)
