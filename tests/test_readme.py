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

from commands import TINY, Done, ran, run
from data.fake_folder import make_folder
from data.fake_sbd import make_sbd, make_voc2012
from data.fake_voc import make_voc
from sd_aanet.models import build_method
from sd_aanet.models.sd_aanet.published import to_published

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(python)?\n(.*?)```", README, flags=re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if not language and line.strip()
]
PLAIN = tuple(setting for setting in TINY if not setting.startswith("dataset.source"))
SMALLEST = {
    "train": (*PLAIN, "backbone=resnet18", "backbone.trainable=false", "backbone.norm=frozen", "size=65"),
    "evaluate": ("strategy=cpu", "min_object_pixels=100", "seeds=2", "episodes=6", "batch_size=4"),
    "episodes": ("min_object_pixels=100", "episodes=6"),
    "check": ("min_object_pixels=100",),
    "predict": ("device=cpu", "size=97"),
    "label": ("device=cpu", "size=97"),
    "export": ("size=65",),
}
"""What is added to a command of the README, so that a test can wait for it."""
FEWER = {"fold=0,1,2,3": "fold=0,1", "shot=1,5": "shot=1"}
"""What a sweep of the README is cut down to where a test cannot wait for all of its jobs."""


@pytest.fixture
def working(tmp_path: Path, trained: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat1", "cat2", "other"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(f"{name}.jpg")
        Image.fromarray(np.tri(60, 80, dtype=np.uint8)).save(f"{name}_mask.png")
    Path("notebooks").symlink_to(ROOT / "notebooks", target_is_directory=True)
    Path("photos").mkdir()
    shutil.copy("other.jpg", "photos")
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(trained[0], target_is_directory=True)
    Path("path/to").mkdir(parents=True)
    for name in ("best", "other"):
        shutil.copy(trained[0] / "checkpoints/best.ckpt", f"path/to/{name}.ckpt")
    make_voc2012(Path("path/to/VOCdevkit/VOC2012"))
    make_sbd(Path("path/to/benchmark_RELEASE"))
    make_folder(Path("path/to/mine"), images=7)
    return tmp_path


def test_the_commands_of_the_readme_one_after_the_other(working: Path) -> None:
    for command in COMMANDS:
        if command[0] == "make":
            listed = subprocess.run(["make", "-n", command[1]], cwd=ROOT, capture_output=True, text=True, check=True)
            assert {"train": "sd-aanet train", "test": "pytest"}[command[1]] in listed.stdout
            continue
        assert command[0] == ".venv/bin/sd-aanet"
        name, *settings = command[1:]
        if name in ("parity", "import-published"):  # tests of their own below
            continue
        settings = [FEWER.get(setting, setting) for setting in settings]
        heads = [setting for setting in settings if setting.startswith("model=")]  # which has settings of its own
        smallest = [s for s in SMALLEST.get(name, ()) if not heads or not s.startswith("model.")]
        done = run(name, *settings, *smallest)
        assert done.code == 0, (command, done.err)
        assert done.out
        if name == "prepare":  # what the archives' small fakes give is no data set to train on
            shutil.rmtree("data/pascal5i")
            make_voc(Path("data/pascal5i"), images=6)


def readme_command(*start: str) -> list[str]:
    (command,) = [command for command in COMMANDS if tuple(command[1 : 1 + len(start)]) == start]
    return command[1:]


@pytest.mark.slow
def test_the_readmes_sweep_with_all_of_its_jobs(working: Path) -> None:
    make_voc(Path("data/pascal5i"), images=6)
    assert "8 jobs: 8 done\n" in ran(*readme_command("train", "-m"), *SMALLEST["train"]).out
    assert "report.html" in ran(*readme_command("report")).out


def test_the_readmes_import(working: Path) -> None:
    state = to_published(build_method("sd_aanet", {"name": "resnet50"}).state_dict(), "resnet50")
    torch.save({"state_dict": state}, "path/to/train_epoch.pth")
    assert "written: imported.ckpt" in ran(*readme_command("import-published")).out


def test_the_readmes_parity(working: Path, shared: Path) -> None:
    shutil.copytree(shared / "golden", "path/to/recorded_cases")
    cases = Path("path/to/recorded_cases/cases.json")
    cases.chmod(0o644)
    cases.write_text(re.sub(r"^(\{.*?\n \}),.*", r"\1\n}", cases.read_text(), flags=re.S))  # the first alone
    assert "1 of 1 cases hold" in ran(*readme_command("parity")).out


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
