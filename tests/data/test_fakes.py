"""The fakes' commands: a folder of each layout, spoilt as asked."""

import runpy
import sys
from pathlib import Path

import pytest

FAKES = ("coco", "folder", "fss", "sbd", "voc")


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_is_written_and_spoilt_by_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "fake"), "no picture"])
    runpy.run_path(str(Path(__file__).with_name(f"fake_{name}.py")), run_name="__main__")
    pictures = [path.read_bytes() for path in (tmp_path / "fake").rglob("*.jpg")]
    assert len(pictures) > 4
    assert pictures.count(b"no picture") == 1
