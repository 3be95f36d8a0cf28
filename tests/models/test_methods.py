"""Which methods there are, and building one from plain values."""

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from networks import ONLY, episode, tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.errors import ConfigError
from sd_aanet.files import config_folder
from sd_aanet.models import build_method, find_method, methods
from sd_aanet.models.base import FewShotMethod

NETWORK: dict[str, Any] = {"method": "prototype", "backbone": {"name": "resnet18"}}


def test_methods_are_found_by_their_names() -> None:
    assert {"sd_aanet", "prototype"} <= methods().keys()
    for name, kind in methods().items():
        assert issubclass(kind, FewShotMethod)
        assert find_method(name) is kind
        assert kind.name == name
    assert len(set(methods().values())) == len(methods())


@pytest.mark.parametrize(
    "step", ["label", "image_features", "encode_query", "encode_support", "support_set", "compare"]
)
def test_a_step_that_a_method_lacks_is_told_when_it_is_made(step: str) -> None:
    """Otherwise it would return None, and something else would fail later."""
    lacking = type("Lacking", (find_method("prototype"),), {step: getattr(FewShotMethod, step)})
    with pytest.raises(TypeError, match=f"abstract method '?{step}"):
        lacking(build_backbone("resnet18"))


@pytest.mark.parametrize("name", methods())
def test_every_method_says_what_it_is(name: str) -> None:
    method = tiny(name)
    assert method.label
    assert "\n" not in method.label
    assert method.label == tiny(name).label
    method.check_batch(method.least_batch)
    if method.least_batch > 1:
        with pytest.raises(ConfigError, match=rf"^batch_size=1, expected at least .*{method.least_batch} or more$"):
            method.check_batch(1)


@pytest.mark.parametrize("name", methods())
def test_every_method_that_trains_has_losses_and_gradients(name: str) -> None:
    method = tiny(name, ways=1)
    if not method.trains:
        assert not any(p.requires_grad for p in method.parameters())
        return
    method.train()
    names = [[f"{row} {place}" for place in range(2)] for row in range(max(2, method.least_batch))]
    batch = episode(names, [1] * len(names), method.backbone.grid.nearest(33), torch.float64)
    terms = method.losses(Comparer(method)(batch), batch)
    assert terms
    assert method.loss_weights.keys() <= terms.keys()
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    assert any(p.grad is not None and p.grad.any() for p in method.parameters())
    assert not any(p.grad is not None for p in method.backbone.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "abacus"}, r"^method 'abacus' is unknown: choose one of [^\n]*prototype, [^\n]*$"),
        ({"backbone": {"name": "alexnet"}}, r"^backbone 'alexnet' is unknown: choose one of resnet18"),
        ({"backbone": {"name": "resnet18", "norm": "group"}}, r"^backbone.norm=group, expected frozen or batch"),
        ({"channels": 8, "bins": 2}, r"^method prototype has no setting bins, channels: leave it out$"),
        ({"features": "stage9"}, r"^model.features=stage9, but ResNet-18 has no such output: choose one of [^\n]*$"),
    ],
)
def test_unknown_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(**NETWORK | settings)


@pytest.mark.parametrize("name", methods())
def test_a_method_brings_its_output_stride(name: str) -> None:
    with torch.device("meta"):
        method = build_method(name, {"name": ONLY.get(name, "resnet50")})
    assert max(output.stride for output in method.backbone.outputs.values()) <= methods()[name].output_stride
    assert not method.backbone.trainable
    assert method.training
    assert not method.backbone.training


def described(method: FewShotMethod[Any, Any, Any, Any, Any, Any]) -> list[object]:
    """Its parts as torch prints them, and what plain values they hold."""
    plain = (bool, int, float, str, tuple, dict, type(None))
    held = [
        {key: value for key, value in vars(module).items() if isinstance(value, plain) and not key.startswith("_")}
        for module in method.modules()
    ]
    return [str(method), *held]


@pytest.mark.parametrize("name", methods())
def test_a_class_by_itself_is_what_conf_says(name: str) -> None:
    """As in the paper, whose numbers conf/ has: whoever builds one in Python gets what a command does."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", [f"model={name}", "dataset=pascal5i", "way=2", "out=somewhere"])
    settings = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(settings, dict)
    with torch.device("meta"):
        told = {str(key): value for key, value in settings.items() if key != "method"}
        backbone = {"name": ONLY.get(name, "resnet50")}
        bare, full = (build_method(name, backbone, **more) for more in ({}, told))
    assert described(bare) == described(full)
    assert dict(bare.loss_weights) == dict(full.loss_weights)
