"""Every command of the README runs, and its Python too; on the smallest of data and networks."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import EVALUATION, TINY, Done, ran
from data.fake_voc import make_voc
from sd_aanet.models.published import to_published
from sd_aanet.models.sd_aanet import SDAANet

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(python)?\n(.*?)```", README, flags=re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if not language and line.strip()
]
TRAINING = tuple(setting for setting in TINY if not setting.startswith("dataset.source"))
SMALLEST = {
    "train": (*TRAINING, "backbone=resnet18", "size=65"),
    "evaluate": [setting for setting in EVALUATION if not setting.startswith("dataset.source")],
    "predict": ["device=cpu"],
}
"""What is added to a command of the README, so that a test can wait for it."""


@pytest.fixture
def working(tmp_path: Path, trained: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat1", "cat2", "other"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(f"{name}.jpg")
        Image.fromarray(np.tri(60, 80, dtype=np.uint8)).save(f"{name}_mask.png")
    Path("photos").mkdir()
    shutil.copy("other.jpg", "photos")
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(trained[0], target_is_directory=True)
    Path("path/to").mkdir(parents=True)
    make_voc(Path("path/to/VOC2012"), images=6)
    shutil.copy(trained[0] / "checkpoints/best.ckpt", "path/to/best.ckpt")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:60])
def test_a_command_of_the_readme(command: list[str], working: Path, request: pytest.FixtureRequest) -> None:
    if command[0] == "make":
        listed = subprocess.run(["make", "-n", command[1]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"train": "sd-aanet train", "test": "pytest"}[command[1]] in listed.stdout
        return
    assert command[0] == ".venv/bin/sd-aanet"
    name, *settings = command[1:]
    if name == "parity":
        golden = request.getfixturevalue("shared") / "golden"
        shutil.copytree(golden, "path/to/recorded_cases")
        cases = Path("path/to/recorded_cases/cases.json")
        cases.chmod(0o644)
        cases.write_text(re.sub(r"^(\{.*?\n \}),.*", r"\1\n}", cases.read_text(), flags=re.S))  # the first alone
    if name == "import-published":
        torch.save(
            {"state_dict": to_published(SDAANet("resnet50").state_dict(), "resnet50")}, "path/to/train_epoch.pth"
        )
    if name == "train" and "shot=1,5" in settings:
        settings[settings.index("shot=1,5")], settings[settings.index("fold=0,1,2,3")] = "shot=1", "fold=0,1"
    done = ran(name, *settings, *SMALLEST.get(name, ()))
    assert done.out


def test_the_python_of_the_readme(working: Path) -> None:
    (code,) = [block for language, block in BLOCKS if language]
    names: dict[str, object] = {}
    exec(code, names)
    mask = names["mask"]
    assert isinstance(mask, np.ndarray)
    assert mask.shape == (60, 80)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
