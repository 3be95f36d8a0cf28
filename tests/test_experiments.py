"""conf/experiment: every recipe runs whole, on small fakes of its data set."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from commands import metrics, ran
from data.fake_coco import make_coco
from data.fake_voc import make_voc
from sd_aanet.backbones import build_backbone
from test_config import EXPERIMENTS

SMALL = (
    *("size=65", "steps=2", "batch_size=2", "val_every=1", "val_episodes=4", "min_object_pixels=100"),
    *("test_episodes=6", "test_batch_size=4", "seeds=1", "workers=0", "strategy=cpu", "precision=32-true"),
)
ALL = EXPERIMENTS | {"hsnet_pascal5i_resnet50": ("pascal5i", "resnet50", "hsnet", "auto", "novel", 0.001, 20, 594000)}


def weights_of(backbone: str, folder: Path) -> Path:
    """A file of weights, for a frozen backbone without a download, whose residual blocks add too little to overflow."""
    torch.manual_seed(0)
    state = build_backbone(backbone).state_dict()
    for name, value in state.items():
        if name.endswith(("bn2.weight", "bn3.weight")):
            value.mul_(0.1)
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def check_recipe(name: str, backbone: str, root: Path) -> None:
    """Two steps, both validations and the evaluation of an experiment, by the switches that are its own."""
    dataset, _, protocol, norm, select_on, rate, *_ = ALL[name]
    make = {"pascal5i": make_voc, "coco20i": make_coco}[str(dataset)]
    make(root / "data")
    out = root / "run"
    chosen = (f"backbone={backbone}", f"backbone.weights={weights_of(backbone, root)}")
    chosen += () if name.startswith("hsnet") else ("model.channels=8",)
    ran("train", f"experiment={name}", f"dataset.root={root / 'data'}", "fold=1", *SMALL, *chosen, f"out={out}")
    rows = metrics(out)
    assert next(row["train/lr"] for row in rows if "train/lr" in row) == pytest.approx(rate)
    assert sum("val/miou" in row for row in rows) == 2
    saved = OmegaConf.load(out / "config.yaml")
    assert saved.backbone.norm == norm
    if saved.model.method == "sd_aanet":
        assert (saved.model.variant, saved.augment) == ("published", "published")
    result = json.loads((out / "result.json").read_text())
    switches = result["protocol"]
    assert [switches[key] for key in ("dataset", "protocol", "select_on", "fold")] == [dataset, protocol, select_on, 1]
    assert result["episodes"] == 6


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_runs(name: str, tmp_path: Path) -> None:
    check_recipe(name, "resnet18", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_experiment_runs_on_its_own_backbone(name: str, tmp_path: Path) -> None:
    check_recipe(name, str(ALL[name][1]), tmp_path)
