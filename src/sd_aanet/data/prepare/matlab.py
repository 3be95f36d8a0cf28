"""Arrays of MATLAB's files of version 5, read within bounds: SciPy's reader crashes on some damaged ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Kinds of data, as NumPy calls them."""
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _WHOLE = 2, range(8, 16)
"""Classes of matrices: of fields, and of whole numbers."""
_MOST = 2**28
"""Bytes that a compressed matrix may have."""


def read_field(content: bytes, variable: str, field: str) -> NDArray[Any]:
    """A matrix of whole numbers (H, W, ...) in a field of a variable, a struct of 1 x 1.

    Args:
        content: of the file, as MATLAB writes it on the processors of today, compressed or not.
        variable: its name.
        field: its name.

    Raises:
        ValueError: (or another one of Python's own) the file is damaged, or has no such field.
    """
    if content[126:128] != b"IM":
        raise ValueError("it is no MATLAB file of version 5")
    for kind, data in _elements(content[128:]):
        if kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            kind, data = next(_elements(unpacking.decompress(data, _MOST)))
            if not unpacking.eof:  # where the checksum is
                raise ValueError("a matrix is cut off")
        parts = [*_elements(data)] if kind == _MATRIX else []
        if parts and parts[0][1][0] == _STRUCT and _text(parts[2]) == variable:
            width = int(_numbers(parts[3])[0])
            names = [name.rstrip(b"\0").decode() for (name,) in struct.iter_unpack(f"{width}s", parts[4][1])]
            return _matrix(dict(zip(names, parts[5:], strict=True))[field])
    raise ValueError(f"it has no {variable}")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start = at + 8
        if kind >> 16:  # a small one, its content in place of its size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(data):
            raise ValueError("an element is cut off")
        yield kind, data[start : start + size]
        end = start + size
        at = end if kind == _COMPRESSED else end + -end % 8


def _numbers(element: tuple[int, bytes]) -> NDArray[Any]:
    kind, data = element
    return np.frombuffer(data, f"<{_NUMBERS[kind]}")


def _text(element: tuple[int, bytes]) -> str:
    return element[1].decode()


def _matrix(element: tuple[int, bytes]) -> NDArray[Any]:
    parts = [*_elements(element[1])]
    if element[0] != _MATRIX or parts[0][1][0] not in _WHOLE:
        raise ValueError("the field holds no whole numbers")
    return _numbers(parts[3]).reshape(_numbers(parts[1]).tolist(), order="F")
