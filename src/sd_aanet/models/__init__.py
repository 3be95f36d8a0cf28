"""Few-shot methods: pure torch, one file each (or a folder), over a backbone."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from sd_aanet.backbones import build_backbone, takes
from sd_aanet.errors import ConfigError
from sd_aanet.models.base import FewShotMethod, Method
from sd_aanet.rules import check


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by its name: the classes with a `name` in this package's modules, and no others."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    values = [value for name in modules for value in vars(importlib.import_module(f"{__name__}.{name}")).values()]
    classes = [value for value in values if isinstance(value, type) and issubclass(value, FewShotMethod)]
    return {c.name: c for c in classes if "name" in vars(c)}


def find_method(name: str) -> type[Method]:
    """A method's class.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in methods():
        raise ConfigError(f"method '{name}' is unknown: choose one of {', '.join(sorted(methods()))}")
    return methods()[name]


def build_method(method: str, backbone: Mapping[str, Any], **arguments: Any) -> Method:
    """A method over a backbone, with random weights.

    Args:
        method: its name.
        backbone: arguments of `build_backbone`.
        arguments: of the method's class.

    Raises:
        ConfigError: an unknown method or backbone, an argument that the method does not have or that breaks its rule,
            or what these raise themselves.
    """
    chosen = find_method(method)
    strided: dict[str, Any] = (
        {"output_stride": chosen.output_stride} if takes(backbone["name"], "output_stride") else {}
    )
    check(arguments, chosen.rules, "model.")
    known = _settings(chosen) | set(chosen.rules)
    if unknown := ({*arguments, *(f"loss.{term}" for term in arguments.get("loss") or ())}) - known:
        raise ConfigError(f"method {method} has no setting {', '.join(sorted(unknown))}: leave it out")
    return chosen(build_backbone(**strided | dict(backbone)), **arguments)


def _settings(method: type[Method]) -> set[str]:
    """The names of a class's arguments, those that it hands on to its base among them."""
    names: set[str] = set()
    for base in method.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base).parameters
            names |= set(parameters)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names
