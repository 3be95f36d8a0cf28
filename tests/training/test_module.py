"""The LightningModule in a real, tiny trainer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from networks import episode
from sd_aanet.data.transforms import Preprocess
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.metrics import FewShotIoU
from sd_aanet.training.module import SDAANetModule

NETWORK = {"backbone": "resnet18", "channels": 8, "prior_stage": 3, "bins": (1.0, 0.5), "variant": "paper"}
TERMS = {"main", "auxiliary", "distillation", "support", "total"}
STEPS = 6


def module(seed: int = 0, network: dict[str, Any] | None = None, **settings: Any) -> SDAANetModule:
    torch.manual_seed(seed)
    arguments = {"loss": {}, "preprocess": {"size": 33, "resize": "squash"}, "classes": 4, "lr": 0.1}
    return SDAANetModule(network=NETWORK | (network or {}), **(arguments | settings))  # type: ignore[arg-type]


def batches(count: int = 3) -> list[Episode]:
    names = [["a", "b"], ["c", "a"], ["b", "c"], ["d", "a"]]
    return [episode([names[i % 4], names[(i + 1) % 4]], [1 + i % 2, 4]) for i in range(count)]


def loader(episodes: list[Episode]) -> DataLoader[Episode]:
    return DataLoader(episodes, batch_size=None)  # type: ignore[arg-type]


class Watch(pl.Callback):
    """What was logged and which rate was used, step by step."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SDAANetModule, pl.Trainer, Watch]:
    watch = Watch()
    run = trainer(tmp_path_factory.mktemp("fit"), watch, max_epochs=2, log_every_n_steps=1)
    trained = module(momentum=0.8, weight_decay=0.01)
    run.fit(trained, loader(batches(STEPS // 2)), loader(batches(2)))
    return trained, run, watch


def test_the_rate_falls_as_a_polynomial_every_step(fitted: tuple[SDAANetModule, pl.Trainer, Watch]) -> None:
    _, run, watch = fitted
    assert watch.rates == pytest.approx([0.1 * (1 - t / STEPS) ** 0.9 for t in range(STEPS)], rel=1e-12)
    assert run.optimizers[0].param_groups[0]["lr"] == 0  # where the schedule ends
    assert [row["train/lr"] for row in watch.logged] == pytest.approx(watch.rates, rel=1e-6)
    group = run.optimizers[0].param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_another_power(power: float, tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, watch, max_steps=3, max_epochs=-1).fit(module(power=power), loader(batches(2)))
    assert watch.rates == pytest.approx([0.1 * (1 - t / 3) ** power for t in range(3)], rel=1e-12)


def test_every_term_is_logged(fitted: tuple[SDAANetModule, pl.Trainer, Watch]) -> None:
    for row in fitted[2].logged:
        assert {f"train/{name}" for name in TERMS} | {"train/lr"} <= row.keys()
        by_hand = row["train/main"] + row["train/auxiliary"] + 50 * row["train/distillation"] + row["train/support"] / 2
        assert row["train/total"] == pytest.approx(by_hand, rel=1e-5)


def test_validation_logs_the_metric(fitted: tuple[SDAANetModule, pl.Trainer, Watch]) -> None:
    trained, run, _ = fitted
    names = {"val/miou", "val/fb_iou", "val/foreground_iou", "val/background_iou"}
    assert names <= run.callback_metrics.keys()
    metric = FewShotIoU(4)
    with torch.no_grad():
        for batch in batches(2):
            metric.update(trained.eval().predict(batch), batch.query_mask, batch.class_id)
    for name in names:
        expected = metric.compute()[name.removeprefix("val/")].item()
        assert run.callback_metrics[name].item() == pytest.approx(expected, abs=1e-6)
    assert trained.val_metric.episodes.sum() == 0  # the next validation starts from nothing


@pytest.mark.parametrize("trainable", [False, True])
def test_the_optimizer_holds_what_trains(trainable: bool, tmp_path: Path) -> None:
    trained = module(network={"backbone_trainable": trainable})
    before = {name: value.clone() for name, value in trained.network.named_parameters()}
    run = trainer(tmp_path, max_steps=2, max_epochs=-1)
    run.fit(trained, loader(batches(2)))
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    for name, value in trained.network.named_parameters():
        trains = trainable or not name.startswith("backbone.")
        assert (id(value) in held) == trains, name
        assert torch.equal(value, before[name]) != trains, name


def test_no_query_mask_is_read() -> None:
    segmenter = module().eval()
    one = batches(1)[0]
    other = replace(one, query_mask=torch.full_like(one.query_mask, 7), index=one.index + 5)
    with torch.no_grad():
        assert torch.equal(segmenter(one).logits, segmenter(other).logits)
        missing: Any = replace(one, query_mask=None)  # type: ignore[arg-type]
        assert torch.equal(segmenter.predict(missing), segmenter.predict(one))


def test_one_episode_a_device_is_refused_early_with_the_way_out(tmp_path: Path) -> None:
    single = [episode([["a", "b"]], [1])]
    with pytest.raises(ConfigError, match=r"^batch_size=1 [^\n]*; set batch_size=2 or more \(or model.saam=false\)$"):
        trainer(tmp_path, max_epochs=1).fit(module(), loader(single))
    trainer(tmp_path, max_epochs=1).fit(module(network={"saam": False}), loader(single))
    trainer(tmp_path).validate(module(), loader(single), verbose=False)  # without training, one is enough


def test_remembering_changes_nothing_but_the_time() -> None:
    def run(remember: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        trained = module(network={"dropout": 0.0})
        if remember:
            trained.remember(1.0, None, Preprocess(33))
        optimizer = torch.optim.SGD([p for p in trained.network.parameters() if p.requires_grad], lr=0.05)
        totals = []
        for batch in batches(3):
            total = trained.loss(trained(batch), batch.query_mask, batch.support_mask).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.detach())
        if remember:
            assert trained.memory is not None
            assert trained.memory.hits > 0
        return totals, trained.network.state_dict()

    (computed, one), (remembered, other) = run(False), run(True)
    torch.testing.assert_close(remembered, computed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_networks_variant() -> None:
    assert not module().loss.distillation.published
    assert module(network={"variant": "published"}).loss.distillation.published
    assert module(loss={"alpha": 3.0, "detach_teacher": False}).loss.alpha == 3.0


def test_hyper_parameters_are_primitives(fitted: tuple[SDAANetModule, pl.Trainer, Watch], tmp_path: Path) -> None:
    """So that a checkpoint needs no trust: it loads with weights_only=True."""
    trained, run, _ = fitted
    path = tmp_path / "x.ckpt"
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    assert settings["network"] == NETWORK
    assert json.loads(json.dumps(settings)) == json.loads(json.dumps(dict(trained.hparams)))
    loaded = SDAANetModule.load_from_checkpoint(path, weights_only=True)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(name.startswith(("val_metric", "memory")) for name in checkpoint["state_dict"])


def test_an_untrained_method_is_a_module_too(tmp_path: Path) -> None:
    untrained = SDAANetModule({"method": "prototype", "backbone": "resnet18"}, {}, {"size": 33}, classes=4)
    (values,) = trainer(tmp_path).validate(untrained, loader(batches(1)), verbose=False)
    assert 0 <= values["val/miou"] <= 1
