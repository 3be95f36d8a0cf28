"""On a GPU as on the CPU; without one, nothing here runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import EVALUATION, TINY, episode_rows, metrics, run_process
from networks import SMALL, episode, tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.models import methods
from sd_aanet.models.base import Method
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.precision import autocast, set_tf32
from sd_aanet.segmenting.segmenter import FewShotSegmenter

GPU = torch.device("cuda")
HERE = ("strategy=gpu",)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_tf32(False)


def scores(method: Method, device: torch.device, dtype: torch.dtype, precision: str = "32-true") -> torch.Tensor:
    """Of two episodes of two classes and two shots, on the CPU in float64."""
    names = [[f"{row} {place}" for place in range(5)] for row in range(2)]
    batch = episode(names, [(1, 2), (1, 2)], method.backbone.grid.nearest(65), dtype).to(device)
    comparer = Comparer(method.to(device=device, dtype=dtype))
    with torch.inference_mode(), autocast(precision, device):
        return comparer.scores(comparer(batch), 2).double().cpu()


@pytest.mark.parametrize("name", methods())
def test_every_method_scores_as_on_the_cpu(name: str) -> None:
    cpu = scores(tiny(name), torch.device("cpu"), torch.float64)
    torch.testing.assert_close(scores(tiny(name), GPU, torch.float64), cpu, rtol=0, atol=1e-6)  # scores are float32
    torch.testing.assert_close(scores(tiny(name), GPU, torch.float32), cpu, rtol=0, atol=2e-3)
    half = scores(tiny(name), GPU, torch.float32, "bf16-mixed")
    assert half.isfinite().all()
    assert (half - cpu).abs().median() < 0.05


@pytest.mark.parametrize("name", [name for name, method in methods().items() if method.trains])
def test_every_method_has_the_losses_and_gradients_of_the_cpu(name: str) -> None:
    found = []
    for device in (torch.device("cpu"), GPU):
        method = tiny(name, ways=1).to(device).train()
        names = [[f"{row} {place}" for place in range(2)] for row in range(max(2, method.least_batch))]
        batch = episode(names, [1] * len(names), method.backbone.grid.nearest(33), torch.float64).to(device)
        terms = method.losses(Comparer(method)(batch), batch)
        torch.stack(list(terms.values())).sum().backward()
        gradients = {part: p.grad.cpu() for part, p in method.named_parameters() if p.grad is not None}
        found.append(({term: value.detach().cpu() for term, value in terms.items()}, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_a_gpu_is_scored_the_same_on_the_cpu() -> None:
    training = [setting for setting in TINY if setting != "strategy=cpu"]
    done = run_process("train", *training, *HERE, "features=cache", "augment=none", "out=trained")
    assert done.code == 0, done.err
    assert all(np.isfinite(value) for row in metrics(Path("trained")) for value in row.values())
    settings = [setting for setting in EVALUATION if setting != "strategy=cpu"]
    for out, strategy in (("gpu", "gpu"), ("cpu", "cpu")):
        given = ("checkpoint=trained/checkpoints/best.ckpt", f"strategy={strategy}", f"out={out}")
        done = run_process("evaluate", *given, "precision=32-true", *settings)
        assert done.code == 0, done.err
    gpu, cpu = (json.loads(Path(out, "result.json").read_text())["miou"] for out in ("gpu", "cpu"))
    assert gpu == pytest.approx(cpu, abs=1e-3)
    rows = [np.array(episode_rows(Path(out))) for out in ("gpu", "cpu")]
    np.testing.assert_array_equal(rows[0][:, [0, 1, 2, 7]], rows[1][:, [0, 1, 2, 7]])


def test_a_segmenter_on_a_gpu_finds_what_it_finds_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 80, 60, 3), np.uint8)
    mask = np.zeros((80, 60), np.uint8)
    mask[20:60, 10:50] = 1
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        method = SDAANet(build_backbone("resnet18"), **SMALL["sd_aanet"]).eval()
        segmenter = FewShotSegmenter(method, Preprocess(65), device=device)
        segmenter.remember([(pictures[0], mask), (pictures[1], mask)])
        found.append(segmenter.segment(pictures[2]).probability)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3)
