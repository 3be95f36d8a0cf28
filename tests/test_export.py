"""`sd-aanet export`: what ONNX Runtime makes of the graphs is what this package finds."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from commands import nothing_left, ran, refused, run
from examples import mask, picture
from networks import inputs, predict, small, tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.building import ready_made
from sd_aanet.checkpoint import Trained, save_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.export import draw
from sd_aanet.models import build_method
from sd_aanet.models.base import Method
from sd_aanet.segmenting.segmenter import FewShotSegmenter

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), flags=re.S)
ALONE = ("checkpoint=null", "model=prototype", "backbone=resnet18", "size=33")
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


def of_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_outputs()]

    def call(given: Arrays) -> Arrays:
        taken = {one.name: given[one.name] for one in session.get_inputs()}
        return dict(zip(names, session.run(None, taken), strict=True))

    return call


def of_pt2(path: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Run:
    module = torch.export.load(path).module(check_guards=False)

    def call(given: Arrays) -> Arrays:
        made = module(*(torch.from_numpy(given[name]) for name in inputs))
        return dict(zip(outputs, (tensor.numpy() for tensor in made), strict=True))

    return call


def answer(runs: Mapping[str, Run], query: np.ndarray, support: np.ndarray, masks: np.ndarray) -> Arrays:
    """(B, 3, S, S), (B, K, 3, S, S) and (B, K, S, S) to the compare side's outputs."""
    shots, masks = support.shape[1], masks.astype(np.uint8)
    queries = {f"query_{name}": maps for name, maps in runs["picture"]({"images": query}).items()}
    maps = runs["picture"]({"images": support.reshape(-1, *support.shape[2:])})
    supports = {f"support_{name}": some.reshape(-1, shots, *some.shape[1:]) for name, some in maps.items()}
    if "support" not in runs:
        return runs["compare"](queries | supports | {"masks": masks})
    sets = [
        runs["support"]({name: some[b] for name, some in supports.items()} | {"masks": masks[b]})
        for b in range(len(query))
    ]
    return runs["compare"](queries | {name: np.concatenate([one[name] for one in sets]) for name in sets[0]})


def check_parity(method: Method, folder: Path, size: int, forms: tuple[str, ...] = (".onnx",)) -> None:
    """Of counts other than those that the graphs were drawn with, with ignored pixels in the masks."""
    given = {counts: inputs(*counts, size, dtype=torch.float32) for counts in ((3, 2), (1, 1), (2, 5))}
    expected = {}
    with torch.no_grad():
        for counts, (query, _, support, masks) in given.items():
            prediction = predict(method, query, support, masks)
            expected[counts] = Comparer(method).scores(prediction, 1)[:, 1].numpy(), method.presence(prediction).numpy()
    graphs = draw(method, size)
    for form in forms:
        runs = {}
        for name, graph in graphs.items():
            graph.save(folder / f"{name}{form}")
            path = folder / f"{name}{form}"
            runs[name] = of_onnx(path) if form == ".onnx" else of_pt2(path, graph.inputs, graph.outputs)
        for counts, (query, _, support, masks) in given.items():
            found = answer(runs, query.numpy(), support.numpy(), masks.numpy())
            scale = float(expected[counts][0].std())  # of an untrained network nearly nothing
            np.testing.assert_allclose(found["probability"], expected[counts][0], atol=min(1e-4, scale / 10))
            np.testing.assert_allclose(found["presence"], expected[counts][1], atol=1e-4)


@pytest.mark.slow
def test_sd_aanet_s_graphs_are_the_network(tmp_path: Path) -> None:
    check_parity(small(dtype=torch.float32).eval(), tmp_path, 41, (".onnx", ".pt2"))


def test_a_fit_s_graphs_are_the_fit(tmp_path: Path) -> None:
    method = tiny("probe", dtype=torch.float32)
    method.cells = 60  # fewer than there are
    check_parity(method, tmp_path, 41, (".onnx", ".pt2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prototype", "panet", "refined_probe"])
