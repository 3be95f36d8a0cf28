"""Pure torch: networks that segment a query from supports."""

from __future__ import annotations

from typing import Any

from sd_aanet.errors import ConfigError
from sd_aanet.models.base import FewShotNetwork
from sd_aanet.models.prototype import CosinePrototype
from sd_aanet.models.sd_aanet import SDAANet

METHODS: dict[str, type[FewShotNetwork]] = {"sd_aanet": SDAANet, "prototype": CosinePrototype}


def build_network(method: str = "sd_aanet", **arguments: Any) -> FewShotNetwork:
    """A network with random weights: `method` is a key of `METHODS`, the arguments are its class's.

    Raises:
        ConfigError: an unknown method, or what the class itself raises.
    """
    if method not in METHODS:
        raise ConfigError(f"method '{method}' is unknown: choose one of {', '.join(METHODS)}")
    return METHODS[method](**arguments)
