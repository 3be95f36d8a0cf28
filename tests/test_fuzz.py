"""`make fuzz`, a few of its inputs: every kind is taken where nothing is damaged, and none is a finding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_some_inputs() -> None:
    """Another process, which leaves nothing in this one's environment."""
    command = [sys.executable, str(SCRIPT), "--count", "60", "--jobs", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 inputs, 0 findings" in done.stdout
