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
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError, TrainingError
from sd_aanet.metrics import FewShotIoU
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.training.module import FewShotModule

NETWORK: dict[str, Any] = {
    "method": "sd_aanet",
    "backbone": {"name": "resnet18", "high": "stage3"},
    "channels": 8,
    "bins": (1.0, 0.5),
    "variant": "paper",
}
OPTIMIZER: dict[str, Any] = {"name": "sgd", "lr": 0.1, "power": 0.9}
TERMS = {"main", "auxiliary", "distillation", "support", "total"}
STEPS = 6


def module(
    seed: int = 0, network: dict[str, Any] | None = None, backbone: dict[str, Any] | None = None, **optimizer: Any
) -> FewShotModule:
    torch.manual_seed(seed)
    settings = NETWORK | {"backbone": NETWORK["backbone"] | (backbone or {})} | (network or {})
    return FewShotModule(settings, {"size": 33, "resize": "squash"}, classes=4, optimizer=OPTIMIZER | optimizer)


def batches(count: int = 3, ways: int = 1) -> list[Episode]:
    names = [["a", "b", "e"], ["c", "a", "d"], ["b", "c", "a"], ["d", "a", "b"]]
    return [
        episode(
            [names[i % 4][: 1 + ways], names[(i + 1) % 4][: 1 + ways]],
            [(1 + i % 2, 3)[:ways], (4, 2)[:ways]],
        )
        for i in range(count)
    ]


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
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FewShotModule, pl.Trainer, Watch]:
    watch = Watch()
    run = trainer(tmp_path_factory.mktemp("fit"), watch, max_epochs=2, log_every_n_steps=1)
    trained = module(momentum=0.8, weight_decay=0.01)
    run.fit(trained, loader(batches(STEPS // 2)), loader(batches(2)))
    return trained, run, watch


def test_the_rate_falls_as_a_polynomial_every_step(fitted: tuple[FewShotModule, pl.Trainer, Watch]) -> None:
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


def test_every_term_is_logged(fitted: tuple[FewShotModule, pl.Trainer, Watch]) -> None:
    for row in fitted[2].logged:
        assert {f"train/{name}" for name in TERMS} | {"train/lr"} <= row.keys()
        by_hand = row["train/main"] + row["train/auxiliary"] + 50 * row["train/distillation"] + row["train/support"] / 2
        assert row["train/total"] == pytest.approx(by_hand, rel=1e-5)


def test_validation_logs_the_metric(fitted: tuple[FewShotModule, pl.Trainer, Watch]) -> None:
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
    trained = module(backbone={"trainable": trainable})
    before = {name: value.clone() for name, value in trained.method.named_parameters()}
    run = trainer(tmp_path, max_steps=2, max_epochs=-1)
    run.fit(trained, loader(batches(2)))
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    for name, value in trained.method.named_parameters():
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
    with pytest.raises(ConfigError, match=r"^batch_size=1, [^\n]*; set batch_size=2 or more$"):
        trainer(tmp_path, max_epochs=1).fit(module(), loader(single))
    trainer(tmp_path, max_epochs=1).fit(module(network={"saam": False}), loader(single))
    trainer(tmp_path).validate(module(), loader(single), verbose=False)  # without training, one is enough


def test_keeping_features_changes_nothing_but_the_time() -> None:
    def run(keeps: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        trained = module(network={"dropout": 0.0})
        if keeps:
            trained.cache_features(1.0, None)
        optimizer = torch.optim.SGD([p for p in trained.method.parameters() if p.requires_grad], lr=0.05)
        totals = []
        for batch in batches(3):
            terms = trained.method.losses(trained(batch), batch)
            total = torch.stack([trained.method.loss_weights.get(name, 1.0) * t for name, t in terms.items()]).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.detach())
        if keeps:
            assert trained.comparer.cache is not None
            assert trained.comparer.cache.hits > 0
        return totals, trained.method.state_dict()

    (computed, one), (kept, other) = run(False), run(True)
    torch.testing.assert_close(kept, computed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_networks_variant() -> None:
    for network, published, weight in (
        ({}, False, 50.0),
        ({"variant": "published"}, True, 50.0),
        ({"loss": {"alpha": 3.0, "detach_teacher": False}}, False, 3.0),
    ):
        method = module(network=network).method
        assert isinstance(method, SDAANet)
        assert method.loss.distillation.published == published
        assert method.loss_weights["distillation"] == weight


# Several classes -------------------------------------------------------------------------------------------------


def test_several_classes_are_learnt_as_so_many_comparisons(tmp_path: Path) -> None:
    watch, (batch, *_) = Watch(), batches(1, ways=2)
    trained = module(network={"dropout": 0.0})
    start = module(network={"dropout": 0.0}).method.train()  # the same weights
    trainer(tmp_path, watch, max_steps=1, max_epochs=-1, log_every_n_steps=1).fit(trained, loader([batch]))
    terms = start.losses(Comparer(start)(batch), batch.one_way())
    for name, term in terms.items():
        assert watch.logged[0][f"train/{name}"] == pytest.approx(term.item(), rel=1e-4)
    assert len(batch.one_way()) == 4


def test_several_classes_are_predicted_and_scored_at_once(tmp_path: Path) -> None:
    segmenter, (batch, *_) = module().eval(), batches(1, ways=2)
    with torch.no_grad():
        answer = segmenter.predict(batch)
        foreground = segmenter(batch).logits.softmax(1)[:, 1].unflatten(0, (2, 2))  # (B, N, S, S)
    expected = torch.where(foreground.amax(1) > 0.5, foreground.argmax(1) + 1, 0)
    assert torch.equal(answer, expected)
    (values,) = trainer(tmp_path).validate(module(), loader([batch]), verbose=False)
    metric = FewShotIoU(4)
    metric.update(answer, batch.query_mask, batch.class_id)
    assert values["val/miou"] == pytest.approx(metric.compute()["miou"].item(), abs=1e-6)


# Losses that are no numbers --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    """With the step, the terms and the episodes, instead of weights that are spoilt for good."""
    trained = module()
    with torch.no_grad():
        trained.method.get_parameter("project_query.weight")[0] = float("nan")
    before = {name: value.clone() for name, value in trained.method.named_parameters()}
    batch = replace(batches(1)[0], index=torch.tensor([7, 12]))
    with pytest.raises(TrainingError) as error:
        trainer(tmp_path, max_epochs=1).fit(trained, loader([batch]))
    message = str(error.value)
    assert message.startswith("the loss is not finite at step 0 (main nan, ")
    assert "episodes 7, 12 of epoch 0: set a smaller lr, " in message
    assert "\n" not in message
    for name, value in trained.method.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_rate_that_is_far_too_large_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"^the loss is not finite at step [1-9]\d* \(.*: set a smaller lr, [^\n]*$"
    ):
        trainer(tmp_path, max_epochs=4).fit(module(lr=1e18), loader(batches(3)))


def test_hyper_parameters_are_primitives(fitted: tuple[FewShotModule, pl.Trainer, Watch], tmp_path: Path) -> None:
    """So that a checkpoint needs no trust: it loads with weights_only=True."""
    trained, run, _ = fitted
    path = tmp_path / "x.ckpt"
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    assert settings["network"] == NETWORK
    assert json.loads(json.dumps(settings)) == json.loads(json.dumps(dict(trained.hparams)))
    loaded = FewShotModule.load_from_checkpoint(path, weights_only=True)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(name.startswith(("val_metric", "comparer")) for name in checkpoint["state_dict"])


def test_an_untrained_method_is_a_module_too(tmp_path: Path) -> None:
    untrained = FewShotModule({"method": "prototype", "backbone": {"name": "resnet18"}}, {"size": 33}, classes=4)
    (values,) = trainer(tmp_path).validate(untrained, loader(batches(1)), verbose=False)
    assert 0 <= values["val/miou"] <= 1
