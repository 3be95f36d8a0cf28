"""The whole network: against the plain one, and what must hold whatever its switches."""

import inspect
import itertools
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from networks import inputs, plain, rough, small
from sd_aanet.errors import ConfigError
from sd_aanet.models import METHODS, base, build_network
from sd_aanet.models.backbone import Backbone
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.training.losses import SDAANetLoss

REWEIGHTINGS = {"paper": "mean", "published": "product"}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

# Every part on and off, with every stage for the prior; the other switches turn along.
PARTS = [
    {"sdpm": sdpm, "saam": saam, "prior": stage is not None, "prior_stage": stage or 4}
    for sdpm, saam, stage in itertools.product((True, False), (True, False), (None, 2, 3, 4))
]
COMBINATIONS = [
    parts
    | {
        "variant": ("paper", "published")[i % 2],
        "bounded_attention": i % 3 == 0,
        "init": ("default", "lecun")[i % 5 == 0],
        "backbone_trainable": i % 4 > 1,
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
        ours, expected = network(query, support, support_mask), reference(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(ours.attention, expected.get("attention"), **CLOSE)
    torch.testing.assert_close(ours.prior, expected["prior"], **CLOSE)
    torch.testing.assert_close(ours.prototype, expected["prototype"], **CLOSE)
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
    prediction = network(query, support, support_mask)
    terms = SDAANetLoss(variant=settings["variant"])(prediction, query_mask, support_mask)
    terms.total.backward()
    assert terms.total.isfinite()
    assert (terms.distillation > 0) == settings["sdpm"]
    assert (terms.support > 0) == settings["saam"]
    assert (prediction.support_logits is not None) == settings["saam"]
    assert len(prediction.auxiliary_logits) == 4
    for name, parameter in network.named_parameters():
        trains = not name.startswith("backbone.") or settings["backbone_trainable"]
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name
        if trains:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    assert any(name.startswith("backbone.layer4.") for name, _ in network.named_parameters()) == (
        settings["prior"] and settings["prior_stage"] == 4
    )


@pytest.mark.parametrize(("variant", "norm"), [("paper", "frozen"), ("published", "batch")])
def test_training_is_the_plain_network(variant: str, norm: str) -> None:
    """Batch norms in train mode see the query alone, then each shot alone."""
    network = small(variant=variant, backbone_norm=norm).train()
    query, _, support, support_mask = inputs(batch=3, shot=2, size=33)
    reference = plain(network, reweighting=REWEIGHTINGS[variant], backbone_batch=norm == "batch")
    ours, expected = network(query, support, support_mask), reference(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(list(ours.auxiliary_logits), expected["auxiliary"], **CLOSE)
    assert ours.support_logits is not None
    torch.testing.assert_close(list(ours.support_logits.unbind(1)), expected["support_logits"], **CLOSE)
    statistics = plain(network).state
    for name, value in reference.state.items():
        if "running" in name:
            torch.testing.assert_close(statistics[name], value.detach(), **CLOSE)


@pytest.mark.parametrize("settings", [{"prior_stage": 4}, {"prior_stage": 2}], ids=label)
def test_a_vgg_is_the_plain_one(settings: dict[str, Any]) -> None:
    network = small(backbone="vgg16_bn", channels=8, **settings).eval()
    query, _, support, support_mask = inputs(batch=1, shot=2, size=49)
    with torch.no_grad():
        ours, expected = network(query, support, support_mask), plain(network)(query, support, support_mask)
    torch.testing.assert_close(ours.logits, expected["logits"], **CLOSE)
    torch.testing.assert_close(ours.prior, expected["prior"], **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_no_query_mask_goes_in(method: str) -> None:
    for function in (METHODS[method].forward, METHODS[method].head, METHODS[method].extract):
        assert not any("query" in name and "mask" in name for name in inspect.signature(function).parameters)


def test_an_episode_does_not_see_its_batch() -> None:
    network = small().eval()
    query, _, support, support_mask = inputs(batch=3, shot=2, size=33)
    with torch.no_grad():
        together = network(query, support, support_mask)
        for b in range(3):
            alone = network(query[b : b + 1], support[b : b + 1], support_mask[b : b + 1])
            torch.testing.assert_close(alone.logits, together.logits[b : b + 1], **CLOSE)
            torch.testing.assert_close(alone.attention, together.attention[b : b + 1], **CLOSE)


@pytest.mark.parametrize("variant", REWEIGHTINGS)
def test_the_order_of_the_shots_does_not_matter(variant: str) -> None:
    network = small(variant=variant).eval()
    query, _, support, support_mask = inputs(batch=2, shot=3, size=33)
    order = [2, 0, 1]
    with torch.no_grad():
        ours, turned = network(query, support, support_mask), network(query, support[:, order], support_mask[:, order])
    for name in ("logits", "attention", "prior", "prototype"):
        torch.testing.assert_close(getattr(turned, name), getattr(ours, name), **CLOSE)
    torch.testing.assert_close(turned.support_prototypes, ours.support_prototypes[:, order], **CLOSE)


@pytest.mark.parametrize("variant", REWEIGHTINGS)
def test_copies_of_a_support_are_one_support(variant: str) -> None:
    """For all but the published query, which is reweighted once a shot."""
    network = small(variant=variant).eval()
    query, _, support, support_mask = inputs(batch=2, shot=1, size=33)
    with torch.no_grad():
        one = network(query, support, support_mask)
        three = network(query, support.repeat(1, 3, 1, 1, 1), support_mask.repeat(1, 3, 1, 1))
    for name in ("attention", "prior", "prototype"):
        torch.testing.assert_close(getattr(three, name), getattr(one, name), **CLOSE)
    same = torch.allclose(three.logits, one.logits, **CLOSE)
    assert same == (variant == "paper")


def test_another_number_of_shots_after_training() -> None:
    network = small(dtype=torch.float32).train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    query, query_mask, support, support_mask = inputs(shot=1, dtype=torch.float32)
    SDAANetLoss()(network(query, support, support_mask), query_mask, support_mask).total.backward()
    optimizer.step()
    network.eval()
    for shot in (1, 2, 5):
        query, _, support, support_mask = inputs(shot=shot, dtype=torch.float32)
        prediction = network(query, support, support_mask)
        assert prediction.logits.shape == (2, 2, 41, 41)
        assert prediction.support_prototypes.shape == (2, shot, 16)
        assert prediction.logits.isfinite().all()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_ignored_pixels_are_not_foreground(value: int) -> None:
    network = small().eval()
    query, _, support, support_mask = inputs(size=33)
    with torch.no_grad():
        ours = network(query, support, support_mask).logits
        other = network(query, support, support_mask.where(support_mask != 255, value)).logits
    assert torch.equal(ours, other) == (value != 1)


def test_an_empty_support_mask_is_finite() -> None:
    network = small().eval()
    query, _, support, support_mask = inputs()
    assert network(query, support, torch.zeros_like(support_mask)).logits.isfinite().all()


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_head_has_as_many_parameters_as_reported() -> None:
    """10.82 M without SDPM and SAAM, 21.34 M with both."""
    with torch.device("meta"):
        full, baseline = SDAANet(), SDAANet(sdpm=False, saam=False)
    assert round(count(full) / 1e6, 2) == 21.34
    assert round(count(baseline) / 1e6, 2) == 10.82
    assert full.decoder.merge[0].weight.shape == (256, 514, 1, 1)
    assert baseline.decoder.merge[0].weight.shape == (256, 513, 1, 1)


@pytest.mark.parametrize(("size", "nearest"), [(32, 33), (40, 41), (36, 33), (473 + 1, 473), (8, 17), (9, 17)])
def test_a_size_that_is_not_8n_plus_1(size: int, nearest: int) -> None:
    network = SDAANet("resnet18", channels=4, prior=False)
    query, support = torch.zeros(1, 3, size, size), torch.zeros(1, 1, 3, size, size)
    with pytest.raises(ConfigError, match=rf"^size={size}, expected 8n \+ 1: the nearest good size is {nearest}$"):
        network(query, support, torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("init", ["default", "lecun"])
def test_the_heads_first_weights(init: str) -> None:
    """Torch's own have a variance of 1 / (3 inputs); LeCun's, of 1 / inputs, leave the classifiers and the backbone."""
    torch.manual_seed(0)
    network = SDAANet("resnet18", channels=64, init=init, prior_stage=3)
    torch.manual_seed(0)
    usual = SDAANet("resnet18", channels=64, prior_stage=3)
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
    query, query_mask, support, support_mask = inputs(dtype=torch.float32)
    SDAANetLoss()(network(query, support, support_mask), query_mask, support_mask).total.backward()


@pytest.mark.parametrize("trainable", [False, True])
def test_frozen_statistics_stand_still(trainable: bool) -> None:
    network = SDAANet("resnet18", channels=16, backbone_trainable=trainable)  # nobody calls train() on it
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
        query, query_mask, support, support_mask = batch
        total: Tensor = SDAANetLoss()(self.network(query, support, support_mask), query_mask, support_mask).total
        return total

    def validation_step(self, batch: tuple[Tensor, ...], index: int) -> None:
        self.network(batch[0], batch[2], batch[3])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.network.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_trainer_moves_the_statistics_only_where_asked(norm: str, tmp_path: Any) -> None:
    network = SDAANet("resnet18", channels=8, backbone_norm=norm, prior_stage=3)
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
        exact = network(query, support, support_mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = network(query, support, support_mask)
    assert ours.logits.isfinite().all()
    assert ours.prior is not None
    assert ours.prior.dtype == torch.float32
    # Eight bits of mantissa through some forty layers.
    for name in ("logits", "attention", "prototype", "prior"):
        value, wanted = getattr(ours, name).float(), getattr(exact, name)
        assert (value - wanted).abs().mean() < 0.05 * wanted.std(), name


def test_bfloat16_trains() -> None:
    network = small(dtype=torch.float32).train()
    query, query_mask, support, support_mask = inputs(shot=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = SDAANetLoss()(network(query, support, support_mask), query_mask, support_mask)
    terms.total.backward()
    assert {term.dtype for term in vars(terms).values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "original"}, "variant 'original' is unknown: choose one of paper, published"),
        ({"prior_stage": 5}, "prior_stage 5 does not exist: choose 2, 3 or 4"),
        ({"init": "zeros"}, "init 'zeros' is unknown: choose default or lecun"),
        ({"backbone_norm": "group"}, "backbone_norm 'group' is unknown: choose frozen or batch"),
        ({"query_reweighting": "sum"}, "query_reweighting 'sum' is unknown: choose one of mean, product"),
        ({"backbone": "alexnet"}, "backbone 'alexnet' is unknown: choose one of resnet18"),
        ({"method": "pfenet"}, "method 'pfenet' is unknown: choose one of sd_aanet, prototype"),
        ({"method": "prototype", "stage": 4}, "stage 4 has no features to compare: choose 2 or 3"),
    ],
)
def test_unknown_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_network(**({"backbone": "resnet18"} | settings))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_folded_weights_follow_every_change_and_are_no_part_of_the_network() -> None:
    network = small().eval()
    image = torch.randn(1, 3, 33, 33).double()

    def unfolded() -> torch.Tensor:
        stage2, stage3 = network.backbone.stages23(image)
        return torch.cat([stage3, stage2], 1)

    names = set(network.state_dict())
    changes = {
        "none": lambda: None,
        "in place": lambda: rough(network.backbone),
        "loaded": lambda: network.load_state_dict(small(seed=1).state_dict()),
        "moved": lambda: network.float().double(),
    }
    for change in changes.values():
        change()
        with torch.no_grad():
            torch.testing.assert_close(network.mid(image), unfolded(), rtol=1e-9, atol=1e-9)
    assert set(network.state_dict()) == names
    assert len(list(network.backbone.modules())) == len(list(small().backbone.modules()))


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16_bn"])
def test_a_backbone_may_take_pictures_in_parts(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    network = small(backbone=backbone, prior_stage=4).eval()
    query, _, support, support_mask = inputs(batch=3, shot=2)
    sizes: list[int] = []
    kind = type(network.backbone)
    stages23 = kind.stages23

    def watched(self: Backbone, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(image))
        return stages23(self, image)

    monkeypatch.setattr(kind, "stages23", watched)
    with torch.no_grad():
        whole = network(query, support, support_mask)
        monkeypatch.setattr(base, "CPU_POSITIONS", 72)  # two pictures'
        parts = network(query, support, support_mask)
    assert sizes == [9, 2, 2, 2, 2, 1]
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.prior, whole.prior, rtol=1e-12, atol=1e-12)


def test_a_backbone_that_trains_is_not_folded() -> None:
    network = small(backbone_trainable=True, backbone_norm="frozen")
    network.mid(torch.randn(2, 3, 33, 33).double()).sum().backward()
    assert network.backbone.get_parameter("bn1.weight").grad is not None
