"""DINOv2 and DINOv3 with random weights of the published names and shapes, against a second way to compute them."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import published_dino as published
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from sd_aanet.backbones import BACKBONES, build_backbone
from sd_aanet.backbones.base import Backbone
from sd_aanet.backbones.weights import load_backbone_weights
from sd_aanet.errors import CheckpointError, ConfigError

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
NAMES = [name for name in BACKBONES if name.startswith("dino")]
SMALL = ["dinov2_s", "dinov2_s_reg", "dinov3_s", "dinov3_convnext_t"]
"""One of each kind."""


def hub_state(name: str, blocks: int | None = None) -> dict[str, Tensor]:
    """Random weights as torch.hub names them."""
    _, *kind, size = name.removesuffix("_reg").split("_")
    if kind:
        return published.hub_convnext(size, blocks)
    version = int(name[len("dinov")])
    return published.hub_vit(version, size, name.endswith("_reg") or version == 3, blocks)


def library_state(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return (published.library_convnext if "convnext" in name else published.library_vit)(state)


def expected(name: str, state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    if "convnext" in name:
        names = ("stage1", "stage2", "stage3", "stage4", "final")
        return dict(zip(names, published.convnext(state, images), strict=True))
    *blocks, final = published.vit(state, images, heads=6)
    return {f"block{number}": block for number, block in enumerate(blocks)} | {"final": final}


def loaded(name: str, seed: int = 0, blocks: int = 2, **options: Any) -> tuple[Backbone, dict[str, Tensor]]:
    """A backbone, and the weights that it has, as torch.hub names them."""
    torch.manual_seed(seed)
    state = hub_state(name, blocks)
    backbone = build_backbone(name, blocks=blocks, **options)
    backbone.load_state_dict(backbone.own_names(state))
    return backbone, state


def pictures(backbone: Backbone, size: int = 112, count: int = 2) -> Tensor:
    size = backbone.grid.nearest(size)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(backbone: Backbone, images: Tensor, *names: str) -> dict[str, Tensor]:
    with torch.inference_mode():
        return backbone(images, names or tuple(backbone.outputs))


# what is computed


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_that_of_the_published_weights(name: str) -> None:
    """All names, all shapes, at full depth; nothing is left over."""
    with torch.device("meta"):
        hub, own = hub_state(name), build_backbone(name).state_dict()
        backbone = build_backbone(name)
    for state in (hub, library_state(name, hub)):
        named = backbone.own_names(state)
        assert {key: value.shape for key, value in named.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [112, pytest.param(630, marks=pytest.mark.slow)])
def test_every_output_is_as_computed_by_other_means(name: str, size: int) -> None:
    """Also sizes below and above that of the positions: these are resized as DINOv2's authors do."""
    backbone, state = loaded(name)
    images = pictures(backbone, size, count=1)
    outputs = run(backbone, images)
    wanted = expected(name, state, images)
    assert outputs.keys() == wanted.keys() == backbone.outputs.keys()
    for key, value in wanted.items():
        assert outputs[key].is_contiguous()
        torch.testing.assert_close(outputs[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_oblong_pictures(name: str) -> None:
    backbone, state = loaded(name, blocks=1)
    step = backbone.grid.step
    images = torch.randn(1, 3, 3 * step, 5 * step)
    for key, value in expected(name, state, images).items():
        torch.testing.assert_close(run(backbone, images, key)[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_library_agrees_at_the_size_of_training(name: str, tmp_path: Path) -> None:
    """From its own kind of folder, by its own loader and forward: the class token and registers are what we drop."""
    import transformers

    torch.manual_seed(0)
    state = hub_state(name, 2)
    size = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6}
    two = size | {"image_size": 518, "patch_size": 14}
    config: Any = {
        "dinov2_s": lambda: transformers.Dinov2Config(**two),
        "dinov2_s_reg": lambda: transformers.Dinov2WithRegistersConfig(**two),
        "dinov3_s": lambda: transformers.DINOv3ViTConfig(**size, intermediate_size=1536, num_register_tokens=4),
        "dinov3_convnext_t": lambda: transformers.DINOv3ConvNextConfig(depths=[2, 2, 2, 2]),
    }[name]()
    config.save_pretrained(tmp_path)
    safetensors.save_file(library_state(name, state), tmp_path / "model.safetensors", {"format": "pt"})
    library = transformers.AutoModel.from_pretrained(tmp_path).eval()
    backbone = build_backbone(name, blocks=2)
    assert load_backbone_weights(backbone, str(tmp_path)).endswith(" tensors, none missing")
    images = pictures(backbone, 518, count=1)
    with torch.inference_mode():
        tokens = library(images).last_hidden_state
    first = {"dinov2_s": 1, "dinov2_s_reg": 5, "dinov3_s": 5, "dinov3_convnext_t": 1}[name]
    found = run(backbone, images, "final")["final"]
    side = found.shape[-1]
    # The library's periods of DINOv3 are not rounded as the published ones.
    close = 2e-2 if name == "dinov3_s" else 1e-4
    torch.testing.assert_close(found, tokens[:, first:].mT.unflatten(2, (side, side)), rtol=close, atol=close)


def test_positions_are_not_resized_at_the_size_of_training() -> None:
    backbone, state = loaded("dinov2_s", blocks=1)
    of_class, of_patches = backbone.positions(37, 37)
    assert torch.equal(torch.cat((of_class, of_patches), 1), state["pos_embed"])


def test_norms_are_where_they_should_be() -> None:
    plain, _ = loaded("dinov2_s")
    normed, _ = loaded("dinov2_s", norm_mid=True)
    images = pictures(plain)
    outputs = run(plain, images)
    by_hand = plain.norm(outputs["block1"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(by_hand, outputs["final"])
    assert not torch.allclose(outputs["block1"], outputs["final"], atol=0.1)
    assert torch.equal(run(normed, images)["block1"], outputs["final"])
    torch.testing.assert_close(
        run(normed, images)["block0"], plain.norm(outputs["block0"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    )


# DINOv3's positions


def test_angles_of_two_by_two_patches() -> None:
    """Centres are at -1/2 and 1/2, the shortest period is 1: half a turn."""
    backbone, _ = loaded("dinov3_s", blocks=1)
    cos, sin = backbone.rope(torch.zeros(1, 3, 32, 32))
    period = published.periods(64)
    assert period[0] == 1
    for patch, (row, column) in enumerate([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]):
        angle = torch.cat([2 * torch.pi * row / period, 2 * torch.pi * column / period]).repeat(2)
        torch.testing.assert_close(cos[patch], angle.cos(), atol=1e-6, rtol=0)
        torch.testing.assert_close(sin[patch], angle.sin(), atol=1e-6, rtol=0)


def test_attention_knows_differences_of_places_alone() -> None:
    from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

    backbone, _ = loaded("dinov3_s", blocks=1)
    cos, sin = backbone.rope(torch.zeros(1, 3, 8 * 16, 8 * 16))
    q, k = (torch.randn(64).expand(1, 1, 5 + 64, 64) for _ in range(2))  # the same everywhere
    turned_q, turned_k = apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.equal(turned_q[:, :, :5], q[:, :, :5])  # class and registers
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    product = (turned_q @ turned_k.mT)[0, 0, 5:, 5:].view(8, 8, 8, 8)
    torch.testing.assert_close(product[:7, :7, :7, :7], product[1:, 1:, 1:, 1:], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(product[0, 0], product[0, 1], atol=0.1)


def test_training_draws_no_positions() -> None:
    backbone = build_backbone("dinov3_s", trainable=True, norm="batch", blocks=1).train()
    images = pictures(backbone)
    assert torch.equal(backbone(images, ["final"])["final"], backbone(images, ["final"])["final"])


# outputs, sizes


@pytest.mark.parametrize("name", NAMES)
def test_outputs_say_what_they_are(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    size = backbone.grid.nearest(473)
    with torch.no_grad():
        outputs = backbone.run(torch.empty(2, 3, size, size, device="meta"), list(backbone.outputs))
    for key, output in backbone.outputs.items():
        assert outputs[key].shape == (2, output.channels, output.cells(size), output.cells(size))
    assert {*backbone.mid, backbone.high} <= outputs.keys()


def test_what_heads_take() -> None:
    taken = {}
    for name in ("dinov2_s", "dinov2_l", "dinov3_l", "dinov3_convnext_s"):
        with torch.device("meta"):
            backbone = build_backbone(name)
        taken[name] = (backbone.mid, backbone.high, backbone.before_high)
    assert taken == {
        "dinov2_s": (("block3", "block7"), "final", None),
        "dinov2_l": (("block7", "block15"), "final", None),
        "dinov3_l": (("block7", "block15"), "final", None),
        "dinov3_convnext_s": (("stage2", "stage3"), "stage4", "stage3"),
    }


def test_other_outputs_chosen_by_name() -> None:
    vit = build_backbone("dinov2_s", mid=["block0", "block2"], high="block1", blocks=3)
    assert (vit.mid, vit.high) == (("block0", "block2"), "block1")
    convnext = build_backbone("dinov3_convnext_t", mid=["stage3"], high="stage3", blocks=1)
    assert (convnext.mid, convnext.high, convnext.before_high) == (("stage3",), "stage3", None)
    with pytest.raises(
        ConfigError,
        match=r"backbone.mid=block3, but DINOv2-S has no such output: choose one of block0, block1, block2, final",
    ):
        build_backbone("dinov2_s", mid=["block3"], blocks=3)
    with pytest.raises(ConfigError, match=r"backbone.high=stage0, but DINOv3-ConvNeXt-T has no such output"):
        build_backbone("dinov3_convnext_t", high="stage0", blocks=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_s", "size=473, expected 14n: the nearest good size is 476"),
        ("dinov3_s", "size=473, expected 16n: the nearest good size is 480"),
        ("dinov3_convnext_t", "size=473, expected 32n: the nearest good size is 480"),
    ],
)
def test_a_size_off_the_grid(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, blocks=1).grid.check(473)


@pytest.mark.parametrize("name", ["dinov2_s_reg", "dinov3_s"])
def test_no_block_runs_in_vain(name: str) -> None:
    backbone, _ = loaded(name, blocks=4)
    ran: list[int] = []
    for number, block in enumerate(backbone.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    outputs = run(backbone, pictures(backbone), "block0", "block2")
    assert ran == [0, 1, 2]
    assert list(outputs) == ["block0", "block2"]


@pytest.mark.parametrize("name", SMALL)
def test_keep_forgets_what_comes_later(name: str) -> None:
    backbone, _ = loaded(name, blocks=3)
    images = pictures(backbone)
    before = run(backbone, images)
    middle = list(backbone.outputs)[1]
    backbone.keep([middle])
    assert list(backbone.outputs) == list(before)[:2]
    assert len(backbone.layers) == 2
    assert "norm.weight" not in backbone.state_dict()
    for key, value in run(backbone, images).items():
        assert torch.equal(value, before[key])


def test_keep_leaves_a_norm_that_is_used() -> None:
    backbone, _ = loaded("dinov2_s", norm_mid=True, blocks=3)
    images = pictures(backbone)
    before = run(backbone, images, "block1")["block1"]
    backbone.keep(["block1"])
    assert list(backbone.outputs) == ["block0", "block1"]
    assert torch.equal(run(backbone, images, "block1")["block1"], before)


def test_a_convnext_goes_on_from_a_masked_stage() -> None:
    backbone, _ = loaded("dinov3_convnext_t", blocks=1)
    images = pictures(backbone)
    outputs = run(backbone, images)
    with torch.inference_mode():
        again = backbone.resume("stage3", outputs["stage3"], ["stage4", "final"])
        masked = backbone.resume("stage3", outputs["stage3"] * 0, ["stage4"])
    assert torch.equal(again["stage4"], outputs["stage4"])
    assert torch.equal(again["final"], outputs["final"])
    assert not torch.allclose(masked["stage4"], outputs["stage4"])


def test_what_cannot_go_on_says_so() -> None:
    backbone, _ = loaded("dinov3_convnext_t", blocks=1, l2=True)
    assert backbone.before_high is None
    with pytest.raises(ConfigError, match="cannot go on from its stage3, which l2 or debias changed"):
        backbone.resume("stage3", torch.zeros(1, 384, 4, 4), ["stage4"])
    with pytest.raises(ConfigError, match="DINOv2-S cannot go on from its block0"):
        build_backbone("dinov2_s", blocks=1).resume("block0", torch.zeros(1, 384, 4, 4), ["final"])


# what is done to outputs


@pytest.mark.parametrize("name", SMALL)
def test_unit_length(name: str) -> None:
    plain, _ = loaded(name)
    unit, _ = loaded(name, l2=True)
    images = pictures(plain)
    for key, value in run(plain, images).items():
        found = run(unit, images, key)[key]
        torch.testing.assert_close(found, value / value.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("name", SMALL)
def test_places_are_taken_out(name: str) -> None:
    """As in the paper: unit length, projected, unit length, with directions from a black picture."""
    plain, state = loaded(name)
    debiased, _ = loaded(name, l2=True, debias=3)
    images = pictures(plain)
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (plain.mean, plain.std))
    black = (torch.zeros_like(images[:1]) - mean) / std
    for key in (next(iter(plain.outputs)), "final"):
        places = expected(name, state, black)[key][0].flatten(1).double()
        places = places / places.norm(dim=0)
        vectors = torch.linalg.eigh(torch.cov(places)).eigenvectors[:, -3:]
        x = run(plain, images, key)[key].flatten(2).double()
        x = x / x.norm(dim=1, keepdim=True)
        x = x - vectors @ (vectors.T @ x)
        x = x / x.norm(dim=1, keepdim=True)
        torch.testing.assert_close(run(debiased, images, key)[key].flatten(2).double(), x, atol=2e-3, rtol=0)


def test_a_black_picture_is_the_same_everywhere_without_all_its_directions() -> None:
    """16 places, less their mean, differ in 15 directions; of a 16th nothing is known, so it stays."""
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (Backbone.mean, Backbone.std))
    black = (torch.zeros(1, 3, 64, 64) - mean) / std
    plain, all_of_them, many = (run(loaded("dinov3_s", debias=n)[0], black, "final")["final"] for n in (0, 15, 300))
    unit = many / plain.norm(dim=1, keepdim=True)
    assert unit.flatten(2).std(dim=2).max() < 1e-4 < plain.flatten(2).std(dim=2).max()
    torch.testing.assert_close(many, all_of_them)


def test_directions_under_autocast() -> None:
    backbone, _ = loaded("dinov2_s", debias=3)
    images = pictures(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(backbone, images, "final")["final"]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, run(backbone, images, "final")["final"], atol=0.2, rtol=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_by_pickle(name: str) -> None:
    """As processes that are spawned get it."""
    backbone, _ = loaded(name, debias=1)
    images = pictures(backbone)
    before = run(backbone, images)
    for key, value in run(pickle.loads(pickle.dumps(backbone)), images).items():
        assert torch.equal(value, before[key])


def test_directions_are_found_once_a_size_and_anew_for_other_weights() -> None:
    backbone, _ = loaded("dinov2_s", debias=2)
    calls: list[int] = []
    backbone.layers[0].register_forward_hook(lambda *_: calls.append(1))
    images = pictures(backbone)
    first = run(backbone, images, "final")["final"]
    assert len(calls) == 2
    run(backbone, images, "final")
    assert len(calls) == 3
    run(backbone, pictures(backbone, 140), "final")
    assert len(calls) == 5
    other, state = loaded("dinov2_s", seed=5, debias=2)
    backbone.load_state_dict(backbone.own_names(state))
    second = run(backbone, images, "final")["final"]
    assert torch.equal(second, run(other, images, "final")["final"])
    assert not torch.allclose(first, second)


def test_as_many_directions_as_channels_are_too_many() -> None:
    with pytest.raises(ConfigError, match="debias=384, expected 0 to 383"):
        build_backbone("dinov2_s", debias=384, blocks=1)


# frozen or not


@pytest.mark.parametrize("name", SMALL)
def test_a_frozen_one_stands_still(name: str) -> None:
    backbone, _ = loaded(name)
    backbone.train()
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = pictures(backbone)
    output = backbone(images, [backbone.high])[backbone.high]
    assert not output.requires_grad
    assert torch.equal(output, backbone(images, [backbone.high])[backbone.high])


@pytest.mark.parametrize("name", SMALL)
def test_all_of_a_trainable_one_trains(name: str) -> None:
    backbone = build_backbone(name, trainable=True, blocks=2)
    backbone.keep([*backbone.mid, backbone.high])
    outputs = backbone(pictures(backbone), [*backbone.mid, backbone.high])
    sum(output.pow(2).mean() for output in outputs.values()).backward()  # type: ignore[union-attr]
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


# weights


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_either_naming(name: str, tmp_path: Path) -> None:
    backbone, state = loaded(name)
    torch.save(state, tmp_path / "hub.pth")
    safetensors.save_file(library_state(name, state), tmp_path / "library.safetensors")
    ours = {f"method.backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({"state_dict": ours}, tmp_path / "a.ckpt")
    for path in ("hub.pth", "library.safetensors", "a.ckpt"):
        torch.manual_seed(9)
        other = build_backbone(name, blocks=2)
        report = load_backbone_weights(other, str(tmp_path / path))
        assert report.endswith(f": {len(other.state_dict())} tensors, none missing")
        assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in other.state_dict().items())


def test_weights_of_another_backbone(tmp_path: Path) -> None:
    _, state = loaded("dinov2_s")
    torch.save(state, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"do not fit this backbone: missing: embeddings\.register_tokens;"):
        load_backbone_weights(build_backbone("dinov2_s_reg", blocks=2), str(tmp_path / "plain.pth"))
    report = load_backbone_weights(build_backbone("dinov2_s", blocks=1), str(tmp_path / "plain.pth"))
    assert re.search(r"; \d+ not needed \(layers\.\*\)$", report)


@pytest.mark.parametrize(("name", "other"), [("dinov2_s", "dinov2_s_reg"), ("dinov3_convnext_t", "dinov3_convnext_s")])
def test_weights_of_another_kind_that_hold_all_that_is_asked_for(name: str, other: str, tmp_path: Path) -> None:
    """Register tokens, without which the layers behind them would do something else, and a deeper ConvNeXt."""
    state = build_backbone(other).state_dict()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"fit this backbone: of another network: [^\n]*; choose the"):
        load_backbone_weights(build_backbone(name), str(tmp_path / "other.pth"))


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    backbone = build_backbone("dinov2_s", blocks=1)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors' do not exist: check the path, or save them as"):
        load_backbone_weights(backbone, str(tmp_path))
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="truncated or no safetensors file") as caught:
        load_backbone_weights(backbone, str(tmp_path / "bad.safetensors"))
    assert "\n" not in str(caught.value)


# without the extra


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"package transformers is missing, .*: pip install 'sd-aanet\[vit\]'$"):
        build_backbone("dinov2_s")
    build_backbone("resnet18")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, sd_aanet.backbones.weights; print({'transformers', 'huggingface_hub'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# the hub


def fetch(cache: Path, *names: str, **environment: str) -> list[str]:
    """What comes of each: the names of tensors, or the one line of an error."""
    code = """
import sys
from sd_aanet.backbones.huggingface import read_safetensors
from sd_aanet.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        print(*read_safetensors("huggingface://" + name))
    except CheckpointError as error:
        print(error)
"""
    inherited = {key: value for key, value in os.environ.items() if not re.match("HF_|.*proxy", key, re.IGNORECASE)}
    environment |= {"HF_HOME": str(cache)}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub of three models: one with weights, one whose licence nobody accepted, one that is not there."""
    content = safetensors.save({"cls_token": torch.zeros(1, 1, 384)})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            status, code = 200, ""
            if "gated" in self.path:
                status, code = 403, "GatedRepo"
            elif "good" not in self.path:
                status, code = 404, "RepoNotFound"
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
            else:
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and not code:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_by_its_answers(tmp_path: Path, hub: str) -> None:
    names = ("facebook/good", "facebook/gated", "facebook/none", "a name")
    good, gated, none, no_name = fetch(tmp_path, *names, HF_ENDPOINT=hub)
    assert good == "cls_token"
    assert "licence has to be accepted: do so at https://huggingface.co/facebook/gated, log in by `hf auth" in gated
    for line in (none, no_name):
        assert "has no model.safetensors for you to read: check the name" in line
    # What was fetched once is here; what was not is one line.
    good, other = fetch(tmp_path, "facebook/good", "facebook/other", HF_HUB_OFFLINE="1")
    assert good == "cls_token"
    assert other.startswith("weights 'huggingface://facebook/other' could not be fetched, the hub cannot be reached, ")
    assert other.endswith(": fetch it where there is a network, or give the path of a local copy")


def test_no_network(tmp_path: Path) -> None:
    (line,) = fetch(tmp_path, "facebook/dinov2-small", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached, " in line


# settings


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_that_are_shipped(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings: Any = OmegaConf.to_container(compose(name))
    assert settings.pop("name") == name
    assert settings.pop("weights").startswith("huggingface://facebook/dinov")
    assert (settings.pop("trainable"), settings["norm"]) == ("auto", "frozen")
    with torch.device("meta"):
        given, usual = build_backbone(name, **settings), build_backbone(name)
    assert (given.mid, given.high, given.outputs) == (usual.mid, usual.high, usual.outputs)
    json.dumps(settings)  # primitives only


def test_an_unknown_option() -> None:
    with pytest.raises(ConfigError, match="backbone dinov3_convnext_t has no option 'norm_mid'"):
        build_backbone("dinov3_convnext_t", norm_mid=True)
