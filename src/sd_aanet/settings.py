"""The settings of data, protocol, training and evaluation: what each may be, and who asks for it.

The one place that lists them. A new setting is a line here, one in conf/ (its default, and what it means), and its use.
Those of a method, a backbone, a data set or an optimizer stand with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sd_aanet.rules import SWITCH, Rule, number, one_of, or_null, some, text, whole

Use = Literal[
    "data",  # an argument of EpisodeDataModule, by the same name
    "protocol",  # a result's protocol has it, as the data module does
    "shown",  # it stands under the table of an evaluation
    "recorded",  # a checkpoint tells it of its training
    "trained",  # a result's protocol has it as the training did, whatever the evaluation would like
    "listed",  # a list of episodes says it of itself
    "column",  # a report has columns for it: no switch of a row's protocol
    "collected",  # the runs of a report's row may differ in it, whose protocol lists all values
    "recipe",  # it sets a report's rows apart, and is known from the training's config.yaml alone
    "free",  # no result depends on it: a job of a sweep is the same job without it
]


@dataclass(frozen=True)
class Setting:
    """A setting of the command line.

    Attributes:
        name: its key in conf/.
        rule: what it may be.
        uses: where it counts.
    """

    name: str
    rule: Rule
    uses: tuple[Use, ...] = ()


def _setting(name: str, rule: Rule, *uses: Use) -> Setting:
    return Setting(name, rule, uses)


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(map(whole(0).holds, value))
    return value in ("auto", -1) or whole(1).holds(value)


DEVICES = Rule("a number of devices, auto, or a list of their indices", _devices, "auto")
WORKERS = Rule("auto, or a whole number of at least 0", lambda v: v == "auto" or whole(0).holds(v), "auto")
PRECISIONS = ("auto", "32-true", "tf32", "bf16-mixed", "16-mixed", "64-true")
"""Lightning's names, and "tf32": float32 whose products a GPU rounds."""

SETTINGS = (
    # Classes and episodes
    _setting("fold", whole(0), "data", "protocol", "shown", "recorded", "listed", "column"),
    _setting("way", whole(1), "data", "protocol", "shown", "recorded", "listed"),
    _setting("shot", whole(1), "data", "protocol", "recorded", "trained", "listed", "column"),
    _setting("test_shot", whole(1), "data", "protocol", "shown", "column"),
    _setting("episodes", whole(1, 1000), "protocol", "shown"),
    _setting("val_episodes", whole(1, 200), "data", "protocol", "recorded", "trained"),
    _setting("test_episodes", whole(0), "protocol"),
    _setting("seeds", whole(1, 5), "shown"),
    _setting("seed", whole(0), "data", "protocol", "recorded", "listed", "collected"),
    _setting("episodes_file", or_null(text("list.json")), "data", "protocol", "collected"),
    _setting("min_object_pixels", whole(0), "data", "protocol", "shown", "listed"),
    _setting("short_classes", one_of("refuse", "skip"), "data", "protocol", "listed"),
    _setting("order", one_of("classes", "pairs"), "data", "protocol", "shown", "listed"),
    _setting("novel_in_train", one_of("background", "drop"), "data", "protocol", "shown", "recorded", "trained"),
    _setting("select_on", one_of("base", "novel", "none"), "data", "protocol", "shown", "recorded", "trained"),
    _setting("held_out", whole(0), "data", "protocol", "recorded", "trained"),
    # Pictures
    _setting("size", or_null(whole(1, 473)), "protocol", "shown"),
    _setting("test_size", or_null(whole(1, 473)), "protocol"),
    _setting("resize", or_null(text("squash")), "data", "protocol", "shown"),
    _setting("augment", text("none"), "data", "protocol", "recorded", "trained"),
    _setting("batch_size", whole(1, 4), "data", "recipe"),
    _setting("test_batch_size", whole(1, 8), "data"),
    # Scores
    _setting("resolution", one_of("original", "squashed", "both"), "shown"),
    _setting("ignore_boundary", SWITCH, "data", "protocol", "shown"),
    _setting("scales", some(number(1, zero=False), "a list of numbers above 0", "[0.8,1.0,1.2]"), "shown"),
    _setting("flip", SWITCH, "shown"),
    # Training
    _setting("steps", whole(1, 900), "recorded"),
    _setting("lr", number(0.01, zero=False), "recipe"),
    _setting("gradient_clip", or_null(number(1.0, zero=False)), "recipe"),
    _setting("val_every", whole(1, 300)),
    _setting("early_stopping", or_null(whole(1, 5)), "recipe"),
    _setting("features", one_of("compute", "cache")),
    _setting("precision", one_of(*PRECISIONS)),
    # The machine and its files
    _setting("strategy.devices", DEVICES),
    _setting("num_nodes", whole(1)),
    _setting("workers", WORKERS, "free"),
    _setting("cache_gb", number(8, zero=False), "free"),
    _setting("cache_dir", or_null(text("features")), "free"),
    _setting("checkpoint", or_null(text("best.ckpt"))),
    _setting("resume", or_null(text("runs/latest")), "free"),
    _setting("out", text("runs/mine"), "free"),
    _setting("sweep", or_null(text("mine")), "free"),
)
RULES = {setting.name: setting.rule for setting in SETTINGS}


def named(use: Use) -> tuple[str, ...]:
    """The names of the settings with a use."""
    return tuple(setting.name for setting in SETTINGS if use in setting.uses)


def data_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's settings that the data module takes as they are."""
    return {name: config[name] for name in named("data") if name in config}


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by their whole keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
