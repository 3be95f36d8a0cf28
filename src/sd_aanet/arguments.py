"""How a command was called, what its settings are spelt like, and arguments of those that Hydra does not configure."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from sd_aanet.errors import ConfigError
from sd_aanet.files import short

_WORD = r"(?i:(?!(?:true|false|null|inf|nan)$)[a-z_][a-z0-9_-]*)"
"""What Hydra takes for a text without quotes, too."""
_QUOTED = r"""(["'])(?:\\.|(?!\1)[^\\])*\1"""
_FUNCTION = re.compile(r"(?:choice|glob|range|shuffle|sort|tag)\s*\(")


def program() -> str:
    """How the user calls this command: its path, if the shell would not find it by name."""
    called = Path(sys.argv[0] if sys.argv else "sd-aanet")
    if called.name == "__main__.py":
        return "python -m sd_aanet"
    return "sd-aanet" if called.name != "sd-aanet" or shutil.which("sd-aanet") else word(short(called.absolute()))


def word(text: str | Path) -> str:
    """A word of a command as it can be pasted into a shell: a path with a space or a bracket is quoted."""
    return shlex.quote(str(text))


def setting(key: str, value: object) -> str:
    """KEY=VALUE as it can be pasted into a shell, whatever is in the value."""
    text = str(value)
    plain = re.fullmatch(r"(?!(?i:null)$)(?:[\w./:@%+-]|\$\{[^}]*\})+", text)
    return word(f"{key}={text if plain else in_quotes(text)}")


def in_quotes(text: str) -> str:
    """A text as Hydra reads it back letter by letter."""
    return '"' + re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + (r"\"" if end[2] else ""), text) + '"'


def spelt(value: str, several: bool, null: bool = True) -> str:
    """The value of a text setting, each word in quotes that Hydra would not take for the text that it is.

    So `2026_01_15`, `1e3` and `true` are no numbers, and a path may hold `=`, brackets, spaces and letters of any
    script.

    Args:
        value: a text, a list or a mapping of such, or several of these with commas between.
        several: whether such commas are meant; without -m they are not, and Hydra says so.
        null: whether the word null is nothing, and no text.

    Returns:
        It, as it is where it has a form of its own, such as choice(a,b).
    """
    if _FUNCTION.match(value):
        return value
    try:
        done, at = _element(value, 0, ",", null)
        while several and value[at : at + 1] == ",":
            element, at = _element(value, at + 1, ",", null)
            done += f",{element}"
    except ValueError:
        return value  # a bracket that is not closed
    return done if at == len(value) else value


def _element(value: str, start: int, ends: str, null: bool) -> tuple[str, int]:
    """An element from a place on, spelt out, and the place behind it and the spaces that follow."""
    at = _behind(r"\s*", value, start)
    if (end := _behind(_QUOTED, value, at)) > at:
        return value[at:end], _behind(r"\s*", value, end)
    if value[at : at + 1] not in ("[", "{"):
        end = _behind(rf"(?:\$\{{[^}}]*\}}|\\[{re.escape(ends)}]|[^{re.escape(ends)}])*", value, at)
        text = re.sub(rf"\\([{re.escape(ends)}])", r"\1", value[at:end].strip())
        plain = not text or re.fullmatch(_WORD, text) or (null and text.lower() == "null")
        return text if plain else in_quotes(text), end
    done, close = value[at], {"[": "]", "{": "}"}[value[at]]
    while value[at] != close:
        key = _behind(r"\s*[\w-]+\s*:", value, at + 1) if close == "}" else at + 1
        element, end = _element(value, key, f",{close}", null)
        if value[end : end + 1] not in (",", close) or end == len(value):
            raise ValueError(value)
        done += value[at + 1 : key] + element + value[end]
        at = end
    return done, _behind(r"\s*", value, at + 1)


def _behind(pattern: str, value: str, at: int) -> int:
    """The place behind a pattern, if it is there; else the same place."""
    found = re.compile(pattern, re.DOTALL).match(value, at)
    return at if found is None else found.end()


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
