"""Arguments of the commands that are not configured with Hydra."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sd_aanet.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
