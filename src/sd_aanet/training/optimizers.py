"""Optimizers and their schedules, by the names of conf/optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sd_aanet.rules import Rule, check, number, one_of


def _betas(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(number(0.9).holds(v) and v < 1 for v in value)


RULES = {
    "name": one_of("sgd", "adam", "adamw"),
    "weight_decay": number(0.0001),
    "momentum": number(0.9, most=1),
    "betas": Rule("two numbers from 0 to below 1", _betas, "[0.9,0.999]"),
    "power": number(0.9),
}


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    steps: float,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    betas: Sequence[float] = (0.9, 0.999),
    power: float = 0.0,
) -> tuple[Optimizer, LambdaLR]:
    """An optimizer, and the poly schedule: after every step the rate is lr * (1 - step / steps)^power.

    Args:
        parameters: what trains.
        steps: of the whole training.
        name: sgd, adam or adamw.
        lr: at the start.
        weight_decay: of all three; of adamw decoupled from the gradient.
        momentum: of sgd.
        betas: of adam and adamw.
        power: 0 keeps the rate constant.

    Raises:
        ConfigError: another name.
    """
    check({"name": name}, RULES, "optimizer.")
    if name == "sgd":
        optimizer: Optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    else:
        first, second = betas
        kind = Adam if name == "adam" else AdamW
        optimizer = kind(parameters, lr=lr, betas=(first, second), weight_decay=weight_decay)
    return optimizer, LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** power)
