"""conf/: every choice composes, fits the code, and explains each of its keys."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sd_aanet.composition import config_folder
from sd_aanet.data.datamodule import NAMESPACE
from sd_aanet.models import build_network
from sd_aanet.settings import RULES, check_settings
from sd_aanet.training.build import network_arguments
from sd_aanet.training.losses import SDAANetLoss

CONF = config_folder()
GROUPS = {
    folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()
}
DATASETS, BACKBONES, MODELS = GROUPS["dataset"], GROUPS["backbone"], GROUPS["model"]


def composed(command: str, *overrides: str) -> dict[str, Any]:
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
    assert set(GROUPS) >= {"dataset", "backbone", "model", "strategy", "logger"}
    assert {"pascal5i", "coco20i", "fss1000", "folder", "shapes"} == set(DATASETS)
    assert {"strict", "hsnet", "pfenet", "published"} == set(GROUPS["protocol"])
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "vgg16_bn"} <= set(BACKBONES)


@pytest.mark.parametrize(("dataset", "model"), list(itertools.product(DATASETS, MODELS)))
def test_every_recipe_composes_and_fits_the_code(dataset: str, model: str) -> None:
    for backbone in BACKBONES:
        root = [] if dataset == "shapes" else ["dataset.root=some"]
        config = composed("train", f"dataset={dataset}", f"model={model}", f"backbone={backbone}", *root)
        check_settings("train", config)
        assert config["dataset"]["name"] == dataset
        assert config["dataset"]["source"]["_target_"].startswith(NAMESPACE)
        with torch.device("meta"):
            build_network(**network_arguments(config["backbone"], config["model"]))
        SDAANetLoss(variant=config["model"].get("variant", "published"), **config["model"]["loss"])


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_every_other_choice_composes(command: str) -> None:
    defaults = composed(command)
    for group in set(GROUPS) & set(defaults):
        for choice in GROUPS[group]:
            root = [] if group != "dataset" or choice == "shapes" else ["dataset.root=some"]
            check_settings(command, composed(command, f"{group}={choice}", *root))


BARE = ("- override", "- _self_", "- sd_aanet", "- pascal5i", "- coco20i", "defaults:")
"""Entries of defaults lists that say all themselves."""
EXPERIMENTS = {
    "pascal5i_resnet50": ("pascal5i", "resnet50", "published", "batch", "novel", 0.025, 4, 1488 * 200),
    "pascal5i_resnet50_strict": ("pascal5i", "resnet50", "strict", "frozen", "base", 0.025, 4, 1488 * 200),
    "coco20i_resnet101": ("coco20i", "resnet101", "published", "batch", "novel", 0.05, 8, 10260 * 50),
    "coco20i_resnet101_strict": ("coco20i", "resnet101", "strict", "frozen", "base", 0.05, 8, 10260 * 50),
}


def test_every_experiment_is_a_recipe_whole() -> None:
    assert set(GROUPS["experiment"]) == set(EXPERIMENTS)
    for name, expected in EXPERIMENTS.items():
        config = composed("train", f"experiment={name}", "dataset.root=some", "fold=2")
        check_settings("train", config)
        assert (
            *(config[key]["name"] for key in ("dataset", "backbone", "protocol")),
            config["backbone"]["norm"],
            *(config[key] for key in ("select_on", "lr", "batch_size", "steps")),
        ) == expected
        assert (config["size"], config["test_size"], config["augment"]) == (321, 473, "published")
        assert config["model"]["variant"] == "published"
        assert (config["momentum"], config["weight_decay"], config["power"]) == (0.9, 0.0001, 0.9)
        assert config["model"]["loss"]["alpha"] == 50
        bins = [60, 30, 15, 8] if "pascal" in name else [1.0, 0.5, 0.25, 0.125]
        assert config["model"]["bins"] == bins
        assert config["test_episodes"] == (4000 if name == "coco20i_resnet101" else 1000)
        assert config["fold"] == 2


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
            ("#", "- override", "- _self_", "- sd_aanet", "- pascal5i", "- coco20i", "defaults:")
        )
        bare = plain or not line.strip()
        assert bare or "#" in line, line


@pytest.mark.parametrize("command", sorted(RULES))
def test_every_rule_is_of_a_setting_that_exists(command: str) -> None:
    """A renamed key would leave its rule without effect."""
    known = keys(composed(command))
    for model in MODELS if "model" in composed(command) else ():
        known |= keys(composed(command, f"model={model}"))
    for dataset in DATASETS if "dataset" in composed(command) else ():
        known |= keys(composed(command, f"dataset={dataset}", *([] if dataset == "shapes" else ["dataset.root=some"])))
    assert known >= set(RULES[command])


@pytest.mark.parametrize("command", sorted(RULES))
def test_every_number_has_a_rule(command: str) -> None:
    config = composed(command)
    numbers = {
        key
        for key in keys(config)
        if isinstance(OmegaConf.select(OmegaConf.create(config), key), int | float)
        and "recipe" not in key
        and not key.startswith("protocol.")
    }
    assert numbers <= set(RULES[command])
