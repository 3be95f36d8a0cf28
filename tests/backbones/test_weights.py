"""Backbone weights from files: loaded exactly, or an error that names what is wrong."""

import io
import os
import pickle
import random
from collections import UserDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import rough
from sd_aanet.backbones import build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.int8 import read_int8, stride_of
from sd_aanet.backbones.weights import TORCHVISION, load_backbone_weights, safe_load
from sd_aanet.checkpoint import Trained, save_trained
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError
from sd_aanet.models import build_method


def seeded(seed: int, name: str = "resnet18") -> Backbone:
    torch.manual_seed(seed)
    backbone = build_backbone(name)
    rough(backbone)
    return backbone


def same(one: Backbone, other: Backbone) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def load(path: Path, name: str = "resnet18") -> tuple[Backbone, str]:
    backbone = seeded(99, name)
    return backbone, load_backbone_weights(backbone, str(path))


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(seeded(1).state_dict() | classifier, path)
    return path


def test_a_file_of_torchvision(torchvision_file: Path) -> None:
    backbone, report = load(torchvision_file)
    assert same(backbone, seeded(1))
    assert report == f"backbone weights from {torchvision_file}: 120 tensors, none missing; 2 not needed (fc.*)"


def test_a_vgg_of_torchvision(tmp_path: Path) -> None:
    vgg = seeded(1, "vgg16_bn")
    torch.save(vgg.state_dict() | {"classifier.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    backbone, report = load(tmp_path / "vgg.pth", "vgg16_bn")
    assert same(backbone, vgg)
    assert report.endswith("91 tensors, none missing; 1 not needed (classifier.*)")


@pytest.mark.parametrize("wrap", ["state_dict", "module", "both"])
def test_wrapped_files(wrap: str, tmp_path: Path) -> None:
    state: Any = seeded(1).state_dict()
    if wrap != "state_dict":
        state = {f"module.{name}": value for name, value in state.items()}
    if wrap != "module":
        state = {"state_dict": state, "epoch": 3}
    torch.save(state, tmp_path / "x.pth")
    assert same(load(tmp_path / "x.pth")[0], seeded(1))


def test_files_without_counters(tmp_path: Path) -> None:
    """Old files of torchvision have no num_batches_tracked, which nothing here reads."""
    state = {name: value for name, value in seeded(1).state_dict().items() if not name.endswith("tracked")}
    torch.save(state, tmp_path / "x.pth")
    backbone, report = load(tmp_path / "x.pth")
    assert same(backbone, seeded(1))
    assert "100 tensors, none missing" in report


def test_the_backbone_of_a_checkpoint_of_ours(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"method": "sd_aanet", "backbone": {"name": "resnet18"}, "channels": 8}
    method = build_method(**arguments)
    rough(method)
    save_trained(Trained(method, arguments, Preprocess(33), classes=3), tmp_path / "ours.ckpt")
    backbone, report = load(tmp_path / "ours.ckpt")
    assert same(backbone, method.backbone)
    assert report.endswith("120 tensors, none missing")


def test_a_backbone_without_stage_4_needs_less(torchvision_file: Path) -> None:
    backbone = seeded(5)
    backbone.keep(["stage3"])
    report = load_backbone_weights(backbone, str(torchvision_file))
    assert "90 tensors, none missing; 32 not needed (layer4.*, fc.*)" in report


def test_missing_tensors_are_named(torchvision_file: Path, tmp_path: Path) -> None:
    state = torch.load(torchvision_file)
    del state["layer2.0.conv1.weight"], state["layer4.1.bn2.bias"]
    torch.save(state, tmp_path / "x.pth")
    before = seeded(99)
    with pytest.raises(CheckpointError) as error:
        load_backbone_weights(before, str(tmp_path / "x.pth"))
    assert str(error.value) == (
        f"weights '{tmp_path / 'x.pth'}' do not fit this backbone: missing: layer2.0.conv1.weight, layer4.1.bn2.bias; "
        "choose the backbone that they were made for"
    )
    assert same(before, seeded(99))  # nothing was half loaded


def test_other_shapes_are_named(torchvision_file: Path, tmp_path: Path) -> None:
    state = torch.load(torchvision_file)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"other shapes: conv1.weight \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\);"
    ):
        load(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "odd",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to("meta"),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's: quantised tensors go with one of its next releases
def test_tensors_that_are_no_plain_numbers_count_as_missing(odd: Any, torchvision_file: Path, tmp_path: Path) -> None:
    state = torch.load(torchvision_file)
    state["conv1.weight"] = odd(state["conv1.weight"])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"missing: conv1.weight;"):
        load(tmp_path / "x.pth")


def test_weights_of_another_backbone(torchvision_file: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^weights .* do not fit this backbone: missing: [^\n]*and \d+ more; [^\n]*$"
    ):
        load(torchvision_file, "resnet50")


@pytest.mark.parametrize(("name", "deeper"), [("resnet18", "resnet34"), ("resnet50", "resnet101")])
def test_weights_of_a_deeper_backbone(name: str, deeper: str, tmp_path: Path) -> None:
    """Which has all that the shallower one asks for."""
    torch.save(build_backbone(deeper).state_dict(), tmp_path / "deeper.pth")
    backbone = build_backbone(name)
    backbone.keep(["stage3"])
    with pytest.raises(CheckpointError, match=r"fit this backbone: of another network: layer\d\.\d[^\n]*; choose the"):
        load_backbone_weights(backbone, str(tmp_path / "deeper.pth"))


# 8-bit files -----------------------------------------------------------------------------------------------------


def quantised(backbone: Backbone, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            arrays[f"{name}.q"] = rng.integers(-128, 128, tuple(module.weight.shape)).astype(np.int8)
            arrays[f"{name}.frac"] = np.int64(rng.integers(6, 12))
            arrays[f"{name}.bias"] = rng.normal(0, 0.1, len(module.weight)).astype(np.float32)
    return arrays


@pytest.mark.parametrize(("name", "tensors"), [("resnet18", 100), ("resnet50", 265)])
def test_8_bit_weights_are_convolutions_with_a_bias(name: str, tensors: int, tmp_path: Path) -> None:
    arrays = quantised(build_backbone(name))
    np.savez(tmp_path / "x.npz", **arrays, **{"fc.q": np.zeros((9, 4), np.int8), "fc.frac": 3, "fc.bias": np.zeros(9)})
    backbone, report = load(tmp_path / "x.npz", name)
    assert f"{tensors} tensors, none missing; 2 not needed (fc.*)" in report
    backbone.eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # divides by one, to the last bits of float32
            assert module.running_var is not None
            assert ((module.running_var + module.eps).sqrt() - 1).abs().max() < 2e-7
    x: Tensor = torch.randn(1, 3, 17, 17)

    def folded(conv: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight = torch.from_numpy(arrays[f"{conv}.q"].astype(np.float64) / 2.0 ** int(arrays[f"{conv}.frac"]))
        return F.conv2d(x.double(), weight, torch.from_numpy(arrays[f"{conv}.bias"]).double(), stride, padding)

    stem = backbone.bn1(backbone.conv1(x))
    torch.testing.assert_close(stem.double(), folded("conv1", x, 2, 3), rtol=1e-4, atol=1e-4)
    block = backbone.layer2[0]  # type: ignore[index]
    x = torch.randn(1, block.conv1.in_channels, 9, 9)
    shortcut = folded("layer2.0.downsample.0", x, 2)
    if name == "resnet18":
        y = folded("layer2.0.conv2", F.relu(folded("layer2.0.conv1", x, 2, 1)), 1, 1)
    else:
        y = F.relu(folded("layer2.0.conv2", F.relu(folded("layer2.0.conv1", x)), 2, 1))
        y = folded("layer2.0.conv3", y)
    expected = y + shortcut  # the stage's ReLU comes behind it
    torch.testing.assert_close(block(x).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_real_8_bit_weights(shared: Path) -> None:
    path = shared / "weights" / "resnet50_imagenet_int8.npz"
    backbone = build_backbone("resnet50", stride_on=stride_of(str(path)))
    report = load_backbone_weights(backbone, str(path))
    assert report.endswith("265 tensors, none missing; 2 not needed (fc.*)")
    zeros = torch.cat([m.weight.flatten() for m in backbone.modules() if isinstance(m, nn.Conv2d)]) == 0
    assert 0.75 < zeros.float().mean() < 0.88  # pruned: 18.5 % are not zero
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        stage3 = backbone.eval()(x, ["stage3"])["stage3"]
    assert stage3.isfinite().all()
    assert stage3.std() > 0.01


def test_8_bit_weights_of_another_form(tmp_path: Path) -> None:
    arrays = quantised(build_backbone("resnet18"))
    del arrays["layer1.0.conv2.frac"]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"hold layer1.0.conv2.q without layer1.0.conv2.frac or .*: not of this"):
        load(tmp_path / "x.npz")
    odd = {
        "layer1.0.conv2.q": [np.zeros((64, 64, 3, 3), np.complex64), np.zeros((64, 64, 3, 3), "S1")],
        "layer1.0.conv2.frac": ["x", 0.5, np.arange(3), 2000],
        "layer1.0.conv2.bias": [np.zeros(64, "S1"), np.full(64, np.nan), np.zeros(64, np.complex64), "x"],
    }
    for key, values in odd.items():
        for value in values:
            np.savez(tmp_path / "x.npz", **{**quantised(build_backbone("resnet18")), key: value})
            with pytest.raises(CheckpointError, match=r"as layer1.0.conv2.q, .frac and .bias: not of this form"):
                load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", something=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"do not fit this backbone: missing: conv1.weight"):
        load(tmp_path / "x.npz")


def test_where_the_stride_is() -> None:
    assert [stride_of(x) for x in ("a/b.npz", "a.pth", "torchvision://resnet50", None)] == ["1x1", "3x3", "3x3", "3x3"]


# torchvision:// --------------------------------------------------------------------------------------------------


def test_names_of_torchvision_are_fetched_once_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(url: str, **settings: Any) -> dict[str, Tensor]:
        asked.append((url, settings))
        return seeded(1).state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    backbone = seeded(99)
    assert "from torchvision://resnet18: 120 tensors" in load_backbone_weights(backbone, "torchvision://resnet18")
    assert same(backbone, seeded(1))
    (url, settings), *_ = asked
    assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert settings["check_hash"]
    assert settings["weights_only"]


def test_without_a_network_there_is_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(CheckpointError) as error:
        load_backbone_weights(seeded(0), "torchvision://resnet18")
    message = str(error.value)
    assert "\n" not in message
    for part in ("torchvision://resnet18", "could not be fetched", "Name or service", TORCHVISION["resnet18"], "path"):
        assert part in message


def test_unknown_names_of_torchvision() -> None:
    with pytest.raises(
        CheckpointError, match=r"^weights 'torchvision://nope' are unknown: choose one of torchvision://r"
    ):
        load_backbone_weights(seeded(0), "torchvision://nope")


# Bad files -------------------------------------------------------------------------------------------------------


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("kind", [Bomb, UserDict])
def test_nothing_of_a_file_is_executed(writer: str, kind: Any, tmp_path: Path) -> None:
    bomb = {"conv1.weight": kind(tmp_path / "boom") if kind is Bomb else kind()}
    with open(tmp_path / "x.pth", "wb") as file:
        torch.save(bomb, file) if writer == "torch" else pickle.dump(bomb, file, protocol=2)
    with pytest.raises(
        CheckpointError, match=r"^file '.*x.pth' holds objects that only executing it could load: [^\n]*$"
    ):
        load(tmp_path / "x.pth")
    assert not (tmp_path / "boom").exists()


def test_nothing_of_an_npz_is_executed(tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    np.savez(tmp_path / "x.npz", **{"conv1.q": bomb, "conv1.frac": 1, "conv1.bias": np.zeros(64)})
    with pytest.raises(CheckpointError, match=r"^weights '.*x.npz' are truncated or no npz file \([^\n]*\)$"):
        load(tmp_path / "x.npz")
    assert not (tmp_path / "boom").exists()


def damaged(raw: bytes, rounds: int) -> list[bytes]:
    rng = random.Random(0)
    cut = [raw[: rng.randrange(len(raw))] for _ in range(rounds)]
    changed = []
    for _ in range(rounds):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        changed.append(bytes(data))
    noise = [rng.randbytes(rng.randrange(60)) for _ in range(rounds)]
    pickles = [b"\x80\x02" + bytes(rng.choices(b"}]()q.XKurstNba", k=rng.randrange(60))) for _ in range(rounds)]
    return cut + changed + noise + pickles


def refusals(path: Path, files: list[bytes], read: Callable[[Path], object]) -> list[str]:
    """The messages of those files that were refused; any other exception comes through."""
    messages = []
    for data in files:
        path.write_bytes(data)
        try:
            read(path)
        except CheckpointError as error:
            messages.append(str(error))
    return messages


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_torch_files_are_one_line(zipped: bool, tmp_path: Path) -> None:
    """Truncated, changed in some bytes, or no such file at all."""
    file = io.BytesIO()
    torch.save({"a": torch.arange(9.0), "b": {"c": [1, "x"]}}, file, _use_new_zipfile_serialization=zipped)
    messages = refusals(tmp_path / "x.pth", damaged(file.getvalue(), 60), safe_load)
    assert len(messages) > 120
    assert all(m.startswith(f"file '{tmp_path / 'x.pth'}' ") and "\n" not in m for m in messages)


def test_damaged_8_bit_files_are_one_line(tmp_path: Path) -> None:
    arrays = {"conv1.q": np.zeros((64, 3, 7, 7), np.int8), "conv1.frac": 3, "conv1.bias": np.zeros(64, np.float32)}
    np.savez_compressed(tmp_path / "good.npz", **arrays)
    files = damaged((tmp_path / "good.npz").read_bytes(), 60)
    messages = refusals(tmp_path / "x.npz", files, partial(read_int8, backbone=build_backbone("resnet18")))
    assert len(messages) > 120
    assert all(m.startswith(f"weights '{tmp_path / 'x.npz'}' ") and "\n" not in m for m in messages)


@pytest.mark.parametrize(
    "content",
    [3, [torch.zeros(2)], {0: torch.zeros(2)}, {"state_dict": 3}, {"state_dict": [1]}, {}, {"state_dict": {0: 1}}],
)
def test_other_contents_are_one_line(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"^[^\n]*(expected a dict of tensors|do not fit this backbone)[^\n]*$"):
        load(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["missing.pth", "missing.npz"])
def test_missing_files_are_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"'{tmp_path / name}' do(es)? not exist: check the path$"):
        load(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"^[^\n]*$"):
        load(tmp_path / name)
