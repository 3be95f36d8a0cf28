"""The project around the code: set-up files, versions, and the wheel that a user gets."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sd_aanet
from sd_aanet import cli

ROOT = Path(__file__).resolve().parents[1]
REQUIRED_TARGETS = {"help", "install", "train", "evaluate", "test", "test-all", "lint", "format", "typecheck"}
REQUIRED_TARGETS |= {"bench", "clean"}
SET_UP_FILES = ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"].values()
    listed = [Requirement(line) for group in (project["dependencies"], *extras) for line in group]
    return [requirement for requirement in listed if requirement.name != project["name"]]  # an extra within another


def pinned_versions() -> dict[str, str]:
    pins = (line.split("==") for line in text("constraints.txt").splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture
def make() -> str:
    path = shutil.which("make")
    if path is None:
        pytest.skip("make is not installed")
    return path


# Makefile


def test_make_help_lists_every_target(make: str) -> None:
    declared = re.search(r"^\.PHONY: (.+)$", text("Makefile"), re.MULTILINE)
    assert declared is not None
    shown = subprocess.run([make, "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^ +make (\S+) +(\S.*)$", shown, re.MULTILINE))
    assert set(listed) == set(declared[1].split())
    assert set(listed) >= REQUIRED_TARGETS


def test_every_makefile_target_has_help_text() -> None:
    rules = re.findall(r"^([a-z][a-z-]*):(?!=)(.*)$", text("Makefile"), re.MULTILINE)
    assert [name for name, rest in rules if not re.search(r"## \w", rest)] == []


# dependencies


def test_every_dependency_has_its_reason_beside_it() -> None:
    lines = [line.strip() for line in text("pyproject.toml").splitlines()]
    for requirement in requirements():
        line = next(line for line in lines if re.match(rf'"{requirement.name}\b[^"]*",', line))
        assert re.search(r'",\s+# .{8,}', line), f"no reason beside {requirement}"


def test_constraints_are_within_the_ranges() -> None:
    versions = pinned_versions()
    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(version), f"constraints.txt has {version}, not {requirement}"


def test_no_set_up_file_says_where_packages_come_from() -> None:
    """The index is the machine's business: one named here fails wherever it cannot be reached."""
    for name in SET_UP_FILES:
        found = re.findall(r"--(?:extra-)?index-url|--find-links|\w+ ?@ ?\w+:|(?:https?|file)://\S+", text(name))
        assert found == [], name


# versions


def test_version_is_the_same_everywhere() -> None:
    citation = re.search(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)
    newest = re.search(r"\b\d+\.\d+\.\d+\b", text("CHANGELOG.md").partition("## [Unreleased]")[2])
    assert citation is not None
    assert newest is not None
    assert citation[1] == newest[0] == sd_aanet.__version__


# imports


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules() -> dict[str, set[str]]:
    """Every module of the package, and what it imports; but for the commands of one method, which live with it."""
    package = ROOT / "src/sd_aanet"
    names = {".".join(("sd_aanet", *p.relative_to(package).with_suffix("").parts)): p for p in package.rglob("*.py")}
    commands = {module for module, _ in cli.PLAIN.values() if module.startswith("sd_aanet.models.")}
    return {name: imports(path) for name, path in names.items() if name not in commands}


def test_imports_run_one_way() -> None:
    """Between folders, and files that stand beside them, there is no circle, and nothing imports the command line."""
    rooms: dict[str, set[str]] = {}
    for name, found in modules().items():
        if name == "sd_aanet.__init__":
            continue
        room = name.split(".")[1]
        ours = {other.split(".")[1] for other in found if other.startswith("sd_aanet.")}
        rooms.setdefault(room, set()).update(ours - {room, "__version__"})
    assert {room for room, needed in rooms.items() if "cli" in needed} == {"__main__"}
    assert len([*TopologicalSorter(rooms).static_order()]) >= len(rooms)


def test_methods_and_backbones_are_pure_torch() -> None:
    for name, found in modules().items():
        if name.startswith(("sd_aanet.models.", "sd_aanet.backbones.", "sd_aanet.episode")):
            others = {other.split(".")[0] for other in found}
            assert not others & {"pytorch_lightning", "hydra", "omegaconf"}, name
            rooms = {other.split(".")[1] for other in found if other.startswith("sd_aanet.")}
            assert not rooms & {"data", "evaluation", "training", "report", "checkpoint", "segmenter"}, name


# tracked files


def test_no_tracked_file_holds_a_path_of_one_machine() -> None:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    personal = re.compile(rb"(?<![\w.~}-])/(?:home|root|Users|work|tmp|mnt)/\w[^\s\"'`]*")
    found = {}
    for name in listing.decode().split("\0"):
        path = ROOT / name
        if path.is_file() and (hits := personal.findall(path.read_bytes())):
            found[name] = hits
    assert found == {}


# the wheel


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as its wheel installs it, without dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    dist, site = str(folder / "dist"), folder / "site"

    def pip(command: str, *arguments: str) -> None:
        quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([sys.executable, "-m", "pip", command, *quiet, *arguments], check=True)

    pip("wheel", "--no-build-isolation", "--wheel-dir", dist, str(ROOT))
    pip("install", "--no-index", "--find-links", dist, "--target", str(site), "sd-aanet")
    return site


@pytest.mark.slow
def test_wheel_holds_all_of_conf(installed_wheel: Path) -> None:
    shipped = installed_wheel / "sd_aanet" / "conf"
    source = ROOT / "conf"
    expected = {path.relative_to(source) for path in source.rglob("*.yaml")}
    assert expected
    assert {path.relative_to(shipped) for path in shipped.rglob("*.yaml")} == expected
    assert (installed_wheel / "sd_aanet" / "py.typed").is_file()


@pytest.mark.slow
def test_wheel_runs_from_another_folder(installed_wheel: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed_wheel)}  # before the editable install's path

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert str(installed_wheel) in python("-c", "import sd_aanet; print(sd_aanet.__file__)")
    assert "train" in python("-m", "sd_aanet", "--help")
