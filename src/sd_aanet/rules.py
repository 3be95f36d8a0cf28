"""What values settings may take, in words and with an example for a user who gave another one.

Whoever owns a setting says its rule: `settings.py` those of data, training and evaluation; a method, a backbone, a data
set and the optimizers their own. Names (of a variant, an augmentation) are checked where they are used.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_aanet.arguments import word
from sd_aanet.errors import ConfigError

MOST = 10**9
"""The largest whole number: what counts pictures, steps or pixels beyond it was mistyped, and fits no array's index."""


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        expected: in words, behind "expected".
        holds: whether a value is that.
        example: a value that works, for the message.
        text: whether it is a path, a name or a list of such, whose spelling counts: `out=2026_01_15`.
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


def whole(least: int, example: int | None = None, most: int = MOST) -> Rule:
    """A whole number from `least` up to `most`."""
    return Rule(
        f"a whole number of at least {least}{'' if most == MOST else f' and at most {most}'}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most,
        least if example is None else example,
    )


def number(example: float, zero: bool = True, most: float = math.inf) -> Rule:
    """A finite number from 0 on, or above it, up to `most`."""

    def holds(v: Any) -> bool:
        real = isinstance(v, int | float) and not isinstance(v, bool) and v <= sys.float_info.max  # also of 10**400
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


def numbers(example: str, most: float = math.inf) -> Rule:
    """A list of numbers above 0, up to `most`, at least one."""
    each = number(1, zero=False, most=most)
    holds = each.holds
    return Rule(
        each.expected.replace("a number", "a list of numbers"),
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(holds, v)),
        example,
    )


def text(example: str) -> Rule:
    """A path or a name."""
    return Rule("a text", lambda v: isinstance(v, Path) or (isinstance(v, str) and v != ""), example, text=True)


def texts(example: str) -> Rule:
    """A path or a name, or a list of such."""
    holds = text("").holds
    return Rule(
        "a text or a list of texts",
        lambda v: holds(v) or (isinstance(v, list | tuple) and len(v) > 0 and all(map(holds, v))),
        example,
        text=True,
    )


SWITCH = one_of(True, False)


def check(
    values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "", names: Collection[str] | None = None
) -> None:
    """Refuse values that break their rules; those that are missing break none.

    Args:
        values: plain ones; in paths `~` is replaced by the home folder, in place.
        rules: by the whole key, `loss.alpha` for a value of a mapping in them.
        prefix: of the keys on the command line: `model.`.
        names: of the values that there are; None where others pass.

    Raises:
        ConfigError: the first value that cannot be that, or has another name.
    """
    for name in values if names is not None else ():
        if name not in (names or ()):
            raise ConfigError(f"setting '{prefix}{name}' is unknown: leave it out")
    for key, rule in rules.items():
        *parents, name = key.split(".")
        place: Any = values
        advice = f"set {word(f'{prefix}{key}={_yaml(rule.example)}')}"
        for depth, parent in enumerate(parents):
            place = place.get(parent)
            if place is not None and not isinstance(place, Mapping):
                above = f"{prefix}{'.'.join(parents[: depth + 1])}"
                raise ConfigError(f"{above}={_yaml(place)}, expected settings of its own: leave it out, or {advice}")
            if place is None:
                break
        if place is None or name not in place:
            continue
        if rule.text and isinstance(place, dict):
            place[name] = at_home(place[name])
        if not rule.holds(place[name]):
            far = f", up to {MOST}" if isinstance(place[name], int) and place[name] > MOST else ""
            raise ConfigError(f"{prefix}{key}={_yaml(place[name])}, expected {rule.expected}{far}: {advice}")


def at_home(value: Any) -> Any:
    """A path from the user's home folder, where it starts with `~`; of a list each."""
    if isinstance(value, list):
        return [at_home(each) for each in value]
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    path = os.path.expanduser(value)
    if path == value:
        raise ConfigError(f"'{value}': no home folder of that name is known, write the whole path")
    return path
