"""Optimizers by their names, and the schedule."""

from typing import Any

import pytest
import torch
from torch import nn

from sd_aanet.errors import ConfigError
from sd_aanet.training.optimizers import build_optimizer


def made(**settings: Any) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    return build_optimizer([nn.Parameter(torch.ones(3))], **({"steps": 4, "lr": 0.5} | settings))


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "weight_decay": 0.01}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.01}),
    ],
)
def test_an_optimizer_has_its_settings(name: str, kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    given = {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }  # as YAML has them
    optimizer, _ = made(name=name, **given)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in settings} == settings
    assert group["lr"] == 0.5


@pytest.mark.parametrize("power", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_rate_falls_as_a_polynomial(name: str, power: float) -> None:
    optimizer, schedule = made(name=name, power=power)
    rates = []
    for _ in range(6):  # some more than were told
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * max(0.0, 1 - step / 4) ** power for step in range(6)], rel=1e-12)


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^optimizer.name=lion, expected one of sgd, adam, adamw: set optimizer.name=sgd$"
    ):
        made(name="lion")
