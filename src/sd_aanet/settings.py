"""The settings of data, protocol, training and evaluation: what each may be, and who asks for it.

The one place that lists them. A new setting is a line here, one in conf/ (its default, and what it means), and its use.
Those of a method, a backbone, a data set or an optimizer stand with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sd_aanet.errors import UNREADABLE, ConfigError
from sd_aanet.rules import SWITCH, Rule, number, numbers, one_of, or_null, text, texts, whole

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
    uses: Set[Use] = frozenset()


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(map(whole(0).holds, value))
    return value in ("auto", -1) or whole(1).holds(value)


DEVICES = Rule("a number of devices, auto, or a list of their indices", _devices, "auto")
WORKERS = Rule("auto, or a whole number of at least 0", lambda v: v == "auto" or whole(0, most=999).holds(v), "auto")
EPISODES = 10**6
"""The longest list of episodes, each of which is drawn before the first one is looked at; the field takes 20,000."""


def _support(value: Any) -> bool:
    def pair(v: Any) -> bool:
        if not isinstance(v, dict):
            return isinstance(v, str)
        texts = all(isinstance(v.get(key, ""), str) for key in ("name", "image", "mask"))
        marks = {"mask", "box", "points", "polygons"} & set(v)
        return texts and "image" in v and len(marks) == 1 and set(v) <= {"name", "image", "not", *marks}

    return pair(value) or (isinstance(value, list) and len(value) > 0 and all(map(pair, value)))


PAIRS = "[img1.jpg:mask1.png]"
SUPPORT = Rule(
    f"pairs of a picture and its mask, {PAIRS} or [{{image: img1.jpg, mask: mask1.png}}] (or box, points, polygons "
    "in place of mask, and a name for each of several things)",
    _support,
    PAIRS,
    text=True,
)
PRECISIONS = ("auto", "32-true", "tf32", "bf16-mixed", "16-mixed")
"""Lightning's names, and "tf32": float32 whose products a GPU rounds."""

SETTINGS = (
    # Classes and episodes
    Setting("fold", whole(0), {"data", "protocol", "shown", "recorded", "listed", "column"}),
    Setting("way", whole(1), {"data", "protocol", "shown", "recorded", "listed"}),
    Setting("shot", whole(1), {"data", "protocol", "recorded", "trained", "listed", "column"}),
    Setting("test_shot", whole(1), {"data", "protocol", "shown", "column"}),
    Setting("episodes", whole(1, 1000, EPISODES), {"protocol", "shown"}),
    Setting("val_episodes", whole(1, 200, EPISODES), {"data", "protocol", "recorded", "trained"}),
    Setting("test_episodes", whole(0, most=EPISODES), {"protocol"}),
    Setting("seeds", whole(1, 5, 1000), {"shown"}),
    Setting("seed", whole(0), {"data", "protocol", "recorded", "listed", "collected"}),
    Setting("episodes_file", or_null(text("list.json")), {"data", "protocol", "collected"}),
    Setting("min_object_pixels", whole(0), {"data", "protocol", "shown", "listed"}),
    Setting("short_classes", one_of("refuse", "skip"), {"data", "protocol", "listed"}),
    Setting("order", one_of("classes", "pairs"), {"data", "protocol", "shown", "listed"}),
    Setting("novel_in_train", one_of("background", "drop"), {"data", "protocol", "shown", "recorded", "trained"}),
    Setting("select_on", one_of("base", "novel", "none"), {"data", "protocol", "shown", "recorded", "trained"}),
    Setting("held_out", whole(0), {"data", "protocol", "recorded", "trained"}),
    # Pictures
    Setting("size", or_null(whole(1, 473, 10_000)), {"protocol", "shown"}),
    Setting("test_size", or_null(whole(1, 473, 10_000)), {"protocol"}),
    Setting("resize", or_null(text("squash")), {"data", "protocol", "shown"}),
    Setting("augment", text("none"), {"data", "protocol", "recorded", "trained"}),
    Setting("batch_size", whole(1, 4), {"data", "recipe"}),
    Setting("test_batch_size", whole(1, 8), {"data"}),
    # Scores
    Setting("resolution", one_of("original", "squashed", "both"), {"shown"}),
    Setting("ignore_boundary", SWITCH, {"data", "protocol", "shown"}),
    Setting("scales", numbers("[0.8,1.0,1.2]"), {"shown"}),
    Setting("flip", SWITCH, {"shown"}),
    # Training
    Setting("steps", whole(1, 900), {"recorded"}),
    Setting("lr", number(0.01, zero=False), {"recipe"}),
    Setting("gradient_clip", or_null(number(1.0, zero=False)), {"recipe"}),
    Setting("val_every", whole(1, 300)),
    Setting("early_stopping", or_null(whole(1, 5)), {"recipe"}),
    Setting("features", one_of("compute", "cache")),
    Setting("precision", one_of(*PRECISIONS), {"recipe"}),
    # What is chosen by name; each has more settings of its own
    Setting("dataset.name", text("shapes")),
    Setting("dataset.root", text("mine")),
    Setting("dataset.source._target_", text("sd_aanet.data.sources.folder.Folder")),
    Setting("recipe.size", whole(1, 473, 10_000)),
    Setting("recipe.test_size", whole(1, 473, 10_000)),
    Setting("protocol.name", text("strict")),
    Setting("backbone.name", text("resnet50")),
    Setting("model.method", text("sd_aanet")),
    Setting("logger.name", one_of("csv", "wandb")),
    Setting("logger.project", text("mine")),
    Setting("logger.entity", or_null(text("mine"))),
    # The machine and its files
    Setting("strategy.accelerator", text("auto")),
    Setting("strategy.strategy", text("auto")),
    Setting("strategy.devices", DEVICES),
    Setting("num_nodes", whole(1)),
    Setting("workers", WORKERS, {"free"}),
    Setting("cache_gb", number(8, zero=False), {"free"}),
    Setting("cache_dir", or_null(text("features")), {"free"}),
    Setting("checkpoint", or_null(text("best.ckpt"))),
    Setting("not_finite", one_of("refuse", "use")),
    Setting("resume", or_null(text("runs/latest")), {"free"}),
    Setting("support", SUPPORT),
    Setting("query", texts("[a.jpg,b.jpg]")),
    Setting("out", text("runs/mine"), {"free"}),
    Setting("sweep", or_null(text("mine")), {"free"}),
)
RULES = {setting.name: setting.rule for setting in SETTINGS}
TEXTS = frozenset(
    {name for name, rule in RULES.items() if rule.text}
    | {"dataset.source.root", "dataset.source.lists", "dataset.source.arrangement"}
    | {"backbone.weights", "backbone.norm", "backbone.mid", "backbone.high", "backbone.stride_on"}
    | {"model.features", "model.init", "model.query_reweighting", "model.variant"}
    | {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"}
)
"""The settings of the command line whose spelling counts. Those of other owners are repeated here: to ask them would
import torch before it is known whether the command line can be read at all."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a training wrote, as plain values: what a stranger's file would have done is never done.

    Raises:
        ConfigError: the file is missing or damaged, or holds anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror}): give the folder that a training made") from None
    except (yaml.YAMLError, *UNREADABLE):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' is damaged, expected settings: give the folder that a training made")
    return _by_name(content)


def _by_name(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings by texts, at any depth: YAML has names of other kinds, too."""
    return {str(key): _by_name(value) if isinstance(value, dict) else value for key, value in content.items()}


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
