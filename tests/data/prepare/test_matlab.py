"""MATLAB's files, against SciPy's reader where that one can read them."""

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_sbd import HEIGHT, WIDTH, label_of, write_mat
from scipy.io import loadmat, savemat

from sd_aanet.data.prepare.matlab import read_field


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64])
def test_whole_numbers_are_those_that_scipy_reads(dtype: type, compressed: bool, tmp_path: Path) -> None:
    label = (label_of("a", "sbd") % 100).astype(dtype)
    cells = np.array([np.eye(2), "text"], object)
    others = {"Boundaries": cells, "CategoriesPresent": np.array([[1.0]]), "name": "a text"}
    content = {"x": np.eye(3), "GTcls": {**others, "Segmentation": label, "one": np.uint8(1)}, "y": "z"}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    expected = loadmat(tmp_path / "a.mat")["GTcls"]["Segmentation"][0, 0]
    found = read_field((tmp_path / "a.mat").read_bytes(), "GTcls", "Segmentation")
    assert found.shape == (HEIGHT, WIDTH)
    assert np.array_equal(found, expected)
    assert read_field((tmp_path / "a.mat").read_bytes(), "GTcls", "one").tolist() == [[1]]


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_are_errors_of_pythons(compressed: bool, tmp_path: Path) -> None:
    """Of some SciPy's reader dies, with its process. What is compressed has a checksum."""
    label = label_of("a", "sbd")
    write_mat(tmp_path / "a.mat", label)
    if not compressed:
        savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": label}})
    whole, draws, refused = (tmp_path / "a.mat").read_bytes(), random.Random(0), 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draws.choice((1, 1, 4))):
            damaged[draws.randrange(128, len(damaged))] = draws.randrange(256)
        del damaged[draws.choice((draws.randrange(len(damaged)), len(damaged))) :]
        try:
            found = read_field(bytes(damaged), "GTcls", "Segmentation")
        except (ValueError, KeyError, LookupError, StopIteration, TypeError, struct.error, zlib.error):
            refused += 1
        else:
            assert not compressed or np.array_equal(found, label)
    assert refused > 250


def test_what_it_does_not_have(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.eye(3)}, "other": 1})
    content = (tmp_path / "a.mat").read_bytes()
    wrong = (("GT", "x", ValueError), ("GTcls", "x", KeyError), ("GTcls", "Segmentation", ValueError))
    for variable, field, error in wrong:
        with pytest.raises(error):
            read_field(content, variable, field)
    with pytest.raises(ValueError, match="no MATLAB file"):
        read_field(b"", "GTcls", "Segmentation")
