"""`sd-aanet compare`: which results it compares, and what it says of those it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_results import make_run

from commands import nothing_left, ran, refused, run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two(**switches: Any) -> None:
    """The folders a and b of one result, of which b says other switches of the protocol."""
    result = make_run(Path("a"))
    shutil.copytree("a", "b")
    result["protocol"] |= switches
    Path("b/result.json").write_text(json.dumps(result))


def test_boundaries_that_count_are_not_compared_with_ignored_ones() -> None:
    two(ignore_boundary=False)
    refused(run("compare", "a", "b"), "'a' and 'b' were scored with different ignore_boundary")


def test_any_other_switch_that_differs_is_named() -> None:
    two(size=321, scales=[0.8, 1.0], seed=7, test_seed=7)
    done = ran("compare", "a", "b")
    named = [line for line in done.out.splitlines() if line.startswith("not only the network differs: ")]
    assert [line.partition(": ")[2] for line in named] == [
        "size is 225 in A, 321 in B",
        "scales is [1.0] in A, [0.8, 1.0] in B",
    ]
    assert "not only the network" not in ran("compare", "a", "a").out


def test_both_resolutions_are_compared_at_the_first() -> None:
    two(resolution="both")
    assert "not only the network" not in ran("compare", "a", "b").out


SPOILT = {
    "cut off": lambda text: text[: len(text) * 2 // 3],
    "cut off at a line": lambda text: "".join(text.splitlines(keepends=True)[:-5]),
    "header only": lambda text: text.splitlines(keepends=True)[0],
    "other episodes": lambda text: text.replace(",1,aeroplane,", ",2,aeroplane,"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_episodes_that_are_not_whole(name: str) -> None:
    two()
    path = Path("b/episodes.csv")
    path.write_text(SPOILT[name](path.read_text()))
    with nothing_left():
        refused(run("compare", "a", "b"), "episodes.csv", "evaluate again")


@pytest.mark.parametrize("key", ["fold", "test_shot", "dataset", "resolution"])
def test_results_without_what_they_are_of(key: str) -> None:
    two()
    result = json.loads(Path("b/result.json").read_text())
    del result["protocol"][key]
    Path("b/result.json").write_text(json.dumps(result))
    refused(run("compare", "a", "b"), "'b/result.json' is not a result", key)


def test_results_without_episodes() -> None:
    two()
    Path("b/episodes.csv").unlink()
    refused(run("compare", "a", "b"), "'b/result.json' has no episodes.csv beside it")
