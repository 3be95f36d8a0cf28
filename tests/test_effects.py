"""Settings that change nothing are told, those that count are not."""

import re

import pytest
from hydra import compose, initialize_config_dir

from sd_aanet.effects import without_effect
from sd_aanet.files import config_folder


@pytest.mark.parametrize(
    ("command", "settings", "expected"),
    [
        ("train", "recipe.lr=1", ""),
        ("train", "recipe.lr=1 optimizer=adam", "recipe.lr"),
        ("train", "optimizer.lr=1", ""),
        ("train", "optimizer.lr=1 lr=2", "optimizer.lr"),
        ("train", "recipe.size=97 recipe.channels=8 recipe.dropout=0", ""),
        ("train", "recipe.dropout=0 model=hsnet", "recipe.dropout"),
        ("train", "protocol.episodes=5 test_episodes=4", "protocol.episodes"),
        ("train", "dataset.benchmark.pfenet_episodes=5 protocol=pfenet", ""),
        ("train", "dataset.benchmark.pfenet_episodes=5", "dataset.benchmark.pfenet_episodes"),
        ("train", "backbone.mid=stage2 backbone.high=stage4", ""),
        ("train", "backbone.mid=stage2 model=hsnet", "backbone.mid"),
        ("evaluate", "checkpoint=null model=panet backbone.mid=stage2 backbone.high=stage4", "backbone.high"),
        ("train", "checkpoint=a.ckpt model=panet backbone=resnet34 recipe.lr=1 optimizer=sgd_poly", ""),
        (
            "evaluate",
            "checkpoint=a.ckpt model=panet backbone.weights=b.pth size=97 resize=squash",
            "model backbone.weights",
        ),
        ("evaluate", "checkpoint=null model=panet backbone=resnet34", ""),
        ("evaluate", "checkpoint=null shot=5 order=pairs seeds=2 episodes=9", ""),
        (
            "evaluate",
            "checkpoint=null shot=5 seed=1 order=pairs seeds=2 episodes=9 episodes_file=l.json",
            "shot order seeds episodes",
        ),
        ("predict", "checkpoint=a.ckpt size=97 resize=squash model=prototype", "size resize model"),
        ("label", "checkpoint=a.ckpt size=97 resize=squash model=prototype", "size resize model"),
        ("predict", "checkpoint=null size=97 resize=squash model=prototype", ""),
        ("export", "checkpoint=a.ckpt size=97 model=prototype", "size model"),
    ],
)
def test_what_has_no_effect(command: str, settings: str, expected: str) -> None:
    given = settings.split()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(command, given)
    lines = list(without_effect(command, [re.split("=", one)[0] for one in given], config))
    assert [line.split()[0] for line in lines] == expected.split()
    assert all("has no effect" in line and "\n" not in line for line in lines)
