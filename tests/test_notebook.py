"""The notebooks run from top to bottom, anywhere, and are kept without outputs."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from sd_aanet.checkpoint import Trained, save_trained
from sd_aanet.data.transforms import Preprocess
from sd_aanet.models import build_method

QUICKSTART = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"
LARGEST = 300_000
"""Characters of all outputs together: what a repository or a browser bears."""


def execute(folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_the_quickstart_runs_with_a_given_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = {"method": "sd_aanet", "backbone": {"name": "resnet18", "high": "stage3"}, "channels": 16}
    save_trained(Trained(build_method(**network), network, Preprocess(65), classes=20), tmp_path / "tiny.ckpt")
    monkeypatch.setenv("SD_AANET_CHECKPOINT", str(tmp_path / "tiny.ckpt"))
    before = set(tmp_path.iterdir())
    notebook = execute(tmp_path)
    assert "1-shot IoU" in printed(notebook)
    assert "5-shot IoU" in printed(notebook)
    assert len(nbformat.writes(notebook)) < LARGEST
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_quickstart_trains_for_itself_on_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SD_AANET_CHECKPOINT", raising=False)
    (tmp_path / "notebooks").mkdir()
    assert "5-shot IoU" in printed(execute(tmp_path / "notebooks"))


def test_what_runs_only_without_a_checkpoint_calls_what_there_is() -> None:
    cells = nbformat.read(QUICKSTART, as_version=4).cells
    nodes = [*ast.walk(ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code")))]
    ours = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sd_aanet")
        for alias in node.names
    }
    calls = [one for one in nodes if isinstance(one, ast.Call) and getattr(one.func, "id", None) in ours]
    assert {"EpisodeDataModule", "FewShotModule"} <= {call.func.id for call in calls}
    for call in calls:
        inspect.signature(ours[call.func.id]).bind(*call.args, **{keyword.arg: None for keyword in call.keywords})


def test_no_output_is_kept() -> None:
    for cell in nbformat.read(QUICKSTART, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
