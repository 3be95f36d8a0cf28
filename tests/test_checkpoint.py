"""Checkpoints: ours, and the published ones there and back."""

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from commands import EVALUATION, TINY, Done, run
from commands import refused as refused_in_one_line
from networks import inputs, predict, rough
from plain import Plain, layout
from sd_aanet.checkpoint import Trained, load_trained, save_trained
from sd_aanet.cli import main
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError
from sd_aanet.files import written_whole
from sd_aanet.models import build_method
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.models.sd_aanet.convert import export_published, import_published
from sd_aanet.models.sd_aanet.golden import official_state
from sd_aanet.segmenting.segmenter import FewShotSegmenter
from sd_aanet.training.module import FewShotModule

NETWORK: dict[str, Any] = {
    "method": "sd_aanet",
    "backbone": {"name": "resnet18", "high": "stage3"},
    "channels": 8,
    "bins": (1.0, 0.5),
    "loss": {"alpha": 3.0},
}
PREPROCESS = Preprocess(33, mean=(0.5, 0.4, 0.3))
TRAINING: dict[str, Any] = {"dataset": "shapes", "fold": 2, "classes": {"train": ["a"], "val": None}}


def tiny(network: dict[str, Any] = NETWORK, seed: int = 0) -> Trained:
    torch.manual_seed(seed)
    method = build_method(**network)
    rough(method)
    return Trained(method, network, PREPROCESS, 5, TRAINING)


def module() -> FewShotModule:
    """The same in a training."""
    made = FewShotModule(NETWORK, dict(vars(PREPROCESS)), 5, {"name": "sgd", "lr": 0.5}, TRAINING)
    made.method.load_state_dict(tiny().method.state_dict())
    return made


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# Ours ------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trained = tiny()
    save_trained(trained, tmp_path / "deep" / "er" / "x.ckpt")
    loaded = load_trained(tmp_path / "deep" / "er" / "x.ckpt")
    assert same(loaded.method.state_dict(), trained.method.state_dict())
    assert not loaded.method.training
    assert loaded.preprocess == PREPROCESS
    assert (loaded.network, loaded.classes, loaded.training) == (NETWORK, 5, TRAINING)
    query, _, support, support_mask = inputs(size=33, dtype=torch.float32)
    with torch.no_grad():
        ours, expected = (
            predict(m, query, support, support_mask).logits for m in (loaded.method, trained.method.eval())
        )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_lightning_reads_it_too(tmp_path: Path) -> None:
    save_trained(tiny(), tmp_path / "x.ckpt")
    loaded = FewShotModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert same(loaded.method.state_dict(), tiny().method.state_dict())


