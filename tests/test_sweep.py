"""`sd-aanet train -m` and `evaluate -m`: what a repeated sweep does, what a failed job leaves, and the launchers."""

import contextlib
import importlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from commands import EVALUATION, TINY, Done, nothing_left, ran, refused, run
from sd_aanet import composition
from sd_aanet.errors import ConfigError
from sd_aanet.sweep.devices import jobs_at_once
from sd_aanet.sweep.launchers import check
from sd_aanet.sweep.run import Sweep
from sd_aanet.training import loggers
from sd_aanet.training.module import FewShotModule

SWEEP = Path("runs/sweeps/shapes_resnet18_sd_aanet")
QUICK = (*TINY, "steps=1", "val_every=1", "val_episodes=2", "test_episodes=0")
DATA = ("dataset.source.size=65", "dataset.source.images=100", "min_object_pixels=100")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Jobs side by side have a thread each here; sums over other numbers of threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The working folder of a sweep over two folds, and what that printed; not to be changed."""
    working = tmp_path_factory.mktemp("swept")
    with contextlib.chdir(working):
        done = ran("train", "-m", "fold=0,1", *TINY)
    return working, done


def job(fold: int, sweep: Path = SWEEP) -> Path:
    (folder,) = sweep.glob(f"fold{fold}_*")
    return folder


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [json.loads((folder / "result.json").read_text())["seeds"] for folder in (one, other)]
    assert rows[0] == rows[1]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# What a sweep leaves, and what the same one does then


def test_a_sweep_says_where_it_is_and_what_comes_next(swept: tuple[Path, Done]) -> None:
    working, done = swept
    names = {path.name for path in (working / SWEEP).iterdir()}
    (digest,) = {name.rpartition("_")[2] for name in names - {"multirun.yaml"}}
    assert names == {f"fold0_shot1_seed0_{digest}", f"fold1_shot1_seed0_{digest}", "multirun.yaml"}
    assert not list((working / SWEEP).rglob(".*")), "what it needed itself is gone"
    assert f"job 2 of 2: fold1_shot1_seed0_{digest}\n" in done.out
    end = done.out[done.out.index("\n2 jobs: 2 done\n") :].splitlines()
    assert end[2:5] == [f"sweep       {SWEEP}", "", "next:"]
    assert end[5].endswith(f" report {SWEEP}")
    assert done.out.count("next:") == 1
    assert OmegaConf.load(job(0, working / SWEEP) / "config.yaml").sweep == SWEEP.name


def test_the_same_sweep_skips_what_is_finished_and_evaluates_what_only_trained(swept: tuple[Path, Done]) -> None:
    shutil.copytree(swept[0], ".", symlinks=True, dirs_exist_ok=True)
    before = times(job(0))
    (job(1) / "result.json").unlink()
    done = ran("train", "-m", "fold=0,1", *TINY, "workers=1", "strategy.accelerator=auto")
    assert f"{job(0).name} is finished: skipped" in done.out
    assert "2 jobs: 1 done, 1 finished before" in done.out
    assert times(job(0)) == before
    assert_same(job(1), job(1, swept[0] / SWEEP))


def test_a_training_that_stopped_early_is_evaluated_and_not_trained_on() -> None:
    # No step changes the mIoU, so that it stops.
    stops = ("early_stopping=1", "steps=8", "lr=1e-30", "model=baseline", "backbone.norm=frozen", "sweep=early")
    given = ("train", "-m", "fold=0", *TINY, "backbone.trainable=false", *stops)
    done = ran(*given)
    assert "trained 4 steps" in done.out
    folder = job(0, Path("runs/sweeps/early"))
    before, result = times(folder / "checkpoints"), (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    again = ran(*given)
    assert f"{folder.name} was cut off: its evaluation is left" in again.out
    assert "\ntrained " not in again.out
    assert times(folder / "checkpoints") == before
    assert json.loads((folder / "result.json").read_text())["seeds"] == json.loads(result)["seeds"]


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = FewShotModule.training_step

    def until(self: FewShotModule, *batch: Any) -> Any:
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        return original(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(FewShotModule, "training_step", until)
        done = run("train", "-m", "fold=0", *TINY)
    assert done.code == 130
    assert done.err == "sd-aanet: interrupted\n"
    assert f"the same command goes on where this one stopped: {SWEEP}\n" in done.out
    assert "resume=" not in done.out


def test_what_was_cut_off_goes_on(swept: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 1)  # before the first checkpoint
    interrupt(monkeypatch, 3)
    done = ran("train", "-m", "fold=0", *TINY)
    assert f"{job(0).name} was cut off: it goes on from its last checkpoint" in done.out
    assert [path.name for path in (job(0) / "logs").iterdir()] == ["version_0", "version_1"]
    assert_same(job(0), job(0, swept[0] / SWEEP))


def test_a_folder_with_other_settings_is_refused_and_the_others_go_on(swept: tuple[Path, Done]) -> None:
    shutil.copytree(swept[0], ".", symlinks=True, dirs_exist_ok=True)
    path = job(1) / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    before = times(SWEEP) | {}
    done = run("train", "-m", "fold=1,0", *TINY)
    assert done.code == 2
    first, line = done.err.splitlines()
    assert first == "sd-aanet: 1 of 2 jobs failed:"
    assert line.startswith(
        f"  {job(1).name}: '{job(1)}' holds a training with optimizer.momentum=0.8, not optimizer.momentum=0.9: "
    )
    assert "1 finished before, 1 failed" in done.out
    failure = SWEEP / f"failures/{job(1).name}.txt"
    assert failure.read_text() == line.removeprefix(f"  {job(1).name}: ") + "\n"
    assert {path: time for path, time in times(SWEEP).items() if path not in (SWEEP / "multirun.yaml", failure)} == {
        path: time for path, time in before.items() if path.name != "multirun.yaml"
    }


def test_sweeps_have_names(swept: tuple[Path, Done]) -> None:
    with nothing_left():
        done = run("train", "-m", "model=sd_aanet,baseline", "fold=8", *TINY)
    refused(done, "fold=8")
    for given, folder in (("sweep=2026", "2026"), ("model=sd_aanet,baseline", "shapes_resnet18_sd_aanet-baseline")):
        seen: list[str] = []
        composition.run_composed("train", lambda seen=seen: lambda config: seen.append(config["out"]), ["-m", given])
        assert {Path(out).parent for out in seen} == {Path.cwd() / "runs/sweeps" / folder}
        assert len({Path(out).name for out in seen}) == len(seen)


# Failures


def test_a_failed_job_leaves_the_others_running_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FewShotModule.training_step

    def step(self: FewShotModule, *batch: Any) -> Any:
        if self.trainer.datamodule.fold == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")
        return original(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(FewShotModule, "training_step", step)
        done = run("train", "-m", "fold=9,1,2", *QUICK)
    assert done.code == 1
    failure, mistake = (SWEEP / f"failures/{fold}{job(1).name[5:]}.txt" for fold in ("fold1", "fold9"))
    line = "fold=9, expected 0 to 3 for shapes: choose one of these"
    assert done.err.splitlines() == [
        "sd-aanet: 2 of 3 jobs failed:",
        f"  {mistake.stem}: {line}",
        f"  {job(1).name}: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB (traceback: {failure})",
    ]
    assert "3 jobs: 1 done, 2 failed" in done.out
    assert "Traceback" in failure.read_text()
    assert "in step" in failure.read_text()
    assert mistake.read_text() == f"{line}\n"
    assert (job(2) / "checkpoints/best.ckpt").is_file()
    again = run("train", "-m", "fold=9,1,2", *QUICK)
    assert again.code == 2
    assert "3 jobs: 1 done, 1 finished before, 1 failed" in again.out
    assert [*failure.parent.iterdir()] == [mistake]


def test_failures_go_once_the_same_sweep_has_finished_their_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran("train", "-m", "fold=2", *QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(FewShotModule, "training_step", lambda *_: 1 / 0)
        assert run("train", "-m", "fold=0,2", *QUICK).code == 1
    assert [path.stem for path in (SWEEP / "failures").iterdir()] == [job(0).name]
    ran("train", "-m", "fold=0,2", *QUICK)
    assert not (SWEEP / "failures").exists()


def test_a_mistake_in_the_command_is_no_failure_of_its_jobs() -> None:
    ran("train", "-m", "fold=2", *QUICK, "sweep=mine")
    with nothing_left():
        refused(run("train", "-m", "fold=0,1", *QUICK, "sweep=mine", "checkpoint=missing.ckpt"), "missing.ckpt")


def test_mistakes_leave_nothing_and_each_has_its_line() -> None:
    with nothing_left():
        done = run("train", "-m", "fold=8,9", *TINY)
    assert done.code == 2
    assert [line.partition(", ")[0].rpartition(" ")[2] for line in done.err.splitlines()[1:]] == ["fold=8", "fold=9"]
    with nothing_left():
        refused(run("train", "-m", "fold=0,1", "dataset=pascal5i"), "dataset.root is not set")
    with nothing_left():
        refused(run("train", "-m", "fold=0,1", "stps=3"), "'stps' is unknown", "did you mean 'steps'")


REFUSED = {
    "resume=run": "a sweep that is repeated resumes by itself",
    "sweep=a/b": "expected a name of letters",
    "sweep=a,b": "sweep has several values",
    "strategy=ddp": "ddp_spawn",
    "strategy.strategy=ddp_find_unused_parameters_true": "ddp_spawn",
    "strategy.devices=2 strategy=cpu": "strategy.strategy=ddp_spawn",
    "strategy.devices=[0,1] strategy=cpu": "strategy.strategy=ddp_spawn",
    "num_nodes=2 strategy=ddp_spawn": "num_nodes=1",
    "out=mine": "2 jobs would write over one another there; leave it out, and each has a folder in the sweep's, or set "
    "'out=mine_${hydra:job.num}'",
    "strategy=ddp_spawn hydra/launcher=joblib": "strategy.devices=1",
    "strategy.devices=2 hydra/launcher=joblib": "one device each",
    "hydra/launcher=joblib hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=2",
    "hydra/launcher=pbs": "joblib, slurm",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_no_sweep_can_do(given: str) -> None:
    with nothing_left():
        refused(run("train", "-m", "fold=0,1", *TINY[1:], *given.split()), REFUSED[given])


def test_devices_of_which_lightning_makes_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for group in ("auto", "gpu"):
        with nothing_left():
            done = run("train", "-m", "fold=0,1", *TINY[1:], f"strategy={group}", "strategy.devices=auto")
        refused(done, "strategy.devices=auto with -m: every rank would start the whole sweep again")
    config = {"strategy": {"accelerator": "auto", "devices": "auto", "strategy": "auto"}}
    check(config, "basic")  # an evaluation takes one of them, but with ddp
    with pytest.raises(ConfigError, match=r"^strategy=ddp with -m: every rank would start the whole sweep again; set"):
        check({"strategy": config["strategy"] | {"strategy": "ddp"}}, "basic")
    trains = {"num_nodes": 1}
    for fine in ({"strategy": "ddp_spawn"}, {"devices": 1}, {"devices": [1]}, {"accelerator": "cpu"}):
        check(trains | {"strategy": config["strategy"] | fine}, "basic")


def test_jobs_with_an_out_of_their_own() -> None:
    done = ran("episodes", "-m", "fold=0,1", *DATA, "episodes=6", "out='x${fold}.json'")
    assert {path.name for path in Path().iterdir()} == {"x0.json", "x1.json"}, "nothing that is of no use"
    assert "2 jobs: 2 done\n" in done.out
    assert "next:" not in done.out
    ran("episodes", "-m", "fold=0,1", *DATA, "episodes=6", "out='y_${hydra:job.num}.json'")
    for number in (0, 1):
        assert Path(f"y_{number}.json").read_text() == Path(f"x{number}.json").read_text()
    for shared in (
        "fold=0,1 out=z.json",
        "order=classes,pairs --out shapes_fold0_way1_shot1_seed0.json",
        "order=classes,pairs",
    ):
        with nothing_left():
            done = run("episodes", "-m", *DATA, "episodes=6", *shared.split())
        refused(done, ".json with -m: 2 jobs would write over one another there; set 'out=", "_${hydra:job.num}.json'")


def test_only_what_has_results_is_to_be_reported() -> None:
    done = ran("check", "-m", "shot=1,2", *DATA)
    (folder,) = Path("checks/sweeps").iterdir()
    assert done.out.endswith(f"2 jobs: 2 done\nsweep       {folder}\n")


@pytest.mark.parametrize(("launcher", "package"), [("joblib", "joblib"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed(launcher: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def without(name: str, *given: Any) -> Any:
        if name == f"hydra_plugins.hydra_{package}_launcher":
            raise ModuleNotFoundError(name)
        return original(name, *given)

    monkeypatch.setattr(importlib, "import_module", without)
    with nothing_left():
        done = run("train", "-m", f"hydra/launcher={launcher}", *TINY)
    refused(done, f"hydra/launcher={launcher} needs hydra-{package}-launcher", "pip install 'sd-aanet[sweep]'")


def test_evaluations_are_swept_in_the_same_way(swept: tuple[Path, Done]) -> None:
    checkpoint = job(0, swept[0] / SWEEP) / "checkpoints/best.ckpt"
    done = run("evaluate", "-m", f"checkpoint={checkpoint},missing.ckpt", *EVALUATION, "sweep=mine")
    assert done.code == 2
    assert done.err.startswith("sd-aanet: 1 of 2 jobs failed:\n  fold0_shot1_seed0_")
    assert "missing.ckpt" in done.err
    (result,) = Path("evaluations/sweeps/mine").glob("fold0_*/result.json")
    assert done.out.endswith(" report evaluations/sweeps/mine\n")
    assert result.parent.name != done.err.splitlines()[1].split(":")[0].strip()


# Launchers


def test_jobs_side_by_side_give_the_results_of_jobs_in_turn(swept: tuple[Path, Done]) -> None:
    side_by_side = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = run("train", "-m", "fold=0,9,1", *TINY, *side_by_side, "workers=1")
    assert done.code == 2
    assert done.err.splitlines()[0] == "sd-aanet: 1 of 3 jobs failed:"
    assert "fold=9, expected 0 to 3" in done.err
    assert "3 jobs: 2 done, 1 failed" in done.out
    assert {path.name[:5] for path in SWEEP.iterdir()} == {"fold0", "fold1", "multi", "failu"}
    for fold in (0, 1):
        assert_same(job(fold), job(fold, swept[0] / SWEEP))
        assert "trained 4 steps" in (job(fold) / "output.txt").read_text()


class Killed(BaseException):
    """What kills a process: nothing of its job's own runs any more."""


