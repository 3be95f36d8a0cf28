"""The command itself: usage, help, exit codes, jobs of a multirun; what it costs to start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf.errors import MissingMandatoryValue

from commands import DATA, TINY, metrics, nothing_left, ran, refused, run, run_process
from data.fake_folder import make_json
from data.fake_voc import make_voc
from sd_aanet import cli, composition
from sd_aanet.errors import ConfigError
from sd_aanet.training.module import FewShotModule

COMMANDS = ("train", "evaluate", "episodes", "predict", "label", "export", "compare", "parity", "import-published")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_usage_names_every_command(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 0
    assert all(f"\n  {command} " in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(command: str, flag: str) -> None:
    done = run(command, flag)
    assert done.code == 0
    assert done.out.startswith(f"usage: sd-aanet {command}")
    assert done.err == ""


def test_help_names_the_settings_with_their_comments_and_choices() -> None:
    out = run("train", "--help").out
    for text in ("fold: 0  # whose classes", "dataset=shapes  # of coco20i", "backbone.weights: null  #"):
        assert text in out
    for text in ("recipe=shapes  # of coco20i", "recipe.steps: 1500  #", "optimizer=sgd_poly  # of adam, adamw"):
        assert text in out
    assert "hydra:\n" not in out


def test_help_shows_the_choices_given() -> None:
    out = run("evaluate", "model=baseline", "dataset=pascal5i", "--help").out
    assert "dataset.root: ???" in out
    assert out.index("model.sdpm: true") < out.index("model.sdpm: false"), "what it builds on comes first"
    assert "defaults:" not in out
    assert "recipe.size: 321" in out, "the data set's"
    assert "optimizer=" not in out, "an evaluation has none"
    assert "optimizer.betas" in run("train", "optimizer=adam", "--help").out


@pytest.mark.parametrize("arguments", [(), ("train", "--help"), ("predict", "--help")])
def test_help_imports_no_torch(arguments: tuple[str, ...]) -> None:
    done = run_process(*arguments, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "sd_aanet.cli" in imported
    assert not imported & {"torch", "numpy", "pytorch_lightning"}


def test_a_mistake_is_one_line_in_a_process_of_its_own() -> None:
    refused(run_process("train", "fold=7", *TINY), "fold=7", "expected 0 to 3")
    assert list(Path().iterdir()) == []


def test_debug_lets_the_error_through_to_where_it_arose() -> None:
    with pytest.raises(ConfigError, match="fold=7") as raised:
        run("train", "fold=7", *TINY, "--debug")
    assert any(entry.path.name == "datamodule.py" for entry in raised.traceback)
    with pytest.raises(ConfigError) as raised:
        run("train", "--debug", "dataset=pascal5i")
    assert isinstance(raised.value.__cause__, MissingMandatoryValue)


def test_a_normal_training_prints_nothing_on_standard_error() -> None:
    done = run_process("train", *TINY, "test_episodes=0", "steps=2")
    assert done.code == 0
    assert done.err == ""
    assert "trained 2 steps" in done.out
    assert "python -m sd_aanet evaluate" in done.out, "the command is given as it was called"


@pytest.mark.slow
def test_multirun_runs_a_job_for_each_combination_in_a_folder_of_its_own() -> None:
    ran("train", "-m", "fold=0,1", "shot=1,2", *TINY, "steps=2", "test_episodes=0")
    sweep = Path("runs/sweeps/shapes_resnet18_sd_aanet")
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert [job.rpartition("_")[0] for job in jobs] == [
        f"fold{fold}_shot{shot}_seed0" for fold, shot in [(0, 1), (0, 2), (1, 1), (1, 2)]
    ]
    for job in jobs:
        assert (sweep / job / "checkpoints/best.ckpt").is_file()
    totals = {metrics(sweep / job)[0]["train/total"] for job in jobs}
    assert len(totals) == 4
    assert Path("runs/latest").resolve() == (sweep / jobs[-1]).resolve()


def test_a_multirun_goes_on_after_a_job_that_fails() -> None:
    done = run("train", "-m", "fold=9,0,8", *TINY, "steps=2", "test_episodes=0")
    assert done.code == 2
    first, *lines = done.err.splitlines()
    assert first == "sd-aanet: 2 of 3 jobs failed:"
    assert [line.partition(": ")[2].partition(",")[0] for line in lines] == ["fold=9", "fold=8"]
    (sweep,) = Path("runs/sweeps").iterdir()
    (job,) = sweep.glob("fold*")
    assert (job / "checkpoints/best.ckpt").is_file()


def test_a_setting_that_one_job_lacks_is_told_with_the_job() -> None:
    line = run(
        "evaluate", "model=panet,prototype", "model.project=false", "checkpoint=null", "-m"
    )  # wherever -m stands
    refused(line, "setting 'model.project' is unknown with these choices", "(job model=prototype)")


def test_multirun_with_ddp_is_refused_with_the_way_out() -> None:
    with nothing_left():
        done = run("train", "-m", "fold=0,1", "strategy=ddp", *TINY[1:])
    refused(done, "strategy=ddp with -m", "ddp_spawn")


def test_ctrl_c_ends_a_training_and_its_multirun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotModule, "training_step", interrupted)
    done = run("train", "-m", "fold=0,1", *TINY)
    assert done.code == 130
    assert done.err == "sd-aanet: interrupted\n"
    assert "the same command goes on where this one stopped: runs/sweeps/" in done.out
    (sweep,) = Path("runs/sweeps").iterdir()
    assert len([path for path in sweep.iterdir() if path.is_dir()]) == 1


def test_ctrl_c_outside_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_composed", interrupted)
    assert run("train").code == 130


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(composition, "check", broken)
    with pytest.raises(ZeroDivisionError):
        run("train", *TINY)


def test_the_command_line_is_what_lightning_starts_other_ranks_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["sd-aanet", "train", "fold=1"])
    composition.run_composed("train", lambda: lambda config: seen.append(sys.argv), ["fold=1"])
    assert seen == [["sd-aanet", "train", "fold=1"]]
    assert sys.argv == ["sd-aanet", "train", "fold=1"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_train_and_one_evaluates(strategy: str) -> None:
    one = ("strategy.accelerator=cpu", "strategy.devices=2")
    done = run_process("train", *TINY, f"strategy={strategy}", *one, "val_episodes=5", "out=run")
    assert done.code == 0, done.err
    assert "trained 4 steps" in done.out
    assert Path("run/result.json").is_file()
    assert len(metrics(Path("run"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_mistake_that_strikes_in_other_processes_ends_the_command(strategy: str) -> None:
    """Images whose bodies are cut off: their headers pass the index, and each process meets them in its first step."""
    for path in make_voc(Path("voc")).glob("JPEGImages/train_*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    data = ("dataset=pascal5i", "dataset.root=voc", "size=33", "augment=none", "workers=0")
    tiny = [setting for setting in TINY if not setting.startswith("dataset.")]
    done = run_process("train", *tiny, *data, f"strategy={strategy}", "strategy.accelerator=cpu", "strategy.devices=2")
    assert done.code == 2
    assert "jpg cannot be read" in done.err
    assert "Traceback" not in done.err


# Paths and names -------------------------------------------------------------------------------------------------

SMALL = (*DATA[1:4], "episodes=4")


@pytest.mark.parametrize("name", ["2026_01_15", "1e3", "true", "a=b (c) é"])
@pytest.mark.parametrize("form", ["out={}", "--out {}", "--out={}", "+{}"])
def test_a_path_keeps_its_spelling(name: str, form: str) -> None:
    given = [f"++out={name}"] if form == "+{}" else [part.format(name) for part in form.split()]
    ran("episodes", *SMALL, *given)
    assert [path.name for path in Path().iterdir()] == [name]


def test_paths_that_were_one_number_are_two_in_a_sweep() -> None:
    ran("episodes", "-m", *SMALL, "out=1_1,11,'a,b'")
    assert {path.name for path in Path().iterdir()} == {"1_1", "11", "a,b"}


def test_every_setting_of_a_path_keeps_its_spelling() -> None:
    for name in ("2024_05_12", "1e3", "true"):
        for setting in ("checkpoint", "episodes_file"):
            refused(run("evaluate", *SMALL, "checkpoint=null", f"{setting}={name}"), name, "does not exist")
        refused(run("train", *TINY, f"resume={name}"), f"'{name}'")
        refused(run("check", "dataset=folder", f"dataset.root={name}"), name, "is not a folder")
        refused(run("predict", "checkpoint=x", f"query=[{name}]", f"support=[{name}:m]"), name, "does not exist")


def test_names_of_sweeps_keep_their_spelling() -> None:
    for name in ("2026_01_15", "1e3"):
        seen: list[str] = []
        composition.run_composed(
            "train", lambda seen=seen: lambda config: seen.append(config["out"]), ["-m", f"sweep={name}"]
        )
        assert {Path(out).parent.name for out in seen} == {name}


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given in ("out=~/list.json", 'out="~/list.json"'):
        ran("episodes", *SMALL, given)
        (tmp_path / "home/list.json").unlink()
    assert not Path("~").exists()
    refused(run("episodes", *SMALL, "out=~no-such-user/x"), "'~no-such-user/x'", "write the whole path")


def test_a_comma_in_a_path_is_quoted_and_then_works() -> None:
    refused(run("check", "dataset=folder", "dataset.root=/data/a,b"), """'dataset.root="/data/a,b"' for one text""")
    refused(run("check", "dataset=folder", 'dataset.root="/data/a,b"'), "/data/a,b", "is not a folder")
    refused(run("check", "dataset=folder", "dataset.root=[/data/a]"), "dataset.root=['/data/a'], expected a text")
    refused(run("predict", "checkpoint=x", "support=[a:b]", "query=x,y.png"), "'query=[x,y.png]' for a list")


def test_names_that_the_terminal_cannot_show_are_written_otherwise(tmp_path: Path) -> None:
    make_json(tmp_path / "names", ["\u732b"], lists=False)
    given = ("dataset=folder", f"dataset.root={tmp_path / 'names'}", "min_object_pixels=1", "shot=1", "out=out")
    done = run_process("check", *given, environment={"PYTHONIOENCODING": "cp1252"})
    assert done.code == 0, done.err
    assert r"\u732b" in done.out


@pytest.mark.parametrize(("stdout", "code", "words"), [("pipe", 141, ""), ("/dev/full", 2, "no space left on device")])
def test_nobody_reads_what_is_printed(stdout: str, code: int, words: str, tmp_path: Path) -> None:
    """As with `| head`, or a full disk under a log: no traceback, of logging's either."""
    given = ("evaluate", "checkpoint=null", "model=prototype", *DATA, "episodes=2", f"out={tmp_path / 'out'}")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") if stdout == "pipe" else Path(stdout).open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "sd_aanet", *given], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_threads_that_wait_sleep_unless_the_user_wants_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sd_aanet, os, sys; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    for policy in (None, "ACTIVE"):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if policy is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == (policy or "PASSIVE")
    code = code.replace("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5000", "for long enough that a short wait is no sleep"
