"""conf/: every choice composes, fits the code, and explains each of its keys."""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from networks import ONLY
from sd_aanet.backbones import backbone_rules
from sd_aanet.building import network_arguments, sizes
from sd_aanet.data.sources.opening import SOURCES
from sd_aanet.errors import ConfigError
from sd_aanet.files import config_folder
from sd_aanet.models import build_method, find_method, methods
from sd_aanet.rules import Rule, check
from sd_aanet.settings import RULES, TEXTS, flat
from sd_aanet.training.optimizers import RULES as OPTIMIZER_RULES
from sd_aanet.training.optimizers import build_optimizer

CONF = config_folder()
GROUPS = {
    folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()
}
DATASETS, BACKBONES, MODELS = GROUPS["dataset"], GROUPS["backbone"], GROUPS["model"]


THREE_STRIDES = re.compile("resnet|efficientnet|dinov3_convnext")
"""The backbones that HSNet can look at."""


@functools.cache
def composed(command: str, *overrides: str) -> dict[str, Any]:
    """What these make together; not to be changed, for others look at it, too: composing takes most of these tests."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, [*overrides, "out=somewhere"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def keys(config: Any, prefix: str = "") -> set[str]:
    if not isinstance(config, dict):
        return set()
    return {f"{prefix}{k}" for k in config}.union(*(keys(v, f"{prefix}{k}.") for k, v in config.items()))


def test_the_groups_hold_what_the_readme_names() -> None:
    assert set(GROUPS) >= {"dataset", "recipe", "backbone", "model", "optimizer", "protocol", "strategy", "logger"}
    assert GROUPS["recipe"] == sorted([*DATASETS, "photographs"]), "each data set brings its own"
    assert {"sgd_poly", "adam", "adamw"} <= set(GROUPS["optimizer"])
    assert {"sd_aanet", "baseline", "prototype"} <= set(MODELS)
    assert {"pascal5i", "coco20i", "fss1000", "folder", "shapes"} == set(DATASETS)
    assert {"strict", "hsnet", "pfenet", "published"} == set(GROUPS["protocol"])
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "vgg16_bn"} <= set(BACKBONES)


@pytest.mark.parametrize(("model", "backbone"), list(itertools.product(MODELS, BACKBONES)))
def test_every_method_is_made_of_every_backbone(model: str, backbone: str) -> None:
    config = composed("train", f"model={model}", f"backbone={backbone}")
    check(config, rules_of(config))
    with torch.device("meta"):
        arguments = network_arguments(config["backbone"], config["model"])
        if model == "hsnet" and not THREE_STRIDES.match(backbone):
            with pytest.raises(ConfigError, match="8, 16 and 32"):
                build_method(**arguments)
            return
        if backbone != ONLY.get(model, backbone):
            with pytest.raises(ConfigError, match=f"backbone={ONLY[model]}"):
                build_method(**arguments)
            return
        method = build_method(**arguments)
    assert config["model"]["method"] == method.name
    assert method.label
    assert method.backbone.label
    for size in sizes(config, method.backbone.grid):
        method.backbone.grid.check(size)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_composes_with_its_recipe(dataset: str) -> None:
    config = composed("train", f"dataset={dataset}", *([] if dataset == "shapes" else ["dataset.root=some"]))
    check(config, rules_of(config))
    assert config["dataset"]["name"] == dataset
    assert config["dataset"]["source"]["_target_"] in SOURCES
    recipe = config["recipe"]
    assert set(recipe) == set(composed("train")["recipe"]), "what any model may take of it"
    assert [config[key] for key in ("augment", "batch_size", "steps", "lr", "val_every")] == [
        recipe[key] for key in ("augment", "batch_size", "steps", "lr", "val_every")
    ]
    assert [config["model"][key] for key in ("channels", "init", "dropout")] == [
        recipe[key] for key in ("channels", "init", "dropout")
    ]
    assert [config[key] for key in ("held_out", "min_object_pixels")] == [
        config["dataset"]["benchmark"][key] for key in ("held_out", "min_object_pixels")
    ]


def test_every_method_has_a_file_of_its_own() -> None:
    assert {composed("train", f"model={model}")["model"]["method"] for model in MODELS} == set(methods())


@pytest.mark.parametrize("name", GROUPS["optimizer"])
def test_every_optimizer_builds_and_its_rate_is_the_default(name: str) -> None:
    config = composed("train", f"optimizer={name}")
    assert config["lr"] == config["optimizer"]["lr"]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, _ = build_optimizer([weight], 10, **config["optimizer"])
    assert optimizer.param_groups[0]["lr"] == config["lr"]


def test_one_size_is_meant_everywhere() -> None:
    """Where `size` alone is given, nothing is scored at another one."""
    grid = build_method("prototype", {"name": "resnet18"}).backbone.grid
    for dataset, recipe in (("shapes", (97, 97)), ("pascal5i", (321, 473)), ("folder", (225, 225))):
        root = [] if dataset == "shapes" else ["dataset.root=some"]
        given = {
            "size=225": (225, 225),
            "size=225 test_size=97": (225, 97),
            "test_size=97": (recipe[0], 97),
            "": recipe,
        }
        for settings, expected in given.items():
            assert sizes(composed("train", f"dataset={dataset}", *root, *settings.split()), grid) == expected
        assert sizes(composed("evaluate", "checkpoint=null", f"dataset={dataset}", *root), grid) == recipe


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_every_other_choice_composes(command: str) -> None:
    defaults = composed(command)
    for group in set(GROUPS) & set(defaults):
        for choice in GROUPS[group]:
            root = [] if group != "dataset" or choice == "shapes" else ["dataset.root=some"]
            config = composed(command, f"{group}={choice}", *root)
            check(config, rules_of(config))


BARE = ("- override", "- _self_", "- sd_aanet", "- folder", "- pascal5i", "- coco20i", "defaults:")
"""Entries of defaults lists that say all themselves."""
EXPERIMENTS = {
    "pascal5i_resnet50": ("pascal5i", "resnet50", "published", "batch", "novel", 0.025, 4, 1488 * 200),
    "pascal5i_resnet50_strict": ("pascal5i", "resnet50", "strict", "frozen", "base", 0.025, 4, 1488 * 200),
    "coco20i_resnet101": ("coco20i", "resnet101", "published", "batch", "novel", 0.05, 8, 10260 * 50),
    "coco20i_resnet101_strict": ("coco20i", "resnet101", "strict", "frozen", "base", 0.05, 8, 10260 * 50),
}


def test_every_experiment_is_a_recipe_whole() -> None:
    assert set(GROUPS["experiment"]) == {*EXPERIMENTS, "hsnet_pascal5i_resnet50"}
    for name, expected in EXPERIMENTS.items():
        config = composed("train", f"experiment={name}", "dataset.root=some", "fold=2")
        check(config, rules_of(config))
        assert (
            *(config[key]["name"] for key in ("dataset", "backbone", "protocol")),
            config["backbone"]["norm"],
            *(config[key] for key in ("select_on", "lr", "batch_size", "steps")),
        ) == expected
        assert (config["size"], config["test_size"], config["augment"]) == (None, None, "published")
        assert (config["recipe"]["size"], config["recipe"]["test_size"]) == (321, 473)
        assert config["model"]["variant"] == "published"
        assert [config["optimizer"][key] for key in ("momentum", "weight_decay", "power")] == [0.9, 0.0001, 0.9]
        assert config["model"]["loss"]["alpha"] == 50
        bins = [60, 30, 15, 8] if "pascal" in name else [1.0, 0.5, 0.25, 0.125]
        assert config["model"]["bins"] == bins
        assert config["test_episodes"] == (4000 if name == "coco20i_resnet101" else 1000)
        assert config["fold"] == 2


def test_hsnet_s_experiment_is_its_published_recipe() -> None:
    config = composed("train", "experiment=hsnet_pascal5i_resnet50", "dataset.root=some")
    assert (config["model"]["method"], config["optimizer"]["name"], config["lr"]) == ("hsnet", "adam", 0.001)
    assert [config["recipe"][key] for key in ("size", "test_size")] == [400, 400]
    assert [config[key] for key in ("batch_size", "augment", "resolution")] == [20, "none", "squashed"]


def test_predict_composes() -> None:
    config = composed("predict", "checkpoint=a", "support=[b:c]", "query=d")
    assert config["support"] == ["b:c"]


def test_the_default_is_the_embedded_data_set_and_needs_nothing() -> None:
    config = composed("train")
    assert config["dataset"]["name"] == "shapes"
    assert config["backbone"]["weights"] is None
    assert config["select_on"] == "base"
    assert config["early_stopping"] is None
    assert config["gradient_clip"] is None
    assert config["logger"]["name"] == "csv"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_has_a_comment(path: Path) -> None:
    text = path.read_text().partition("\nhydra:")[0]
    assert text.startswith("# "), "says what it is in its first line"
    for line in text.splitlines():
        plain = line.strip().startswith(
            ("#", "- override", "- _self_", "- sd_aanet", "- folder", "- pascal5i", "- coco20i", "defaults:")
        )
        bare = plain or not line.strip()
        assert bare or "#" in line, line


COMMANDS = ("train", "evaluate", "episodes", "check")


def rules_of(config: dict[str, Any]) -> dict[str, Rule]:
    """Those of everything that a configuration chooses, by whole keys."""
    rules = dict(RULES)
    chosen: dict[str, Mapping[str, Rule]] = {}
    if "source" in config.get("dataset", {}):
        chosen["dataset.source."] = SOURCES[config["dataset"]["source"]["_target_"]].rules
    if "model" in config:
        chosen["model."] = find_method(config["model"]["method"]).rules
        chosen["backbone."] = backbone_rules(config["backbone"]["name"])
    if "optimizer" in config:
        chosen["optimizer."] = OPTIMIZER_RULES
    return rules | {f"{prefix}{key}": rule for prefix, some in chosen.items() for key, rule in some.items()}


def choices(command: str) -> Iterator[dict[str, Any]]:
    for group in ("dataset", "model", "backbone", "logger"):
        for choice in GROUPS[group] if group in composed(command) else ():
            root = [] if group != "dataset" or choice == "shapes" else ["dataset.root=some"]
            yield composed(command, f"{group}={choice}", *root)


def test_settings_and_configurations_name_one_another() -> None:
    """A renamed key would leave its rule and its uses without effect, a new one has to say what it may be."""
    given = {key for command in COMMANDS for key in composed(command) if key not in GROUPS}
    assert given == {name for name in RULES if "." not in name} - {"support", "query"}
    known = set().union(*(keys(config) for command in COMMANDS for config in choices(command)))
    for command in COMMANDS:
        for config in choices(command):
            own = {
                key for key in rules_of(config) if "." in key and key not in RULES and not key.startswith("optimizer.")
            }
            assert own - keys(config) <= {"dataset.source.folds"}, "which the benchmarks of four have not in conf/"
    assert {key for key in RULES if "." in key} <= known


SHOWN = ("recipe.", "protocol.", "dataset.benchmark.", "optimizer.lr")
"""What only fills settings, which have the rules."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_has_a_rule(command: str) -> None:
    for config in choices(command):
        assert {key for key, _ in flat(config) if not key.startswith(SHOWN)} <= set(rules_of(config))


def test_every_setting_whose_spelling_counts_keeps_it() -> None:
    rules = [rules_of(config) for command in COMMANDS for config in choices(command)]
    found = {key for some in rules for key, rule in some.items() if rule.text}
    assert found == {key for key in TEXTS if not key.startswith("hydra.")}
