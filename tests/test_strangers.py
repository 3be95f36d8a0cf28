"""Files that a stranger made: nothing of them is executed, whatever they name, and each refusal is one line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from commands import TINY, Done, nothing_left, refused, run
from sd_aanet.data.sources.opening import SOURCES, open_source
from sd_aanet.errors import ConfigError
from sd_aanet.training import TRAINED


class Mark:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("boom"),)


@pytest.fixture
def folder(trained: tuple[Path, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run in a working folder that holds a file which executes something when numpy unpickles it."""
    monkeypatch.chdir(tmp_path)
    np.save("bomb.npy", np.array([Mark()], dtype=object), allow_pickle=True)
    shutil.copytree(trained[0], "run")
    Path("run", TRAINED).unlink()  # it looks cut off, so that the training is set up again
    return Path("run")


TOUCH = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["boom"]}}
CALLS: dict[str, dict[str, Any]] = {
    "a nested target": {"_target_": "numpy.load", "file": "bomb.npy", "allow_pickle": True},
    "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "boom", "source": "local"},
    "open": {"_target_": "builtins.open", "file": "boom", "mode": "w"},
    "a module of ours that imports os": {"_target_": "sd_aanet.data.sources.cache.os.mkdir", "path": "boom"},
    "what only begins as ours": {"_target_": "sd_aanet.data.sources.folder.Path.touch", "self": TOUCH["self"]},
    "a function of ours": {"_target_": "sd_aanet.data.sources.listing.read_text", "path": "boom"},
    "a call of a call": TOUCH,
}
PLACES = (
    *("dataset.source", "dataset.source.size", "dataset.source.images", "dataset", "dataset.root", "strategy"),
    *("strategy.strategy", "model", "model.loss", "model.loss.alpha", "model.bins", "model.init", "backbone"),
    *("backbone.weights", "backbone.mid", "optimizer", "optimizer.betas", "optimizer.momentum", "logger", "recipe"),
    *("protocol", "checkpoint", "cache_dir", "augment", "fold", "steps"),
)


def resumed(folder: Path, change: Callable[[Any], None]) -> Done:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["test_episodes"] = 0
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return run("train", *TINY, f"resume={folder}")


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_run_folder_names_is_called(place: str, folder: Path) -> None:
    original = (folder / "config.yaml").read_text()
    for name in ("a nested target", "a call of a call"):
        (folder / "config.yaml").write_text(original)
        config = OmegaConf.create(yaml.safe_load(original))
        OmegaConf.update(config, place, CALLS[name], merge=False)
        done = resumed(folder, lambda saved, config=config: saved.update(OmegaConf.to_container(config)))
        assert "Traceback" not in done.err
        assert not Path("boom").exists(), name
        if done.code != 0:  # some settings are not looked at any more
            refused(done)


@pytest.mark.parametrize("call", CALLS)
def test_only_data_sets_of_the_table_are_opened(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("bomb.npy", np.array([Mark()], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"^dataset _target_=.*, expected a class under sd_aanet.data.sources"):
        open_source(CALLS[call], "val")
    for target, kind in SOURCES.items():
        for name in (*kind.rules, "_args_", "_partial_", "split"):
            with pytest.raises(ConfigError, match=r"expected|unknown"):
                open_source({"_target_": target, "root": "x", name: CALLS[call]}, "val")
    assert not Path("boom").exists()


def test_interpolations_of_a_run_folder_are_not_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    done = resumed(folder, lambda config: config["dataset"]["source"].update(size="${oc.env:SECRET}"))
    refused(done, "dataset.source.size=${oc.env:SECRET}, expected a whole number")


DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "no YAML": b"a: [",
    "a list": b"- a",
    "a text": b"abc",
    "tags": b"a: !!python/object/apply:pathlib.Path.touch [boom]",
    "another file": b"name: me",
    "deep": b"a: " + b"[" * 5000,
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_configuration(content: str, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(DAMAGED[content])
    with nothing_left():
        refused(run("train", *TINY, f"resume={folder}"), "config.yaml", "give the folder that a training made")
    assert not Path("boom").exists()


@pytest.mark.parametrize(
    "key", ["val_every", "dataset", "dataset.source", "dataset.source._target_", "recipe.size", "protocol", "backbone",
            "backbone.name", "backbone.weights", "model.method", "strategy", "strategy.devices", "logger", "optimizer"],
)  # fmt: skip
def test_a_configuration_that_lacks_something(key: str, folder: Path) -> None:
    *above, name = key.split(".")

    def change(config: dict[str, Any]) -> None:
        place = config
        for part in above:
            place = place[part]
        del place[name]

    refused(resumed(folder, change), "lacks the setting", key)
