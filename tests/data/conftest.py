from pathlib import Path

import pytest
from fake_voc import Voc, make_voc


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    """Makes a folder in VOC's layout; called again, the same one."""
    return lambda *args, **kwargs: make_voc(tmp_path / "voc", *args, **kwargs)
