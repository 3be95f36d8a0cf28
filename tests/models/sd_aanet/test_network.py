"""The whole network: against the plain one, and what must hold whatever its switches."""

import itertools
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from networks import inputs, losses, plain, predict, rough, small
from sd_aanet.backbones import build_backbone
from sd_aanet.errors import ConfigError
from sd_aanet.models import build_method
from sd_aanet.models.sd_aanet import SDAANet

REWEIGHTINGS = {"paper": "mean", "published": "product"}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

# Every part on and off, with every stage for the prior; the other switches turn along.
PARTS = [
    {"sdpm": sdpm, "saam": saam, "prior": stage is not None, "high": f"stage{stage or 4}"}
    for sdpm, saam, stage in itertools.product((True, False), (True, False), (None, 2, 3, 4))
]
COMBINATIONS = [
    parts
    | {
        "variant": ("paper", "published")[i % 2],
        "bounded_attention": i % 3 == 0,
        "init": ("default", "lecun")[i % 5 == 0],
        "trainable": i % 4 > 1,
    }
    for i, parts in enumerate(PARTS)
]


def label(settings: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in settings.items())


@pytest.mark.parametrize("settings", COMBINATIONS, ids=label)
def test_every_combination_is_the_plain_network(settings: dict[str, Any]) -> None:
    network = small(**settings).eval()
    query, _, support, support_mask = inputs(batch=2, shot=2, size=33)
    reference = plain(network, reweighting=REWEIGHTINGS[settings["variant"]], bounded=settings["bounded_attention"])
    with torch.no_grad():
        ours, expected = predict(network, query, support, support_mask), reference(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(ours.maps.get("attention"), expected.get("attention"), **CLOSE)
    torch.testing.assert_close(ours.maps.get("prior"), expected["prior"], **CLOSE)
    torch.testing.assert_close(ours.embedding, expected["prototype"], **CLOSE)
    torch.testing.assert_close(list(ours.support_prototypes.unbind(1)), expected["prototypes"], **CLOSE)
    torch.testing.assert_close(ours.query_features, expected["q"], **CLOSE)
    if settings["sdpm"]:
        assert ours.reweighting is not None
        torch.testing.assert_close(list(ours.reweighting.unbind(1)), expected["u"], **CLOSE)
    else:
        assert ours.reweighting is None
    assert ours.auxiliary_logits == ()
    assert ours.support_logits is None


@pytest.mark.parametrize("settings", COMBINATIONS, ids=label)
def test_every_combination_trains_exactly_what_should(settings: dict[str, Any]) -> None:
    network = small(dtype=torch.float32, **settings).train()
    query, query_mask, support, support_mask = inputs(batch=2, shot=2, dtype=torch.float32)
    terms = losses(network, query, query_mask, support, support_mask)
    terms["total"].backward()
    assert terms["total"].isfinite()
    assert {name for name, term in terms.items() if term > 0} == {
        *("main", "auxiliary", "total"),
        *(["distillation"] if settings["sdpm"] else []),
        *(["support"] if settings["saam"] else []),
    }
    for name, parameter in network.named_parameters():
        trains = not name.startswith("backbone.") or settings["trainable"]
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name
        if trains:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    assert any(name.startswith("backbone.layer4.") for name, _ in network.named_parameters()) == (
        settings["prior"] and settings["high"] == "stage4"
    )


@pytest.mark.parametrize(("variant", "norm"), [("paper", "frozen"), ("published", "batch")])
def test_training_is_the_plain_network(variant: str, norm: str) -> None:
    """Batch norms in train mode see the query alone, then each shot alone."""
    network = small(variant=variant, norm=norm).train()
    query, _, support, support_mask = inputs(batch=3, shot=2, size=33)
    reference = plain(network, reweighting=REWEIGHTINGS[variant], backbone_batch=norm == "batch")
    ours, expected = predict(network, query, support, support_mask), reference(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(list(ours.auxiliary_logits), expected["auxiliary"], **CLOSE)
    assert ours.support_logits is not None
    torch.testing.assert_close(list(ours.support_logits.unbind(1)), expected["support_logits"], **CLOSE)
    statistics = plain(network).state
    for name, value in reference.state.items():
        if "running" in name:
            torch.testing.assert_close(statistics[name], value.detach(), **CLOSE)


@pytest.mark.parametrize("settings", [{"high": "stage4"}, {"high": "stage2"}], ids=label)
def test_a_vgg_is_the_plain_one(settings: dict[str, Any]) -> None:
    network = small(backbone="vgg16_bn", channels=8, **settings).eval()
    query, _, support, support_mask = inputs(batch=1, shot=2, size=49)
    with torch.no_grad():
        ours, expected = predict(network, query, support, support_mask), plain(network)(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(ours.maps["prior"], expected["prior"], **CLOSE)


def test_an_episode_does_not_see_its_batch() -> None:
    network = small().eval()
    query, _, support, support_mask = inputs(batch=3, shot=2, size=33)
    with torch.no_grad():
        together = predict(network, query, support, support_mask)
        for b in range(3):
            alone = predict(network, query[b : b + 1], support[b : b + 1], support_mask[b : b + 1])
            torch.testing.assert_close(alone.logits, together.logits[b : b + 1], **CLOSE)
            torch.testing.assert_close(alone.maps["attention"], together.maps["attention"][b : b + 1], **CLOSE)


@pytest.mark.parametrize("variant", REWEIGHTINGS)
def test_the_order_of_the_shots_does_not_matter(variant: str) -> None:
    network = small(variant=variant).eval()
    query, _, support, support_mask = inputs(batch=2, shot=3, size=33)
    order = [2, 0, 1]
    with torch.no_grad():
        ours = predict(network, query, support, support_mask)
        turned = predict(network, query, support[:, order], support_mask[:, order])
    torch.testing.assert_close(turned.logits, ours.logits, **CLOSE)
    torch.testing.assert_close(turned.maps, ours.maps, **CLOSE)
    torch.testing.assert_close(turned.embedding, ours.embedding, **CLOSE)
    torch.testing.assert_close(turned.support_prototypes, ours.support_prototypes[:, order], **CLOSE)


@pytest.mark.parametrize("variant", REWEIGHTINGS)
def test_copies_of_a_support_are_one_support(variant: str) -> None:
    """For all but the published query, which is reweighted once a shot."""
    network = small(variant=variant).eval()
    query, _, support, support_mask = inputs(batch=2, shot=1, size=33)
    with torch.no_grad():
        one = predict(network, query, support, support_mask)
        three = predict(network, query, support.repeat(1, 3, 1, 1, 1), support_mask.repeat(1, 3, 1, 1))
    assert one.maps.keys() == {"attention", "prior"}
    torch.testing.assert_close(three.maps, one.maps, **CLOSE)
    torch.testing.assert_close(three.embedding, one.embedding, **CLOSE)
    same = torch.allclose(three.logits, one.logits, **CLOSE)
    assert same == (variant == "paper")


def test_another_number_of_shots_after_training() -> None:
    network = small(dtype=torch.float32).train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    query, query_mask, support, support_mask = inputs(shot=1, dtype=torch.float32)
    losses(network, query, query_mask, support, support_mask)["total"].backward()
    optimizer.step()
    network.eval()
    for shot in (1, 2, 5):
        query, _, support, support_mask = inputs(shot=shot, dtype=torch.float32)
        prediction = predict(network, query, support, support_mask)
        assert prediction.logits.shape == (2, 2, 41, 41)
        assert prediction.support_prototypes.shape == (2, shot, 16)
        assert prediction.logits.isfinite().all()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_ignored_pixels_are_not_foreground(value: int) -> None:
    network = small().eval()
    query, _, support, support_mask = inputs(size=33)
    with torch.no_grad():
        ours = predict(network, query, support, support_mask).logits
        other = predict(network, query, support, support_mask.where(support_mask != 255, value)).logits
    assert torch.equal(ours, other) == (value != 1)


def test_an_empty_support_mask_is_finite() -> None:
    network = small().eval()
    query, _, support, support_mask = inputs()
    assert predict(network, query, support, torch.zeros_like(support_mask)).logits.isfinite().all()


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_head_has_as_many_parameters_as_reported() -> None:
    """10.82 M without SDPM and SAAM, 21.34 M with both."""
    with torch.device("meta"):
        full = SDAANet(build_backbone("resnet50"))
        baseline = SDAANet(build_backbone("resnet50"), sdpm=False, saam=False)
    assert round(count(full) / 1e6, 2) == 21.34
    assert round(count(baseline) / 1e6, 2) == 10.82
    assert full.decoder.merge[0].weight.shape == (256, 514, 1, 1)
    assert baseline.decoder.merge[0].weight.shape == (256, 513, 1, 1)


def test_dropout_may_be_twice_as_published_and_no_more() -> None:
    """Half of the projected channels, twice: all of them."""
    assert build_method("sd_aanet", {"name": "resnet18"}, channels=8, dropout=2).get_submodule("dropout").p == 1
    with pytest.raises(ConfigError, match=r"^model\.dropout=2\.1, expected a number of at least 0 and at most 2: "):
        build_method("sd_aanet", {"name": "resnet18"}, channels=8, dropout=2.1)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_dropout_is_as_published_times_its_scale(scale: float) -> None:
    """Half of the projected channels, a tenth of those before each classifier and attention; as counted, too."""
    network = SDAANet(build_backbone("resnet18"), 64, bins=(1.0, 0.5), dropout=scale)
    found = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout2d)}
    assert len(found) >= 5
    assert found == {name: (0.5 if name == "dropout" else 0.1) * scale for name in found}
    network.train()
    ones, dropped = torch.ones(1, 10_000, 1, 1), []
    for name in found:
        torch.manual_seed(0)
        dropped.append((network.get_submodule(name)(ones) == 0).float().mean().item())
    assert dropped == pytest.approx(list(found.values()), abs=0.02)


@pytest.mark.parametrize(("size", "nearest"), [(32, 33), (40, 41), (36, 33), (473 + 1, 473), (8, 17), (9, 17)])
def test_a_size_that_is_not_8n_plus_1(size: int, nearest: int) -> None:
    network = SDAANet(build_backbone("resnet18"), channels=4, prior=False)
    query, support = torch.zeros(1, 3, size, size), torch.zeros(1, 1, 3, size, size)
    with pytest.raises(ConfigError, match=rf"^size={size}, expected 8n \+ 1: the nearest good size is {nearest}$"):
        predict(network, query, support, torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("init", ["default", "lecun"])
def test_the_heads_first_weights(init: str) -> None:
    """Torch's own have a variance of 1 / (3 inputs); LeCun's, of 1 / inputs, leave the classifiers and the backbone."""
    torch.manual_seed(0)
    network = SDAANet(build_backbone("resnet18", high="stage3"), channels=64, init=init)
    torch.manual_seed(0)
    usual = SDAANet(build_backbone("resnet18", high="stage3"), channels=64)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            changed = init == "lecun" and not name.startswith("backbone.") and module.out_channels > 2
            same = torch.equal(module.weight, usual.get_parameter(f"{name}.weight"))
            assert same != changed, name
            if not name.startswith("backbone.") and module.weight.numel() > 1000:
                wanted = 1 / (module.weight[0].numel() * (1 if changed else 3))
                assert module.weight.var().item() == pytest.approx(wanted, rel=0.15), name


def statistics(network: SDAANet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.backbone.state_dict().items() if "weight" not in name}


def one_step(network: SDAANet) -> None:
    losses(network, *inputs(dtype=torch.float32))["total"].backward()


@pytest.mark.parametrize("trainable", [False, True])
def test_frozen_statistics_stand_still(trainable: bool) -> None:
    network = SDAANet(build_backbone("resnet18", trainable=trainable), channels=16)  # nobody calls train() on it
    rough(network.backbone)
    assert network.training
    assert not any(module.training for module in network.backbone.modules())
    before = statistics(network)
    one_step(network)
    network.eval()
    network.train()
    assert not any(module.training for module in network.backbone.modules())
    one_step(network)
    torch.testing.assert_close(statistics(network), before, rtol=0, atol=0)


class Fit(pl.LightningModule):
    """A network as somebody else would train it."""

    def __init__(self, network: SDAANet) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        return losses(self.network, *batch)["total"]

    def validation_step(self, batch: tuple[Tensor, ...], index: int) -> None:
        predict(self.network, batch[0], batch[2], batch[3])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.network.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_trainer_moves_the_statistics_only_where_asked(norm: str, tmp_path: Any) -> None:
    network = SDAANet(build_backbone("resnet18", norm=norm, high="stage3"), channels=8)
    before = statistics(network)
    batches = [inputs(size=33, seed=seed, dtype=torch.float32) for seed in range(2)]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=1,
    )  # fmt: skip
    trainer.fit(Fit(network), loader, loader)
    after = statistics(network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    running = {name for name in before if "running" in name or "num_batches" in name}
    assert moved == (running if norm == "batch" else set())


def test_bfloat16_is_close() -> None:
    network = small(dtype=torch.float32).eval()
    query, _, support, support_mask = inputs(shot=2, dtype=torch.float32)
    with torch.no_grad():
        exact = predict(network, query, support, support_mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = predict(network, query, support, support_mask)
    assert ours.logits.isfinite().all()
    assert ours.maps["prior"].dtype == torch.float32
    # Eight bits of mantissa through some forty layers.
    named = {name: (ours.maps[name], exact.maps[name]) for name in ("attention", "prior")}
    for name, (value, wanted) in (
        named | {"logits": (ours.logits, exact.logits), "embedding": (ours.embedding, exact.embedding)}
    ).items():
        assert (value.float() - wanted).abs().mean() < 0.05 * wanted.std(), name


def test_bfloat16_trains() -> None:
    network = small(dtype=torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = losses(network, *inputs(shot=2, dtype=torch.float32))
    terms["total"].backward()
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "original"}, "variant 'original' is unknown: choose one of paper, published"),
        ({"high": "stage5"}, "backbone.high=stage5, but ResNet-18 has no such output: choose one of stage1.0"),
        ({"init": "zeros"}, "init 'zeros' is unknown: choose default or lecun"),
        ({"query_reweighting": "sum"}, "query_reweighting 'sum' is unknown: choose one of mean, product"),
        ({"loss": {"teacher": "both"}}, "teacher 'both' is unknown: choose one of separate, integral"),
    ],
)
def test_unknown_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        small(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parts", "label"),
    [
        ({}, "SD-AANet (published)"),
        ({"variant": "paper", "prior": False}, "SD-AANet (paper), no prior"),
        ({"sdpm": False, "saam": False}, "baseline (published)"),
        ({"sdpm": False}, "without SDPM (published)"),
        ({"saam": False}, "without SAAM (published)"),
    ],
)
def test_what_a_table_calls_it(parts: dict[str, Any], label: str) -> None:
    assert small(**parts).label == label
