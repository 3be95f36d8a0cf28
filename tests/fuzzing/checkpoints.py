"""Checkpoints, weights of backbones and kept features: damaged bytes, and files that are whole with odd content."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from fuzzing.inputs import Input
from networks import tiny
from plain import layout
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.weights import load_backbone_weights
from sd_aanet.checkpoint import METHOD, Trained, load_trained
from sd_aanet.data.transforms import Preprocess
from sd_aanet.feature_cache import FeatureCache
from sd_aanet.models import build_method
from sd_aanet.models.base import Method
from sd_aanet.models.sd_aanet.published import from_published
from sd_aanet.segmenting.segmenter import FewShotSegmenter

NETWORK: dict[str, Any] = {
    "method": "sd_aanet",
    "backbone": {"name": "resnet18", "trainable": False, "norm": "frozen", "mid": ["stage1", "stage2"], "high": None},
    **{
        "channels": 8,
        "bins": [1.0, 0.5],
        "dropout": 0.1,
        "sdpm": True,
        "saam": True,
        "prior": True,
        "variant": "paper",
    },
}
TRAINING: dict[str, Any] = {
    **{"dataset": "shapes", "fold": 0, "way": 1, "shot": 1, "seed": 0, "steps": 4, "size": 33, "val_episodes": 4},
    **{"augment": "none", "select_on": "base", "held_out": 3, "novel_in_train": "background"},
    "classes": {"train": ["a", "b"], "val": ["c"]},
}
TYPES = (
    torch.bool,
    torch.int8,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.float8_e5m2,
)


@cache
def _state() -> dict[str, Tensor]:
    """Of the network, each tensor one number spread out, which takes no room in a file."""
    state = build_method(**NETWORK).state_dict()
    return {name: torch.full((), 0.01).to(value.dtype).expand(value.shape) for name, value in state.items()}


def _content() -> dict[str, Any]:
    backbone = build_backbone("resnet18")
    return {
        "state_dict": {f"{METHOD}{name}": value for name, value in _state().items()},
        "hyper_parameters": {
            "network": NETWORK,
            "preprocess": vars(Preprocess(33, "squash", backbone.mean, backbone.std)),
            "classes": 8,
            "training": TRAINING,
        },
        "pytorch-lightning_version": "2.6.6",
    }


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _odd_tensor(input: Input, old: Any) -> Any:
    kind = input.chance.randrange(9)
    if not isinstance(old, Tensor):  # odd already
        return input.a_value()
    if kind == 0:
        return old.to(input.chance.choice(TYPES)) if old.dim() else old
    if kind == 1:
        return torch.full((3,), float("nan"))
    if kind == 2:
        return old[None]
    if kind == 3:
        return torch.zeros(input.chance.choice(((), (0,), (1,), (2, 0), (1,) * 9)))
    if kind == 4 and old.dim() and old.is_floating_point():
        return old.contiguous().to_sparse()
    if kind == 5:
        return old.flatten()[:-1]
    if kind == 6:
        return torch.nn.Parameter(old) if old.is_floating_point() else old
    return np.float64(1.0) if kind == 7 else input.a_value()


def _odd(input: Input, old: Any) -> Any:
    if isinstance(old, Tensor):
        return _odd_tensor(input, old)
    if input.often(0.2):
        return input.chance.choice((torch.zeros(2), (), ("a",), {1, 2}, torch.Size([1]), 1j, b"x", torch.float16, old))
    if isinstance(old, bool):
        return input.chance.choice((not old, None, "x", 2))
    if isinstance(old, str) and input.often(0.5):
        return input.chance.choice(
            ("published", "prototype", "hsnet", "panet", "probe", "sd_aanet_multi", "resnet34", "vgg16_bn", "stage9")
        )
    return input.a_value()


def _settings_damaged(input: Input, content: dict[str, Any]) -> Any:
    """Of a checkpoint: its settings as a rule, which are few beside its tensors, else anything."""
    part = input.chance.randrange(6)
    if part == 0:
        return input.tree(content, lambda old: _odd(input, old))
    if part == 1:
        return content | {"state_dict": input.tree(content["state_dict"], lambda old: _odd_tensor(input, old))}
    return content | {"hyper_parameters": input.tree(content["hyper_parameters"], lambda old: _odd(input, old))}


def checkpoint(input: Input) -> None:
    """A checkpoint with odd content, loaded and, where it is taken, used."""
    _use(input, _saved(_settings_damaged(input, _content())))


def checkpoint_bytes(input: Input) -> None:
    """A checkpoint with damaged bytes."""
    old = input.often(0.3)
    _use(input, input.bytes_of(_saved(_content(), _use_new_zipfile_serialization=not old)))


def _use(input: Input, data: bytes) -> None:
    path = Path("best.ckpt")
    path.write_bytes(data)

    def used() -> None:
        trained = load_trained(path, input.chance.choice(("refuse", "use")))
        assert isinstance(trained, Trained)
        model = FewShotSegmenter(trained.method, trained.preprocess, "cpu")
        if trained.preprocess.size <= 65:
            image, mask = np.full((40, 40, 3), 9, np.uint8), np.ones((40, 40), np.uint8)
            model.remember([(image, mask)])
            model.segment(image)

    input.read(used)


@cache
def _backbone() -> Backbone:
    return build_backbone("resnet18", output_stride=32)


def weights(input: Input) -> None:
    """A backbone's weights in any of the formats, with damaged bytes or odd tensors."""
    state = {name: torch.ones((), dtype=v.dtype).expand(v.shape) for name, v in _backbone().state_dict().items()}
    kind = input.chance.choice(("pth", "pth", "safetensors", "npz"))
    if kind == "npz":
        arrays: dict[str, Any] = {}
        for name, value in state.items():
            if value.dim() == 4:
                arrays |= {
                    f"{name.removesuffix('.weight')}.q": np.ones(value.shape, np.int8),
                    f"{name.removesuffix('.weight')}.frac": np.int64(3),
                }
                arrays[f"{name.removesuffix('.weight')}.bias"] = np.zeros(len(value), np.float32)
        damaged = input.tree(arrays, lambda old: _odd_array(input, old)) if input.often(0.5) else arrays
        file = io.BytesIO()
        np.savez_compressed(
            file, **{str(k) or "x": v for k, v in damaged.items()} if isinstance(damaged, dict) else {"x": 0}
        )
        data = file.getvalue()
    elif kind == "safetensors":
        few = {
            name: value.contiguous() for name, value in state.items() if value.numel() < 5000
        }  # it holds all in full
        data = save(few if not input.whole else {name: value.contiguous() for name, value in state.items()})
    else:
        content: Any = input.chance.choice((state, {"state_dict": state}, {f"module.{n}": v for n, v in state.items()}))
        data = _saved(
            input.tree(content, lambda old: _odd_tensor(input, old) if isinstance(old, Tensor) else input.a_value())
        )
    Path(f"w.{kind}").write_bytes(input.bytes_of(data) if kind == "safetensors" or input.often(0.5) else data)
    input.read(load_backbone_weights, _backbone(), f"w.{kind}")


