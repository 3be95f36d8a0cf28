"""Settings that were given and change nothing, beside the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its import takes long
    from omegaconf import DictConfig

_FILLING = re.compile(r"recipe\.(?!(test_)?size$)|dataset\.benchmark\.|protocol\.(?!name$)|optimizer\.lr$")
"""Keys whose values count by filling other settings alone."""
_OF_A_CHECKPOINT = {
    "evaluate": ("model", "backbone", "recipe"),
    **dict.fromkeys(("predict", "label", "export"), ("model", "backbone", "recipe", "size", "resize")),
}
"""What a checkpoint brings along where it is not what a training starts from."""
_OF_A_LIST = ("way", "shot", "episodes", "seeds", "order", "min_object_pixels", "short_classes")
"""What was decided when a list of episodes was made."""


def without_effect(command: str, given: Sequence[str], config: DictConfig) -> Iterator[str]:
    """A line on each setting without effect.

    Args:
        command: whose settings these are.
        given: the keys and groups that the user set.
        config: composed of them; interpolations as they are written.
    """
    from omegaconf import OmegaConf

    from sd_aanet.models import find_method  # imports torch, for which a job's turn has come

    text = OmegaConf.to_yaml(config)
    loaded = config.get("checkpoint") is not None and _OF_A_CHECKPOINT.get(command, ())
    for key in given:
        if loaded and key.partition(".")[0] in loaded:
            yield f"{key} has no effect beside checkpoint={config.checkpoint}, which brings its own: leave it out"
        elif key in _OF_A_LIST and config.get("episodes_file") is not None:
            yield f"{key} has no effect beside episodes_file={config.episodes_file}, a list as it is: leave it out"
        elif _FILLING.match(key) and f"${{{key}}}" not in text:
            yield f"{key} has no effect here, nothing takes it: leave it out, or see sd-aanet {command} --help"
        elif key in ("backbone.mid", "backbone.high"):
            method = find_method(config.model.method)
            if key.removeprefix("backbone.") not in method.takes:
                yield f"{key} has no effect with model={method.name}, which takes outputs of its own: leave it out"
