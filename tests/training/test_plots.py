"""Curves of a training take the names of its losses from what was logged."""

from pathlib import Path

import matplotlib

from sd_aanet.training.plots import COLOURS, draw_curves, loss_panels, read_metrics


def series(**values: list[float]) -> dict[str, tuple[list[int], list[float]]]:
    return {name.replace("__", "/"): (list(range(len(some))), some) for name, some in values.items()}


def test_terms_that_are_tiny_beside_the_total_have_a_panel_of_their_own() -> None:
    curves = series(
        train__main=[0.7, 0.4],
        train__distillation=[0.002, 0.001],
        train__total=[2.0, 1.0],
        train__lr=[0.1, 0.0],
        val__miou=[0.3],
    )
    assert loss_panels([curves]) == [["train/total", "train/main"], ["train/distillation"]]
    large = series(train__total=[3.0], train__distillation=[1.0], train__extra=[0.0])
    assert loss_panels([curves, large]) == [
        ["train/total", "train/main", "train/distillation"],
        ["train/extra"],
    ], "of one scale in some training is of one scale"
    assert loss_panels([series(train__lr=[0.1]), series()]) == []
    assert loss_panels([series(train__main=[0.0], train__total=[0.0])]) == [["train/total", "train/main"]]


def test_any_number_of_terms_is_drawn(tmp_path: Path) -> None:
    names = [f"train/term{number}" for number in range(len(COLOURS) + 3)]
    logs = tmp_path / "logs/version_0"
    logs.mkdir(parents=True)
    header = ",".join(["step", "train/total", *names, "train/lr", "val/miou"])
    rows = [",".join(map(str, [step, 9, *[1 + step] * len(names), 0.1, ""])) for step in range(3)]
    (logs / "metrics.csv").write_text(
        "\n".join([header, *rows, ",".join(["2", *[""] * (len(names) + 2), "0.5"])]) + "\n"
    )
    assert loss_panels([read_metrics(tmp_path)]) == [["train/total", *names]]
    assert draw_curves(tmp_path) == tmp_path / "curves.png"
    assert draw_curves(tmp_path / "nowhere") is None


def test_the_users_own_looks_are_none_of_these_curves(tmp_path: Path) -> None:
    """With text.usetex and no LaTeX, a training ended in a traceback."""
    (tmp_path / "logs/version_0").mkdir(parents=True)
    (tmp_path / "logs/version_0/metrics.csv").write_text("step,train/total\n0,1.5\n1,1.2\n")
    with matplotlib.rc_context({"text.usetex": True}):
        assert draw_curves(tmp_path) == tmp_path / "curves.png"
        assert matplotlib.rcParams["text.usetex"] is True
