"""How a command was called, and arguments of those that are not configured with Hydra."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from sd_aanet.errors import ConfigError
from sd_aanet.files import short


def program() -> str:
    """How the user calls this command: its path, if the shell would not find it by name."""
    called = Path(sys.argv[0] if sys.argv else "sd-aanet")
    if called.name == "__main__.py":
        return "python -m sd_aanet"
    return "sd-aanet" if called.name != "sd-aanet" or shutil.which("sd-aanet") else short(called.absolute())


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
