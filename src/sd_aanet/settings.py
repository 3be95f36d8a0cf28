"""What kind of value each setting takes, checked once, before anything is read or written.

Names (of a variant, an augmentation, a fold's data set) are checked where they are used: only their owner knows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sd_aanet.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        expected: in words, behind "expected".
        holds: whether a value is that.
        example: a value that works, for the message.
    """

    expected: str
    holds: Callable[[Any], bool]
    example: object


def _yaml(value: object) -> str:
    """A value as one would write it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _whole(least: int, example: int | None = None) -> Rule:
    return Rule(
        f"a whole number of at least {least}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        least if example is None else example,
    )


def _number(example: float, zero: bool = True, most: float = math.inf) -> Rule:
    def holds(v: Any) -> bool:
        real = isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        return real and (v >= 0 if zero else v > 0) and v <= most

    bounds = "of at least 0" if zero else "above 0"
    return Rule(f"a number {bounds}{'' if most == math.inf else f' and at most {most:g}'}", holds, example)


def _one_of(*choices: object) -> Rule:
    def holds(v: Any) -> bool:
        return any(v == choice and type(v) is type(choice) for choice in choices)  # 1 == True

    return Rule(f"one of {', '.join(map(_yaml, choices))}", holds, choices[0])


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda v: v is None or rule.holds(v), rule.example)


def _positive_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_number(1, zero=False).holds(v) for v in value)


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(map(_whole(0).holds, value))
    return value in ("auto", -1) or _whole(1).holds(value)


SWITCH = _one_of(True, False)
PRECISIONS = ("auto", "32-true", "tf32", "bf16-mixed", "16-mixed", "64-true")
"""Lightning's names, and "tf32": float32 whose products a GPU rounds."""
SOURCE = {
    "dataset.source.size": _whole(1, 97),
    "dataset.source.seed": _whole(0),
    "dataset.source.images": _or_null(_whole(1, 500)),
    "dataset.source.folds": _or_null(_whole(1, 4)),
    "dataset.source.val_share": _number(0.3, zero=False, most=1),
}
EPISODES = SOURCE | {
    **{key: _whole(0) for key in ("fold", "seed", "min_object_pixels")},
    "shot": _whole(1),
    "order": _one_of("classes", "pairs"),
    "short_classes": _one_of("refuse", "skip"),
}
COMMON = EPISODES | {
    "workers": Rule("auto, or a whole number of at least 0", lambda v: v == "auto" or _whole(0).holds(v), "auto"),
    "batch_size": _whole(1, 4),
    "seeds": _whole(1, 5),
    "resolution": _one_of("original", "squashed", "both"),
    "ignore_boundary": SWITCH,
    "cache_gb": _number(8, zero=False),
    "precision": _one_of(*PRECISIONS),
    "backbone.trainable": _one_of("auto", True, False),
    "model.channels": _whole(1, 64),
    "way": _whole(1),
    **{f"model.{key}": SWITCH for key in ("sdpm", "saam", "prior", "bounded_attention")},
    "model.normalise": SWITCH,
    "model.bins": Rule("a list of numbers above 0", _positive_numbers, "[1.0,0.5,0.25,0.125]"),
    "model.dropout": _number(1.0, most=2),
    **{f"model.loss.{key}": _number(1.0) for key in ("alpha", "beta", "auxiliary")},
    "model.loss.temperature": _or_null(_number(1.0, zero=False)),
    "model.loss.detach_teacher": _or_null(SWITCH),
    "strategy.devices": Rule("a number of devices, auto, or a list of their indices", _devices, "auto"),
}
RULES = {
    "train": COMMON
    | {
        "num_nodes": _whole(1),
        "features": _one_of("compute", "cache"),
        "size": _or_null(_whole(1, 473)),
        "test_size": _or_null(_whole(1, 473)),
        "steps": _whole(1, 900),
        "lr": _number(0.01, zero=False),
        "optimizer.momentum": _number(0.9, most=1),
        "optimizer.weight_decay": _number(0.0001),
        "optimizer.power": _number(0.9),
        "gradient_clip": _or_null(_number(1.0, zero=False)),
        "held_out": _whole(0),
        "val_episodes": _whole(1, 200),
        "val_every": _whole(1, 300),
        "early_stopping": _or_null(_whole(1, 5)),
        "test_episodes": _whole(0),
        "test_shot": _whole(1),
        "test_batch_size": _whole(1, 8),
    },
    "evaluate": COMMON
    | {
        "size": _or_null(_whole(1, 473)),
        "episodes": _whole(1, 1000),
        "scales": Rule("a list of numbers above 0", _positive_numbers, "[0.8,1.0,1.2]"),
        "flip": SWITCH,
    },
    "episodes": EPISODES | {"episodes": _whole(1, 1000)},
    "check": SOURCE | {"shot": _whole(1), "min_object_pixels": _whole(0)},
    "predict": {"precision": _one_of("32-true", "tf32", "bf16-mixed", "auto")},
}
PATHS = (
    *("checkpoint", "resume", "out", "sweep", "cache_dir", "episodes_file", "backbone.weights"),
    *("dataset.source.root", "dataset.source.lists"),
)
"""Settings that are text even where they look like a number: `out=2026`."""


def check_settings(command: str, config: dict[str, Any]) -> None:
    """Refuse values of another kind than their settings take; turn paths that YAML reads as numbers into text.

    Args:
        command: whose rules hold.
        config: a composed configuration as plain values; changed in place.

    Raises:
        ConfigError: the first setting that cannot be that value.
    """
    for key, rule in RULES.get(command, {}).items():
        parent, name = _parent(config, key)
        if name in parent and not rule.holds(parent[name]):
            raise ConfigError(f"{key}={_yaml(parent[name])}, expected {rule.expected}: set {key}={_yaml(rule.example)}")
    for key in PATHS:
        parent, name = _parent(config, key)
        if isinstance(parent.get(name), int | float):
            parent[name] = str(parent[name])


def _parent(config: Mapping[str, Any], key: str) -> tuple[Any, str]:
    *parents, name = key.split(".")
    inner: Any = config
    for part in parents:
        inner = inner.get(part, {}) if isinstance(inner, Mapping) else {}
    return (inner if isinstance(inner, Mapping) else {}), name