def test_checkpoints_of_a_trainer_are_read(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=0,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.strategy.connect(module())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = load_trained(tmp_path / "x.ckpt")
    assert same(loaded.method.state_dict(), tiny().method.state_dict())
    assert loaded.preprocess == PREPROCESS
    assert (loaded.network, loaded.classes, loaded.training) == (NETWORK, 5, TRAINING)


def fails(path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match=pattern) as error:
        load_trained(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_truncated_checkpoints_are_one_line(tmp_path: Path) -> None:
    save_trained(tiny(), tmp_path / "x.ckpt")
    raw = (tmp_path / "x.ckpt").read_bytes()
    rng = random.Random(0)
    for end in [0, 1, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(5))]:
        (tmp_path / "cut.ckpt").write_bytes(raw[:end])
        fails(tmp_path / "cut.ckpt", "truncated or no torch file")


def test_foreign_checkpoints_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    fails(path, "does not exist")
    for content in (
        {"conv1.weight": torch.zeros(1)},
        {"state_dict": {}, "hyper_parameters": {"lr": 1.0}},
        {"state_dict": {}, "hyper_parameters": 3},
        {"state_dict": 3},
    ):
        torch.save(content, path)
        fails(path, r"is not one of sd-aanet: expected one that `sd-aanet train` wrote$")
    torch.save({"state_dict": {"module.down_query.0.weight": torch.zeros(1)}}, path)
    fails(path, r"a published one becomes ours with `sd-aanet import-published`$")
    torch.save({"down_query.0.weight": torch.zeros(1)}, path)
    fails(path, r"a published one becomes ours with `sd-aanet import-published`$")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["state_dict"].pop("method.project_query.weight"),
        lambda c: c["state_dict"].update({"method.strange": torch.zeros(1)}),
        lambda c: c["hyper_parameters"]["network"].update(channels=16),
        lambda c: c["hyper_parameters"]["network"].update(unheard_of=1),
        lambda c: c["hyper_parameters"]["network"].update(method="unheard_of"),
        lambda c: c["hyper_parameters"]["network"].update(backbone="resnet18"),
        lambda c: c["hyper_parameters"]["network"]["backbone"].update(high="stage9"),
        lambda c: c["hyper_parameters"]["network"].pop("backbone"),
        lambda c: c["hyper_parameters"].update(network=3),
        lambda c: c["hyper_parameters"].update(preprocess={"side": 33}),
        lambda c: c["hyper_parameters"].update(preprocess=None),
        lambda c: c["hyper_parameters"].update(classes=None),
        lambda c: c["hyper_parameters"].update(classes="5"),
        lambda c: c["hyper_parameters"]["preprocess"].update(size="33"),
        lambda c: c["hyper_parameters"]["preprocess"].update(size=torch.tensor(33)),
        lambda c: c["hyper_parameters"]["preprocess"].update(size=33.0),
        lambda c: c["hyper_parameters"]["preprocess"].update(mean=[0.5]),
        lambda c: c["hyper_parameters"]["preprocess"].update(std=[0.5, 0.0, 0.5]),
        lambda c: c["hyper_parameters"].update(training=3),
        lambda c: c["hyper_parameters"]["training"].update(fold="2"),
        lambda c: c["hyper_parameters"]["training"].update(dataset=3),
        lambda c: c["hyper_parameters"]["training"].update(classes=3),
        lambda c: c["hyper_parameters"]["training"]["classes"].update(train=3),
        lambda c: c["hyper_parameters"]["network"].update(channels="8"),
        lambda c: c["hyper_parameters"]["network"].update(bins=[1e30]),
        lambda c: c["hyper_parameters"]["network"].update({5: 1}),
        lambda c: c["state_dict"].update({"method.project_query.weight": torch.eye(3).to_sparse()}),
        lambda c: c["hyper_parameters"]["network"].update(loss=5),
        lambda c: c["hyper_parameters"]["network"].update(loss={"_target_": "os.mkdir", "path": "boom"}),
        lambda c: c["hyper_parameters"]["network"].update(method={"_target_": "os.mkdir", "path": "boom"}),
        lambda c: c["hyper_parameters"]["network"]["backbone"].update(_target_="os.mkdir", path="boom"),
        lambda c: c["hyper_parameters"]["network"]["backbone"].update(mid={"_target_": "os.mkdir", "path": "boom"}),
        lambda c: c.update(state_dict=[1]),
        lambda c: c.pop("state_dict"),
    ],
)
def test_checkpoints_that_do_not_fit_are_one_line(spoil: Any, tmp_path: Path) -> None:
    save_trained(tiny(), tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    fails(tmp_path / "x.ckpt", "does not fit this version of sd-aanet: ")


# Files that are there whole or not at all ------------------------------------------------------------------------


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with written_whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["x.txt"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for _ in range(2):
        before = {p: p.read_text() for p in tmp_path.iterdir()}
        with suppress(KeyboardInterrupt), written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
        assert {p: p.read_text() for p in tmp_path.iterdir()} == before
        path.write_text("old")


# The published ones ----------------------------------------------------------------------------------------------


def published(backbone: str) -> dict[str, Tensor]:
    """A published state dict, in float32."""
    state = {name: torch.from_numpy(array) for name, array in official_state(layout(backbone)).items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    """The smallest of them."""
    return published("vgg16_bn")


@pytest.fixture
def hollow() -> dict[str, Tensor]:
    """The same shapes in a small file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in layout("vgg16_bn").items()}


def test_there_and_back(vgg: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in vgg.items()}
    torch.save({"epoch": 200, "state_dict": wrapped, "optimizer": {"param_groups": []}}, tmp_path / "published.pth")
    assert import_published(tmp_path / "published.pth", tmp_path / "ours.ckpt") == "vgg16_bn"
    loaded = load_trained(tmp_path / "ours.ckpt")
    assert loaded.preprocess == Preprocess(473, "squash")
    assert (loaded.classes, loaded.training) == (20, None)
    assert isinstance(loaded.method, SDAANet)
    assert loaded.method.decoder.bins == (60, 30, 15, 8)
    export_published(tmp_path / "ours.ckpt", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == {"state_dict"}
    assert same(back["state_dict"], vgg)
    # And the network is the published one.
    network = loaded.method.double()
    network.decoder.bins = (7, 3, 2, 2)  # for speed
    query, _, support, support_mask = inputs(batch=1, shot=2, size=33)
    plain = Plain({name: value.double() for name, value in vgg.items()}, (7, 3, 2, 2))
    with torch.no_grad():
        expected = plain(query, support, support_mask)["logits"]
        torch.testing.assert_close(
            predict(network, query, support, support_mask).logits, expected, rtol=1e-9, atol=1e-9
        )


@pytest.mark.slow  # 47 and 66 million weights
@pytest.mark.parametrize(("backbone", "bins", "classes"), [
    ("resnet50", (60, 30, 15, 8), 20), ("resnet101", (1.0, 0.5, 0.25, 0.125), 80),
])  # fmt: skip
def test_the_published_resnets(backbone: str, bins: tuple[float, ...], classes: int, tmp_path: Path) -> None:
    state = published(backbone)
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    assert import_published(tmp_path / "published.pth", tmp_path / "ours.ckpt") == backbone
    loaded = load_trained(tmp_path / "ours.ckpt")
    assert isinstance(loaded.method, SDAANet)
    assert loaded.method.decoder.bins == bins
    assert loaded.classes == classes
    export_published(tmp_path / "ours.ckpt", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert same(back, state)


def refused(content: Any, folder: Path, pattern: str) -> str:
    torch.save(content, folder / "x.pth")
    with pytest.raises(CheckpointError, match=pattern) as error:
        import_published(folder / "x.pth", folder / "ours.ckpt")
    assert "\n" not in str(error.value)
    assert not (folder / "ours.ckpt").exists()
    return str(error.value)


def test_names_that_do_not_fit_are_listed(hollow: dict[str, Tensor], tmp_path: Path) -> None:
    message = refused(hollow | {"aspp.0.weight": torch.zeros(1), "gate": torch.zeros(1)}, tmp_path, "fit nowhere")
    assert "aspp.0.weight, gate" in message
    less = {name: value for name, value in hollow.items() if name not in ("cls.3.bias", "s_cls.weight")}
    message = refused(less, tmp_path, "does not fit")
    assert "decoder.classifier.3.bias" in message
    assert "saam.support_classifier.weight" in message
    message = refused(hollow | {"cls.3.bias": torch.zeros(21)}, tmp_path, "does not fit")
    assert "decoder.classifier.3.bias" in message


@pytest.mark.parametrize("content", [{}, {"state_dict": 3}, {0: torch.zeros(1)}, {"conv1.weight": torch.zeros(1)}])
def test_other_files_are_no_published_checkpoint(content: Any, tmp_path: Path) -> None:
    refused(content, tmp_path, "the backbone of this checkpoint is unknown")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_checkpoint_is_executed(hollow: dict[str, Tensor], tmp_path: Path) -> None:
    refused({"state_dict": hollow, "args": Bomb(tmp_path / "boom")}, tmp_path, "only executing it could load")
    fails(tmp_path / "x.pth", "only executing it could load")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "network",
    [
        NETWORK | {"backbone": {"name": "resnet18"}, "sdpm": False},
        NETWORK | {"backbone": {"name": "resnet18"}, "saam": False},
        NETWORK | {"backbone": {"name": "resnet18"}, "prior": False},
        NETWORK,  # its prior is of stage 3
        {"method": "prototype", "backbone": {"name": "resnet18"}},
    ],
)
def test_only_the_whole_network_has_a_published_form(network: dict[str, Any], tmp_path: Path) -> None:
    save_trained(tiny(network), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"^checkpoint '.*x.ckpt' lacks parts of the published network: [^\n]*$"):
        export_published(tmp_path / "x.ckpt", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_the_command(vgg: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, ours, back = (str(tmp_path / name) for name in ("published.pth", "ours.ckpt", "back.pth"))
    torch.save(vgg, published)
    for arguments in ([published, "--out", ours], [ours, "--out", back, "--export"]):
        with pytest.raises(SystemExit) as leave:
            main(["import-published", *arguments])
        assert leave.value.code == 0
    assert "vgg16_bn" in capsys.readouterr().out
    assert same(torch.load(back, weights_only=True)["state_dict"], vgg)
    with pytest.raises(SystemExit) as leave:
        main(["import-published", str(tmp_path / "missing.pth"), "--out", ours])
    assert leave.value.code == 2
    assert capsys.readouterr().err == f"sd-aanet: file '{tmp_path / 'missing.pth'}' does not exist: check the path\n"


# What is no number


@pytest.fixture
def diverged(trained: tuple[Path, Done], tmp_path: Path) -> Path:
    """A checkpoint whose training ended in NaN, as those of other versions may have."""
    checkpoint = torch.load(trained[0] / "checkpoints/last.ckpt", weights_only=True)
    name = next(name for name, value in checkpoint["state_dict"].items() if name.endswith("running_var"))
    checkpoint["state_dict"][name][0] = float("inf")
    path = tmp_path / "run/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    shutil.copy(trained[0] / "config.yaml", tmp_path / "run/config.yaml")
    return path


def test_what_is_not_finite_is_refused_wherever_it_is_loaded(
    diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "tensors are not finite, "
    short = (*TINY, "test_episodes=0")
    for given in (
        ("evaluate", *EVALUATION, f"checkpoint={diverged}"),
        ("evaluate", *EVALUATION, "checkpoint=null", f"backbone.weights={diverged}"),
        ("train", *short, f"checkpoint={diverged}"),
        ("train", f"resume={tmp_path / 'run'}"),
    ):
        refused_in_one_line(run(*given), f"'{diverged}': 1 of ", words)
    with pytest.raises(CheckpointError, match=words):
        FewShotSegmenter.from_checkpoint(diverged)
    done = run("evaluate", *EVALUATION, f"checkpoint={diverged}", "not_finite=use", "out=used")
    assert done.code == 0, done.err
    assert FewShotSegmenter.from_checkpoint(diverged, not_finite="use")
