"""Folds: by rule, from a file, automatic."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sd_aanet.data.folds import arranged, from_file, shuffled, split_classes
from sd_aanet.errors import ConfigError, DataError

NAMES = ("cat", "dog", "no", "1", "Möwe")


def test_contiguous_folds_hold_neighbours_and_interleaved_ones_every_fourth() -> None:
    assert arranged(20, 4, "contiguous")[1] == (6, 7, 8, 9, 10)
    assert arranged(80, 4, "interleaved")[2] == tuple(4 * x + 2 + 1 for x in range(20))
    assert arranged(80, 4, "contiguous")[3] == tuple(range(61, 81))


def test_arrangements_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"arrangement='random', expected one of contiguous, interleaved"):
        arranged(80, 4, "random")
    for folds in (3, 0):
        with pytest.raises(ConfigError, match=rf"folds={folds}, expected a divisor of the 80 classes"):
            arranged(80, folds, "contiguous")


@pytest.mark.parametrize(
    ("classes", "folds", "sizes"), [(10, None, [3, 3, 2, 2]), (3, None, [1, 1, 1]), (7, 2, [4, 3])]
)
def test_automatic_folds_divide_all_classes_evenly(classes: int, folds: int | None, sizes: list[int]) -> None:
    found = shuffled(classes, folds, seed=0)
    assert [len(fold) for fold in found] == sizes
    assert sorted(c for fold in found for c in fold) == list(range(1, classes + 1))


def test_automatic_folds_are_the_same_on_any_machine_and_differ_by_seed() -> None:
    assert shuffled(8, 2, seed=0) == ((1, 2, 4, 5), (3, 6, 7, 8))
    assert shuffled(8, 2, seed=0) != shuffled(8, 2, seed=1)


@pytest.mark.parametrize("folds", [0, 6])
def test_more_folds_than_classes(folds: int) -> None:
    with pytest.raises(ConfigError, match=rf"folds={folds}, expected 1 to 5, the number of classes: set dataset"):
        shuffled(5, folds, seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "[[cat, no], [1]]",
        "- [no, cat]\n- ['1']",
        "first: [cat, no]\nsecond:\n  - 1\n",
        "\ufeff- - cat\r\n  - no\r\n- - 1\r\n",
    ],
)
def test_a_users_folds_are_lists_of_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "folds.yaml").write_bytes(text.encode())
    assert from_file(tmp_path / "folds.yaml", NAMES) == ((1, 3), (4,))


def test_names_in_a_users_folds_may_be_written_with_accents_apart(tmp_path: Path) -> None:
    (tmp_path / "folds.yaml").write_bytes("[[Mo\u0308we]]".encode())
    assert from_file(tmp_path / "folds.yaml", NAMES) == ((5,),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[cat, cow]]", "names the class 'cow', which does not exist, expected each of cat, dog, no, 1, Möwe at most"),
        ("[[cat], [dog, cat]]", "names the class 'cat' twice"),
        ("[[cat, {a: b}]]", "which does not exist"),
        ("[cat, dog]", "is not a list of folds, expected a list for each, as in"),
        ("[]", "is not a list of folds"),
        ("[[cat], []]", "is not a list of folds"),
        ("", "is not a list of folds"),
        ("cat", "is not a list of folds"),
        ("[[cat", "cannot be read (while parsing"),
        ("[" * 100_000, "cannot be read (maximum recursion"),
        ("!!python/object/apply:os.getcwd []", "is not a list of folds"),
    ],
)
def test_what_is_wrong_with_a_users_folds_is_told_in_one_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "folds.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        from_file(tmp_path / "folds.yaml", NAMES)
    assert f"{tmp_path}/folds.yaml" in str(raised.value)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_single_base_class_cannot_be_held_out() -> None:
    two = SimpleNamespace(
        name="two",
        folds=2,
        classes=("cat", "dog"),
        fold_classes=lambda fold: (fold + 1,),
        val_classes=lambda fold: None,
    )
    with pytest.raises(ConfigError, match=r"^held_out=1, expected 0 with a single base class: set select_on=none"):
        split_classes(two, 0, 0, "base", 1)
    assert split_classes(two, 0, 0, "none", 1).train == (2,)
