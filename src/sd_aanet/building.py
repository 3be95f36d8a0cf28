"""From a composed configuration, as plain values, to an untrained method with its backbone's weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import yaml

from sd_aanet.backbones import backbone_rules
from sd_aanet.backbones.base import Grid
from sd_aanet.backbones.int8 import stride_of
from sd_aanet.backbones.weights import load_backbone_weights
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import ConfigError
from sd_aanet.files import config_folder
from sd_aanet.models import build_method, find_method
from sd_aanet.models.base import Method
from sd_aanet.models.refined_probe import RefinedProbe
from sd_aanet.rules import check, whole

logger = logging.getLogger(__name__)
Config = dict[str, Any]


def network_arguments(backbone: Config, model: Config) -> Config:
    """The arguments of `models.build_method`, every `auto` resolved.

    Args:
        backbone: conf/backbone/*.yaml.
        model: conf/model/*.yaml.

    Raises:
        ConfigError: an unknown backbone or method, or a value that breaks the rules of its settings.
    """
    check(backbone, backbone_rules(backbone["name"]), "backbone.")
    find_method(model["method"])  # said before weights are looked for
    weights = backbone["weights"]
    trainable = (weights is None) if backbone["trainable"] == "auto" else backbone["trainable"]
    norm = ("batch" if trainable else "frozen") if backbone["norm"] == "auto" else backbone["norm"]
    options = {key: value for key, value in backbone.items() if key != "weights"}
    if options.get("stride_on") == "auto":
        options["stride_on"] = stride_of(weights)
    return {**model, "backbone": options | {"trainable": trainable, "norm": norm}}


def build_network(config: Config) -> tuple[Method, Config]:
    """An untrained method with its backbone's weights, saying aloud where these come from.

    Args:
        config: with `backbone` and `model`.

    Returns:
        It, and the arguments of `models.build_method` that make it again.
    """
    arguments = network_arguments(config["backbone"], config["model"])
    method = build_method(**arguments)
    name, weights = config["backbone"]["name"], config["backbone"]["weights"]
    if weights is None:
        state = "trains with the head" if method.backbone.trainable else "does NOT train: it stays random"
        logger.info("backbone %s starts from random weights and %s", name, state)
    else:
        logger.info("%s", load_backbone_weights(method.backbone, weights))
    return method, arguments


def untrained(config: Config) -> tuple[Method, Config, Preprocess]:
    """What `build_network` makes, in eval mode, and how pictures become its input: where there is no checkpoint.

    Args:
        config: with `backbone`, `model`, `size`, `resize` and `recipe`.
    """
    method, network = build_network(config)
    backbone = method.backbone
    size, resize = sizes(config, backbone.grid)[1], config["resize"] or "squash"
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method.eval(), network, Preprocess(size, resize, backbone.mean, backbone.std)


def ready_made(backbone: str = "efficientnet_lite2", size: int | None = None) -> tuple[Method, Preprocess]:
    """The method for photographs that needs no training: `model=refined_probe`, or `model=probe` on other backbones.

    Args:
        backbone: a file of conf/backbone.
        size: side of the input in pixels; None for 641, or the nearest that the backbone takes.

    Raises:
        ConfigError: an unknown backbone, or weights that are not here.
    """
    model = "refined_probe" if backbone == RefinedProbe.backbone_name else "probe"
    settings = {"backbone": _chosen("backbone", backbone), "model": _chosen("model", model)}
    recipe = _chosen("recipe", "photographs")
    method, _, preprocess = untrained({**settings, "size": size, "resize": None, "recipe": recipe})
    return method, preprocess


def _chosen(group: str, name: str) -> Config:
    """What a file of a group of conf/ gives by itself."""
    folder = config_folder() / group
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError(f"{group}={name} is unknown: choose one of {known}")
    return _read(folder / f"{name}.yaml")


def _read(path: Path) -> Config:
    values: Config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


def sizes(config: Config, grid: Grid) -> tuple[int, int]:
    """Sides of the input in training, and in validation, test and prediction.

    Those that are given have to fit the backbone; the recipe's are brought to the nearest that does. `size` alone means
    one size everywhere.

    Args:
        config: with `size`, `test_size` (each may be None) and `recipe`.
        grid: of the backbone.

    Raises:
        ConfigError: a given size does not fit, or one of the recipe is none.
    """
    check(config["recipe"], dict.fromkeys(("size", "test_size"), whole(1, 473)), "recipe.")
    size, test_size, recipe = config.get("size"), config.get("test_size"), config["recipe"]
    for name, value in (("size", size), ("test_size", test_size)):
        if value is not None:
            grid.check(value, name)
    both = (size or recipe["size"], test_size or size or recipe["test_size"])
    return grid.nearest(both[0]), grid.nearest(both[1])