@pytest.fixture
def launches() -> list[int]:
    """The numbers of the jobs that began, in their order; -1 where the launcher starts."""
    return []


def swept_by(launcher: str, launches: list[int], last: int = 3) -> int:
    """A sweep of four jobs, one after the other; job 2 kills its process, and after `last` no job begins."""
    folder = Path("sweep").resolve()
    jobs = tuple(f"job{number}" for number in range(4))
    sweep = Sweep(folder, jobs, launcher, at_once=1, more=(), checkpoints={}, ledger=folder / ".jobs")

    def attempt(number: int) -> str:
        launches.append(number)
        if number == 2:
            raise Killed
        return "done"

    def launch() -> None:
        launches.append(-1)
        try:
            for number in range(last + 1):
                job = folder / jobs[number]
                job.mkdir(exist_ok=True)
                sweep.job(number, job, lambda number=number: attempt(number))
        except Killed:
            pass
        else:
            if last == 3:
                return
        raise OSError("a worker was killed. It had\nmuch memory")

    return sweep.run(launch)


def test_a_killed_process_takes_no_other_job_with_it(launches: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert swept_by("joblib", launches) == 1
    assert launches == [-1, 0, 1, 2, -1, 2, -1, 3]
    told = capsys.readouterr()
    assert told.out.count("OSError: a worker was killed: what is left starts again\n") == 2
    line = "its process, or one that ran beside it, was killed\n"
    assert told.err == f"sd-aanet: 1 of 4 jobs failed:\n  job2: {line}"
    assert {path.name: path.read_text() for path in Path("sweep/failures").iterdir()} == {"job2.txt": line}
    assert not Path("sweep/.jobs").exists()


def test_a_launcher_that_starts_nothing_more_is_given_up(
    launches: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept_by("joblib", launches, last=1) == 1
    assert launches == [-1, 0, 1, -1]
    assert capsys.readouterr().err.splitlines() == [
        "sd-aanet: hydra/launcher=joblib gave up: OSError: a worker was killed",
        "sd-aanet: 2 of 4 jobs failed:",
        "  job2: it has not come to its end",
        "  job3: it has not come to its end",
    ]
    failures = {path.name: path.read_text() for path in Path("sweep/failures").iterdir()}
    assert failures == dict.fromkeys(("job2.txt", "job3.txt"), "it has not come to its end\n")


def test_what_runs_on_a_cluster_is_not_handed_in_twice(launches: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert swept_by("slurm", launches) == 1
    assert launches == [-1, 0, 1, 2]
    assert "hydra/launcher=slurm gave up" in capsys.readouterr().err


def test_an_error_of_ours_is_not_hidden(launches: list[int]) -> None:
    with pytest.raises(OSError, match="much memory"):
        swept_by("basic", launches)


@pytest.mark.slow
def test_joblib_survives_a_kill(capsys: pytest.CaptureFixture[str]) -> None:
    def task(config: dict[str, Any]) -> None:
        seen = Path(f"seen{config['fold']}")
        if config["fold"] == 1 and not seen.exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        seen.touch()

    argv = ["-m", "fold=0,1,2", "strategy=cpu", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert composition.run_composed("train", lambda: task, argv) == 0
    assert "TerminatedWorkerError" in capsys.readouterr().out
    assert all(Path(f"seen{fold}").exists() for fold in range(3))


@pytest.mark.slow
def test_the_path_that_slurm_takes(swept: tuple[Path, Done]) -> None:
    """Its launcher differs from submitit's local one in the executor alone."""
    done = run("train", "-m", "fold=0,9,1", *TINY, "hydra/launcher=submitit_local")
    assert done.code == 2
    assert done.err.splitlines()[0] == "sd-aanet: 1 of 3 jobs failed:"
    assert "fold=9, expected 0 to 3" in done.err
    for fold in (0, 1):
        assert_same(job(fold), job(fold, swept[0] / SWEEP))
    again = ran("train", "-m", "fold=0,1", *TINY, "hydra/launcher=submitit_local")
    assert "2 jobs: 2 finished before" in again.out


@pytest.mark.parametrize("launcher", ["joblib", "slurm"])
def test_launchers_have_our_defaults_and_the_settings_of_their_plugins(launcher: str) -> None:
    with initialize_config_dir(str(composition.config_folder()), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher
    if launcher == "joblib":
        assert config.n_jobs == jobs_at_once()
        assert config.batch_size == "1"
        assert config.pre_dispatch == "2*n_jobs"
    else:
        assert (config.gpus_per_node, config.tasks_per_node, config.partition, config.qos) == (1, 1, None, None)


def test_wandb_groups_the_jobs_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(loggers, "WandbLogger", lambda **settings: given.append(settings))
    for sweep in ("mine", None):
        chosen = {"name": "wandb", "project": "p", "entity": None}
        loggers.build_loggers(chosen, tmp_path, {"sweep": sweep})
    assert [settings["group"] for settings in given] == ["mine", None]
