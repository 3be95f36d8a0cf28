"""What values settings may take, in words and with an example for a user who gave another one.

Whoever owns a setting says its rule: `settings.py` those of data, training and evaluation; a method, a backbone, a data
set and the optimizers their own. Names (of a variant, an augmentation) are checked where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_aanet.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        expected: in words, behind "expected".
        holds: whether a value is that.
        example: a value that works, for the message.
        text: whether a number is its spelling: `out=2026`.
    """

    expected: str
    holds: Callable[[Any], bool]
    example: object
    text: bool = False


def _yaml(value: object) -> str:
    """A value as one would write it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def whole(least: int, example: int | None = None) -> Rule:
    """A whole number from `least` on."""
    return Rule(
        f"a whole number of at least {least}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        least if example is None else example,
    )


def number(example: float, zero: bool = True, most: float = math.inf) -> Rule:
    """A finite number from 0 on, or above it, up to `most`."""

    def holds(v: Any) -> bool:
        real = isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        return real and (v >= 0 if zero else v > 0) and v <= most

    bounds = "of at least 0" if zero else "above 0"
    return Rule(f"a number {bounds}{'' if most == math.inf else f' and at most {most:g}'}", holds, example)


def one_of(*choices: object) -> Rule:
    """One of these values."""

    def holds(v: Any) -> bool:
        return any(v == choice and type(v) is type(choice) for choice in choices)  # 1 == True

    return Rule(f"one of {', '.join(map(_yaml, choices))}", holds, choices[0])


def or_null(rule: Rule) -> Rule:
    """What the rule says, or nothing."""
    return Rule(f"{rule.expected}, or null", lambda v: v is None or rule.holds(v), rule.example, rule.text)


def numbers(example: str) -> Rule:
    """A list of numbers above 0, at least one."""
    holds = number(1, zero=False).holds
    return Rule("a list of numbers above 0", lambda v: isinstance(v, list) and v != [] and all(map(holds, v)), example)


def text(example: str) -> Rule:
    """A path or a name."""
    return Rule("a text", lambda v: isinstance(v, str | Path), example, text=True)


SWITCH = one_of(True, False)


def _named(value: Any) -> bool:
    some = value if isinstance(value, list | tuple) else [value]
    return len(some) > 0 and all(isinstance(name, str) for name in some)


OUTPUTS = Rule("a name of an output, or a list of them, or null", lambda v: v is None or _named(v), None)
"""Of a backbone."""


def check(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Refuse values that break their rules; those that are missing break none.

    Args:
        values: plain ones; texts that YAML reads as numbers are changed in place.
        rules: by the whole key, `loss.alpha` for a value of a mapping in them.
        prefix: of the keys on the command line: `model.`.

    Raises:
        ConfigError: the first value that cannot be that.
    """
    for key, rule in rules.items():
        *parents, name = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, Mapping) else None
        if not isinstance(place, dict) or name not in place:
            continue
        if rule.text and isinstance(place[name], int | float):
            place[name] = str(place[name])
        if not rule.holds(place[name]):
            whole_key, given, example = f"{prefix}{key}", _yaml(place[name]), _yaml(rule.example)
            raise ConfigError(f"{whole_key}={given}, expected {rule.expected}: set {whole_key}={example}")
