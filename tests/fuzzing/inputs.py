"""One input of the fuzz: what it is drawn from, the damage that it does to valid things, and what may come of it."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from commands import Done, run
from sd_aanet.errors import SDAANetError

T = TypeVar("T")
FEW = 12
"""Lines on standard error, or warnings, that are no flood."""
NUMBERS = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\x7f\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff")
NUMBERS += (b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00")
"""What parsers stumble over, at both ends of lengths and signs."""
TEXTS = (
    *(
        "",
        " ",
        "x",
        "\0",
        "a\0b",
        "/dev/null/x",
        "..",
        ".",
        "~",
        "~nobody/x",
        "a/b",
        "-",
        "--",
        "=",
        "a=b",
        ":",
        "a:b:c",
        "%s",
    ),
    *("é", "e\u0301", "\u202e", "\ufeff", "猫", "\U0001f431", "\ud800", "\x1b[31m", "a\nb", "a\r\nb", "\t", "x" * 300),
    *(
        "x" * 10_000,
        "null",
        "None",
        "true",
        "nan",
        "inf",
        "1e3",
        "1_000",
        "0x10",
        "010",
        "2026_01_15",
        "auto",
        "???",
        "9" * 5000,
    ),
    *("${size}", "${nothing}", "${oc.env:NOTHING}", "${", "$", "a,b", "[", "]", "{", "}", "(", "'", '"', "\\", "\\'"),
    *("[a,b]", "{a: b}", "choice(1,2)", "range(0,3)", "sort(2,1)", "glob(*)", "a b", "#", "&a", "*a", "!!python/none"),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 256, 65_536, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), [], {}, [[]], [None], {"": None}, [1, 2], [0.5, "a"], {"a": {"b": [1]}}, *TEXTS),
)


class WrongEnd(Exception):
    """Something that may not come of any input."""


@dataclass
class Input:
    """One input.

    Attributes:
        chance: all of it is drawn from this.
        valid: the folder of valid things, which nothing changes.
        whole: damage nothing, so that it has to be taken.
        taken, refused: what came of it so far.
    """

    chance: random.Random
    valid: Path
    whole: bool = False
    taken: int = 0
    refused: int = 0
    said: list[str] = field(default_factory=list)

    # What it is read by

    def read(self, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Read it: it is taken, or refused in one line."""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                call(*arguments, **named)
                self.taken += 1
            except SDAANetError as error:
                self.refused += 1
                self._check_line(str(error))
        if len(warned) > FEW:
            raise WrongEnd(f"{len(warned)} warnings, such as {warned[0].message}")

    def command(self, *arguments: object) -> Done:
        """A whole command: exit code 0 or 1, or 2 with one line, and then with nothing left behind."""
        before = {*Path().rglob("*")}
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            done = run(*arguments)
        if done.code in (0, 1):
            self.taken += 1
            if done.err.count("\n") > FEW:
                raise WrongEnd(f"a flood on standard error: {done.err[:500]}")
        elif done.code == 2:
            self.refused += 1
            if not (done.err.startswith("sd-aanet: ") and done.err.endswith("\n")):
                raise WrongEnd(f"expected one line: {done.err[:500]!r}")
            self._check_line(done.err[:-1])
            if left := {*Path().rglob("*")} - before:
                raise WrongEnd(f"left behind: {sorted(map(str, left))[:5]}, by {done.err[:200]}")
        else:
            raise WrongEnd(f"exit code {done.code}: {done.err[:500]}")
        return done

    def _check_line(self, line: str) -> None:
        if "\n" in line or "call to target" in line or not line.strip():
            raise WrongEnd(f"expected one line: {line[:500]!r}")
        self.said.append(line)

    # Damage

    def often(self, share: float) -> bool:
        return self.chance.random() < share

    def a_value(self) -> Any:
        """Of any kind."""
        return copy.deepcopy(self.chance.choice(VALUES))

    def example(self, strategy: st.SearchStrategy[T]) -> T:
        """One that hypothesis makes; not its first ones, which are the plainest."""
        made: list[T] = []

        @seed(self.chance.getrandbits(32))
        @settings(
            max_examples=5, database=None, phases=[Phase.generate], deadline=None, suppress_health_check=[*HealthCheck]
        )
        @given(strategy)
        def keep(value: T) -> None:
            made.append(value)

        keep()
        return made[-1]

    def bytes_of(self, content: bytes) -> bytes:
        """Some bytes changed, cut, repeated or taken out, often of the head, where formats have their lengths."""
        data = bytearray(content)
        for _ in range(0 if self.whole else self.chance.choice((1, 1, 2, 3, 5))):
            end = len(data) if self.often(0.5) else min(len(data), self.chance.choice((16, 64, 400)))
            at = self.chance.randrange(end + 1)
            some = self.chance.choice((1, 1, 2, 4, 16, 100, 1000))
            kind = self.chance.randrange(9)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << self.chance.randrange(8)
            elif kind == 1 and at < len(data):
                data[at] = self.chance.randrange(256)
            elif kind in (2, 3):
                number = self.chance.choice(NUMBERS)
                data[at : at + len(number)] = number
            elif kind == 4:
                del data[at:]
            elif kind == 5:
                del data[at : at + some]
            elif kind == 6:
                data[at:at] = data[at : at + some] * self.chance.choice((1, 1, 2, 50))
            elif kind == 7:
                data[at:at] = self.chance.randbytes(some)
            else:
                start = self.chance.randrange(len(data) + 1)
                data[at : at + some] = data[start : start + some]
        return bytes(data)

    def tree(self, content: Any, odd: Callable[[Any], Any] | None = None, most: int = 3) -> Any:
        """Some nodes of lists and mappings replaced, taken out, repeated, exchanged or called otherwise.

        Args:
            content: is copied.
            odd: what may stand in place of a node, given that; None for `a_value`.
            most: changes.
        """
        content = {"": copy.deepcopy(content)}
        for _ in range(0 if self.whole else self.chance.randint(1, most)):
            nodes = [*_nodes(content)]
            parent, key = self.chance.choice(nodes)
            kind = self.chance.randrange(10)
            if kind == 0 and parent is not content:
                del parent[key]
            elif kind == 1 and isinstance(parent, list):
                parent.insert(key, copy.deepcopy(self.chance.choice(parent)))
            elif kind == 2:
                other, place = self.chance.choice(nodes)
                parent[key] = copy.deepcopy(other[place])
            elif kind == 3 and isinstance(parent, dict) and parent is not content:
                parent[self.chance.choice(("x", "", 5, None, f"{key} "))] = parent.pop(key)
            elif kind == 4:
                parent[key] = self.chance.choice(([parent[key]], {"a": parent[key]}, str(parent[key])[:10_000]))
            else:
                parent[key] = self.a_value() if odd is None else odd(parent[key])
        return content[""]

    def json(self, content: Any, odd: Callable[[Any], Any] | None = None, most: int = 3) -> str:
        """A tree as text, now and then with what no tree of Python's gives."""
        text = json.dumps(self.tree(content, odd, most))
        if self.whole or not self.often(0.05):
            return text
        place = self.chance.choice([number for number, letter in enumerate(text) if letter in ":[,"] or [0]) + 1
        return (
            text[:place]
            + self.chance.choice(("[" * 100_000, '{"a":' * 100_000, "1e999", '"\\ud800"', "-", "9" * 5000))
            + text[place:]
        )

    def lines(self, content: str) -> str:
        """Lines of a text changed, taken out, repeated or made up."""
        lines = content.split("\n")
        for _ in range(0 if self.whole else self.chance.randint(1, 3)):
            at = self.chance.randrange(len(lines) + 1)
            kind = self.chance.randrange(5)
            if kind == 0:
                del lines[at : at + self.chance.choice((1, 1, 1000))]
            elif kind == 1:
                lines[at:at] = lines[:5]
            elif kind == 2:
                lines[at:at] = [self.chance.choice(TEXTS)]
            elif kind == 3 and at < len(lines):
                text = lines[at]
                lines[at] = self.chance.choice(
                    (text.upper(), f"{text} {text}", f"./{text}", text[::-1], f"{at}: {text}")
                )
            elif at < len(lines):
                lines[at] += self.chance.choice(TEXTS)
        return "\n".join(lines)

    def files(self, folder: Path, names: Sequence[str] = ("*",)) -> Path:
        """A folder of valid things in the working folder, something wrong with one or two of its files.

        Args:
            folder: is copied, by links.
            names: patterns of the files that may be damaged, each as likely as another.
        """
        own = self.copy(folder)
        for _ in range(0 if self.whole else self.chance.choice((1, 1, 2))):
            some = [path for path in sorted(own.rglob(self.chance.choice(names))) if path.is_file()]
            if some:
                self._damage(self.chance.choice(some), some)
        return own

    def copy(self, folder: Path) -> Path:
        """A folder of valid things in the working folder, by links: files are to be replaced, not written."""
        return Path(shutil.copytree(folder, folder.name, copy_function=_link))

    def _damage(self, path: Path, others: Sequence[Path]) -> None:
        content, kind = path.read_bytes(), self.chance.randrange(12)
        path.unlink()
        if kind == 0:
            path.touch()
        elif kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to(self.chance.choice(("missing", ".", path.name, "../..")))
        elif kind == 3:
            path.with_name(
                self.chance.choice(("other", path.name.upper(), f"é{path.name}", f"{path.name}.bak"))
            ).write_bytes(content)
        elif kind == 4:
            other = self.chance.choice(others)
            path.write_bytes(other.read_bytes() if other.is_file() else b"")
        elif kind != 5:
            path.write_bytes(self.bytes_of(content))


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _nodes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in lists and mappings: what holds it, and its key."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _nodes(content[key])
