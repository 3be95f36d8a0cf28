"""What a training leaves beside its results."""

from pathlib import Path

import pytest

from sd_aanet.training.run import link_latest


def test_latest_points_to_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shapes/one", "shapes/two"):
        out = Path("runs") / name
        out.mkdir(parents=True)
        (out / "mark").write_text(name)
        link_latest(out)
        assert (tmp_path / "runs" / "latest" / "mark").read_text() == name
    assert not Path("runs/latest").readlink().is_absolute()  # the folder may move
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link_latest(elsewhere)
    assert (tmp_path / "runs" / "latest" / "mark").read_text() == "shapes/two"
