"""Parity with the published network: recorded cases where they are at hand, and cases made here anywhere."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plain import layout, record_eval, record_train
from sd_aanet.cli import main
from sd_aanet.errors import DataError
from sd_aanet.models.sd_aanet.golden import episode, official_state
from sd_aanet.models.sd_aanet.parity import CaseReport, relative_error, run_folder

Cases = dict[str, dict[str, Any]]
EVAL = {
    "eval_resnet50": {"backbone": "resnet50", "shot": 2, "scales": [8, 5, 1.0, 0.67], "batch": 2},
    "eval_vgg": {"backbone": "vgg16_bn", "shot": 1, "scales": [5, 3, 2, 2], "batch": 1},
}
TRAIN = {"train_vgg": {"backbone": "vgg16_bn", "shot": 2, "scales": [1.0, 0.67, 4, 2], "steps": 2}}
SIZE = 33
COLUMNS = ["main", "auxiliary", "distillation", "support", "total"]
RATES = {"base_lr": 0.0025, "momentum": 0.9, "weight_decay": 0.0001}


def write(folder: Path, cases: Cases, arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """A folder of recorded cases."""
    folder.mkdir(exist_ok=True)
    for backbone in {case["backbone"] for case in cases.values()}:
        (folder / f"official_keys_{backbone.removesuffix('_bn')}.json").write_text(json.dumps(layout(backbone)))
    (folder / "cases.json").write_text(json.dumps(cases))
    for name, recorded in arrays.items():
        np.savez_compressed(folder / f"{name}.npz", **recorded)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cases, dict[str, dict[str, np.ndarray]]]:
    """Cases of the plain network."""
    cases: Cases = {}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for backbone in ("resnet50", "vgg16_bn"):
        state = {name: torch.from_numpy(array) for name, array in official_state(layout(backbone)).items()}
        for number, (name, settings) in enumerate((EVAL | TRAIN).items()):
            if settings["backbone"] != backbone:
                continue
            case: dict[str, Any] = {"size": SIZE, "seed": 7 * number, "batch": 2} | settings
            if name in EVAL:
                case["mode"] = "eval"
                arrays[name] = record_eval(state, case, episode(case["batch"], case["shot"], SIZE, case["seed"]))
            else:
                case |= RATES | {"mode": "train", "columns": COLUMNS, "backbone_bn": "train"}
                head = [n for n in state if not n.startswith("layer") and n.endswith(("weight", "bias"))]
                running = [n for n in state if n.endswith(("running_mean", "running_var"))]
                case |= {"grad_norm_names": sorted(head), "buffers": running[::5]}
                batches = [episode(2, case["shot"], SIZE, case["seed"] + step) for step in range(case["steps"])]
                arrays[name] = record_train(dict(state), case, batches)
            cases[name] = case
    folder = tmp_path_factory.mktemp("made")
    write(folder, cases, arrays)
    return folder, cases, arrays


def parity(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, list[str], str]:
    """Exit code, lines on standard output, standard error."""
    with pytest.raises(SystemExit) as leave:
        main(["parity", str(folder)])
    printed = capsys.readouterr()
    return leave.value.code, printed.out.splitlines(), printed.err


def test_cases_made_here_hold(
    made: tuple[Path, Cases, dict[str, dict[str, np.ndarray]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cases, arrays = made
    (folder / "golden.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")  # the command executes nothing
    code, lines, _ = parity(folder, capsys)
    assert code == 0, lines
    assert not (folder / "executed").exists()
    assert lines[-1] == "3 of 3 cases hold"
    for line, name in zip(lines, cases, strict=False):
        verdict, shown, *errors = line.split()
        assert (verdict, shown) == ("ok", name)
        compared = set(errors[::2])
        assert compared == set(arrays[name]) | ({"foreground_pixels"} if name in EVAL else set())
        # Float32 rounds what eval cases recorded; otherwise only the order of sums differs.
        assert max(float(error) for error in errors[1::2]) < (1e-7 if name in EVAL else 1e-11)


def test_one_wrong_number_fails_its_case_alone(
    made: tuple[Path, Cases, dict[str, dict[str, np.ndarray]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, cases, arrays = made
    case, right = cases["eval_vgg"], arrays["eval_vgg"]

    def bent(name: str, factor: float) -> dict[str, np.ndarray]:
        array = right[name].astype(np.float64)
        array.flat[np.abs(array).argmax()] *= factor
        return right | {name: array}

    variants = {
        "within": bent("attention", 1 + 3e-7),
        "beyond": bent("attention", 1 + 3e-6),
        "nan": bent("logits", float("nan")),
        "extra": right | {"unheard_of": np.zeros(3)},
        "pixel": right,
    }
    wrong = {name: dict(case) for name in variants}
    wrong["pixel"]["foreground_pixels"] += 1
    write(tmp_path / "x", wrong, variants)
    code, lines, _ = parity(tmp_path / "x", capsys)
    assert code == 1
    assert [line.split()[1] for line in lines[:-1]] == list(variants)  # a line a case, in order
    assert [line.split()[1] for line in lines[:-1] if line.startswith("ok")] == ["within"]
    assert lines[-1] == "1 of 5 cases hold"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_what_cannot_run_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    case = {"mode": "eval", "backbone": "vgg16_bn", "shot": 1, "scales": [2], "size": 41, "seed": 0, "batch": 1}
    cases: dict[str, Any] = {
        "no_npz": case,
        "unknown_backbone": case | {"backbone": "resnet152"},
        "unknown_mode": case | {"mode": "guess"},
        "no_mode": {},
        "no_dict": [1, 2],
        "cut_npz": case,
        "pickled": case,
        "keys_of_another": case | {"backbone": "alien"},
        "keys_no_dict": case | {"backbone": "list"},
    }
    some = {"logits": np.zeros(1)}
    write(folder, {"any": case}, dict.fromkeys(cases, some))
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "no_npz.npz").unlink()
    (folder / "cut_npz.npz").write_bytes((folder / "no_mode.npz").read_bytes()[:50])
    np.savez(folder / "pickled.npz", logits=np.array([Bomb(tmp_path / "boom")], dtype=object))
    (folder / "official_keys_alien.json").write_text(json.dumps({"conv1.weight": [1]}))
    (folder / "official_keys_list.json").write_text("[1]")
    code, lines, errors = parity(folder, capsys)
    assert code == 1
    assert errors == ""
    assert not (tmp_path / "boom").exists()
    assert [line.split()[:2] for line in lines[:-1]] == [["FAIL", name] for name in cases]
    assert all(len(line.split()) > 3 for line in lines[:-1])  # each says why
    assert "official_keys_resnet152.json" in lines[1]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "3", b"\xff\xfe", "[" * 100_000])
def test_a_folder_without_cases_is_a_mistake(
    content: str | bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "cases.json").write_bytes(content.encode() if isinstance(content, str) else content)
    code, lines, errors = parity(tmp_path, capsys)
    assert code == 2
    assert lines == []
    assert errors.startswith(f"sd-aanet: '{tmp_path / 'cases.json'}' ")
    assert errors.count("\n") == 1
    with pytest.raises(DataError):
        next(run_folder(tmp_path / "nowhere"))


def test_relative_error() -> None:
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 0.5
    assert relative_error(np.array([3.0]), np.array([0.0])) == 3
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.zeros(3), np.zeros((3, 1))) == float("inf")
    assert np.isnan(relative_error(np.array([np.nan]), np.array([1.0])))


def test_nothing_compared_is_no_parity() -> None:
    assert not CaseReport("x", {}, 1.0).passed
    assert not CaseReport("x", {"logits": float("nan")}, 1.0).passed
    assert CaseReport("x", {"logits": 1e-7}, 1e-6).passed


# Weights and inputs behind the recordings ------------------------------------------------------------------------

# Written down once from the functions that made the recordings.
RECORDED: dict[str, tuple[list[int], list[float]]] = {
    "cls.3.bias": ([2], [-0.02469235483627991, -0.0743697795802159]),
    "s_cls.weight": ([1, 2, 1, 1], [-0.3706721680707187, -1.3344225272888979]),
    "layer0.1.weight": ([2], [0.6195141582142615, 0.6553045758688084]),
    "layer0.1.running_mean": ([2], [-0.013453680507186384, -0.12310668104506894]),
    "layer0.1.running_var": ([2], [1.202711848896036, 0.9791986589444437]),
    "layer0.1.num_batches_tracked": ([], [0]),
}


def test_weights_and_inputs_are_those_of_the_recordings() -> None:
    state = official_state({name: shape for name, (shape, _) in RECORDED.items()})
    for name, (shape, values) in RECORDED.items():
        assert state[name].dtype == (np.int64 if name.endswith("tracked") else np.float64)
        np.testing.assert_allclose(state[name], np.array(values).reshape(shape), rtol=1e-13)
    query, query_mask, support, support_mask = episode(1, 1, 9, 3)
    assert query[0, 0, 4, 4] == pytest.approx(-0.12471737696438445, rel=1e-13)
    assert support[0, 0, 2, 0, 8] == pytest.approx(-0.48139557625332885, rel=1e-13)
    assert [int((query_mask == value).sum()) for value in (0, 1, 255)] == [60, 18, 3]
    assert [int((support_mask == value).sum()) for value in (0, 1, 255)] == [65, 13, 3]


def test_the_functions_are_those_of_the_recordings(shared: Path) -> None:
    path = shared / "golden" / "golden.py"
    spec = importlib.util.spec_from_file_location("golden_of_the_recordings", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    keys = {
        name: shape
        for name, shape in layout("resnet50").items()
        if not name.startswith(("layer3", "layer4", "simple_mask"))
    }
    expected = theirs.official_state(keys)
    for name, array in official_state(keys).items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])
    for ours, wanted in zip(episode(2, 3, 33, 5), theirs.episode(2, 3, 33, 5), strict=True):
        assert ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)


# The recorded cases ----------------------------------------------------------------------------------------------


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden"


def test_small_recorded_cases_hold(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("case_eval_2shot_vgg16_soft_masks", "case_train_1shot_vgg16_soft_masks")
    cases = json.loads((golden / "cases.json").read_text())
    (tmp_path / "cases.json").write_text(json.dumps({name: cases[name] for name in chosen}))
    for name in (*(f"{name}.npz" for name in chosen), "official_keys_vgg16.json"):
        (tmp_path / name).symlink_to(golden / name)
    code, lines, _ = parity(tmp_path, capsys)
    assert code == 0, lines
    assert lines[-1] == "2 of 2 cases hold"


@pytest.mark.slow
def test_every_recorded_case_holds(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = parity(golden, capsys)
    assert code == 0, lines
    assert len(lines) == 1 + len(json.loads((golden / "cases.json").read_text())) == 12