def _odd_array(input: Input, old: Any) -> Any:
    array = np.asarray(old)
    kind = input.chance.randrange(6)
    if kind == 0:
        return array.astype(input.chance.choice((np.float64, np.uint8, np.int64, np.complex64, np.bool_, "U3")))
    if kind == 1:
        return array[None]
    if kind == 2:
        return np.zeros(0, array.dtype)
    if kind == 3:
        return np.array([None, "a"], object)
    return np.array(input.chance.choice((-1, 64, 10**18, float("nan"), float("inf"), "x", True)))


@cache
def _network() -> tuple[Method, Tensor, Any]:
    method = tiny("prototype", dtype=torch.float32)
    picture = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    return method, picture, method.image_features(picture)


def features(input: Input) -> None:
    """Kept features, damaged: they are made anew, and are as if computed."""
    method, picture, expected = _network()
    with torch.no_grad():
        FeatureCache(method, 1e9, Path("kept")).image(["a"], picture)
        for path in Path("kept").rglob("*.pt"):
            content = torch.load(path, weights_only=True)
            odd = input.tree(list(content), lambda old: _odd(input, old)) if input.often(0.5) else None
            path.write_bytes(input.bytes_of(path.read_bytes()) if odd is None else _saved(odd))
        found = FeatureCache(method, 1e9, Path("kept")).image(["a"], picture)
    for mine, wanted in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0)
    input.taken += 1


def published(input: Input) -> None:
    """A published checkpoint with odd names and shapes, by what gives it our names; now and then by the command."""
    names = layout(input.chance.choice(("resnet50", "vgg16_bn")))
    state: Any = {name: torch.zeros(()).expand(shape) for name, shape in names.items()}
    odd = input.tree(state, lambda old: input.chance.choice((torch.zeros(3), torch.zeros(()), [old])))
    if isinstance(odd, dict):
        input.read(from_published, {str(name): v for name, v in odd.items() if isinstance(v, Tensor)})
    if input.often(0.1) and not input.whole:
        content = input.chance.choice((odd, {"state_dict": odd}, {"state_dict": {}}, _content(), {"state_dict": 5}, []))
        Path("p.pth").write_bytes(_saved(content))
        input.command("import-published", "p.pth", "--out", "o.ckpt", *(["--export"] if input.often(0.3) else []))


KINDS = {
    "checkpoints, bytes": (300, checkpoint_bytes),
    "checkpoints, content": (700, checkpoint),
    "weights of backbones": (400, weights),
    "kept features": (200, features),
    "published checkpoints": (100, published),
}
