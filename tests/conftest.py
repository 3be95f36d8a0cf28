"""Fixtures that every test may use."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from commands import TINY, Done, ran

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is no failure.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """In a shell's background SIGINT is ignored, and so it would be by the commands that tests start and stop."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD_AANET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, weights and recorded outputs beside the checkout; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder 'shared' beside the checkout: real data, weights and recorded outputs are not here")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a tiny training on shapes, made by the command, and what that printed; not to be changed."""
    working = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(working):
        done = ran("train", *TINY)
    return (working / "runs/latest").resolve(), done