def test_other_methods(name: str, tmp_path: Path) -> None:
    check_parity(tiny(name, dtype=torch.float32), tmp_path, 65, (".onnx", ".pt2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "paper", "high": "stage3"},
        {"sdpm": False, "saam": False},
        {"saam": False, "prior": False},
        {"bounded_attention": True, "backbone": "vgg16_bn"},
        {"backbone": "efficientnet_lite0"},
        {"backbone": "resnet50", "channels": 32, "output_stride": 16},
    ],
)
def test_other_forms_of_sd_aanet(settings: dict[str, Any], tmp_path: Path) -> None:
    check_parity(small(dtype=torch.float32, **settings).eval(), tmp_path, 65)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["dinov2_s", "dinov2_s_reg", "dinov3_s", "dinov3_convnext_t"])
def test_backbones_of_another_library(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    method = tiny("prototype", build_backbone(backbone), torch.float32)
    check_parity(method, tmp_path, method.backbone.grid.nearest(70))


# The command


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of the model for photographs, small."""
    folder = tmp_path_factory.mktemp("exported")
    done = ran("export", "size=225", f"out={folder}/model.onnx")
    assert "model_picture.onnx, " in done.out
    assert len(done.out.splitlines()) == 2, "where the weights come from, and what was written"
    return folder


@pytest.mark.slow
def test_what_it_writes(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        *("model_picture.onnx", "model_support.onnx", "model_compare.onnx", "model.json")
    }
    about = json.loads((exported / "model.json").read_text())
    assert (about["size"], about["resize"], len(about["mean"]), len(about["std"])) == (225, "squash", 3, 3)
    assert about["graphs"]["picture"]["inputs"] == {"images": "float32 (N, 3, 225, 225)"}
    assert about["graphs"]["support"]["inputs"] == {
        "support_maps": "float32 (K, 728, 29, 29)",
        "masks": "uint8 (K, 225, 225)",
    }
    assert about["graphs"]["compare"]["outputs"] == {
        "probability": "float32 (B, 225, 225)",
        "presence": "float32 (B)",
    }
    for graph in about["graphs"].values():
        session = onnxruntime.InferenceSession(exported / graph["file"])
        assert [one.name for one in session.get_inputs()] == [*graph["inputs"]]
        assert [one.name for one in session.get_outputs()] == [*graph["outputs"]]


def example_pictures(folder: Path) -> None:
    for i, name in enumerate(("cat1", "cat2", "other")):
        drawn, values = picture(i, 120 + 40 * i, 300), mask(120 + 40 * i, 300, 255)
        drawn[values > 0] = drawn[values > 0] // 4 + np.array([180, 20, 0], np.uint8)
        if name == "cat2":  # a camera's
            drawn, values = (np.repeat(np.repeat(one, 5, 0), 5, 1) for one in (drawn, values))
        Image.fromarray(drawn).save(folder / f"{name}.jpg")
        Image.fromarray(values).save(folder / f"{name}_mask.png")


@pytest.mark.slow
def test_the_example_of_the_docs(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(exported, tmp_path / "there"))
    example_pictures(Path())
    truth = Path("other_mask.png").rename("truth.png")
    exec(compile(SNIPPETS[0], "docs/export.md", "exec"), {})
    segmenter = FewShotSegmenter(*ready_made(size=225), device="cpu")
    segmenter.remember([(f"cat{i}.jpg", f"cat{i}_mask.png") for i in (1, 2)])
    found, ours = np.array(Image.open("other_mask.png")), segmenter.segment("other.jpg").mask
    assert (found > 0).shape == (200, 300)
    assert ((found > 0) == ours).mean() > 0.995, "pictures are resized by another library"
    assert ((found > 0) == (np.array(Image.open(truth)) > 0)).mean() > 0.95


def test_the_example_s_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("export", *ALONE[:3], "backbone.weights=null", "size=33", "out=model.onnx")
    example_pictures(Path())
    first, last = SNIPPETS[0].split("fitted = ")
    exec(compile(first + SNIPPETS[1] + last.split("\n", 2)[2], "docs/export.md", "exec"), {})
    assert np.array(Image.open("other_mask.png")).shape == (200, 300)


@pytest.mark.slow
def test_real_pictures(exported: Path, shared: Path) -> None:
    """Pictures of VOC, the same inputs on both sides: the probabilities, and so the masks, are the same."""
    data = shared / "data" / "voc924"
    method, preprocess = ready_made(size=225)
    runs = {name: of_onnx(exported / f"model_{name}.onnx") for name in ("picture", "support", "compare")}
    names = (data / "ImageSets/Segmentation/train.txt").read_text().split()
    pairs: dict[int, list[Any]] = {}
    for name in names:
        values = np.array(Image.open(data / f"SegmentationClassAug/{name}.png"))
        for class_id in (8, 12, 19):
            if np.mean(values == class_id) > 0.1 and len(pairs.setdefault(class_id, [])) < 5:
                meaning = np.where(values == 255, 255, values == class_id).astype(np.uint8)
                pixels = np.array(Image.open(data / f"JPEGImages/{name}.jpg"))
                pairs[class_id].append((preprocess.image(pixels), preprocess.mask(meaning)))
    for some in pairs.values():
        images, masks = (torch.stack(each) for each in zip(*some, strict=True))
        given = images[3:], images[None, :3].expand(2, -1, -1, -1, -1), masks[None, :3].expand(2, -1, -1, -1)
        with torch.no_grad():
            expected = predict(method, *given).logits.softmax(1)[:, 1].numpy()
        found = answer(runs, *(tensor.numpy() for tensor in given))["probability"]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        near = abs(expected - 0.5) < 1e-4
        assert ((found > 0.5) == (expected > 0.5))[~near].all()


def test_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = {"method": "panet", "backbone": {"name": "resnet18"}, "channels": 16}
    trained = Trained(build_method(**network).eval(), network, Preprocess(33, "keep_aspect"), classes=20)
    save_trained(trained, tmp_path / "panet.ckpt")
    ran("export", f"checkpoint={tmp_path}/panet.ckpt", f"out={tmp_path}/new/a.b.pt2")
    about = json.loads((tmp_path / "new/a.b.json").read_text())
    assert about["resize"] == "keep_aspect"
    assert "RGB (124, 116, 104)" in about["steps"]["images"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*("a.b_picture.pt2", "a.b_compare.pt2", "a.b.json")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("out=model.txt", *ALONE), ("out='model.txt'", "ends in .onnx or .pt2")),
        (("out=.onnx", *ALONE), ("out='.onnx'", "ends in .onnx or .pt2")),
        (("checkpoint=none.ckpt",), ("none.ckpt",)),
        (("model=sd_aanet", "size=33"), ("model=sd_aanet has to be trained",)),
        (("out=file/model.onnx", *ALONE), ("out='file/model_picture.onnx' cannot be written",)),
        (("size=34", *ALONE[:3]), ("size=34", "nearest good size")),
    ],
)
def test_what_is_refused(
    settings: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with nothing_left():
        refused(run("export", *settings), *words)


def test_methods_without_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = {"name": "resnet18"}
    for network, words in (
        ({"method": "hsnet", "backbone": backbone | {"output_stride": 32}}, "model=hsnet compares"),
        ({"method": "sd_aanet_multi", "backbone": backbone, "ways": 2, "channels": 8}, "2 classes at once"),
    ):
        trained = Trained(build_method(**network).eval(), network, Preprocess(65), classes=20)
        save_trained(trained, Path("one.ckpt"))
        with nothing_left():
            refused(run("export", "checkpoint=one.ckpt"), words)


def test_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with nothing_left():
        refused(run("export", *ALONE), "package onnxscript is missing", "pip install 'sd-aanet[onnx]'", "out=*.pt2")
