"""Is a GGUF file as long as its header says? Asked before anything is made of the header.

Readers allocate and loop by what the header claims, and a damaged count makes them do so for ever.
Every claim is held against the length of the file: a value takes a byte at least, a tensor its
elements. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"blk\.(\d+)\.")
LONGEST_NAME = 1 << 16
MOST_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each type of value."""


class Malformed(ValueError):
    """What is wrong with the header, to go into a sentence."""


@dataclass(frozen=True)
class Header:
    """What a loader goes by.

    Attributes:
        numbers: the whole numbers that the metadata has for the file's own architecture, by the
            last word of the key.
        blocks: of how many decoder blocks there are tensors.
        elements: of all tensors together.
    """

    numbers: dict[str, int]
    blocks: int
    elements: int


def read(file: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        Malformed: it claims more than the file has, or is not as the format says.
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    if size < 24:
        raise Malformed(f"it has {size} bytes, too few for a header")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _header(_Cursor(data, size))


class _Cursor:
    """Reads forward, never beyond the end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self.size, self._at = data, size, 0
        self.order = "<"

    def skip(self, count: int, what: str) -> int:
        """The place before ``count`` bytes that are there."""
        start, self._at = self._at, self._at + count
        if self._at > self.size:
            raise Malformed(f"{what} goes beyond the end of the file")
        return start

    def number(self, form: str, what: str) -> int:
        """One whole number, in struct's notation."""
        start = self.skip(struct.calcsize(f"{self.order}{form}"), what)
        value: int = struct.unpack_from(f"{self.order}{form}", self._data, start)[0]
        return value

    def string(self, what: str) -> str:
        """A length and so many bytes of UTF-8."""
        count = self.number("Q", what)
        start = self.skip(count, what)
        if count > LONGEST_NAME:
            return ""  # such as a chat template, which is of no interest here
        try:
            return self._data[start : start + count].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"{what} is not UTF-8") from error

    def counted(self, least: int, what: str) -> int:
        """A count of things that take ``least`` bytes each."""
        count = self.number("Q", what)
        if count > (self.size - self._at) // least:
            raise Malformed(f"{what} is {count}, more than the file has room for")
        return count


def _header(cursor: _Cursor) -> Header:
    cursor.skip(4, "the magic")
    if cursor.number("I", "the version") & 0xFFFF == 0:
        cursor.order = ">"
    count = cursor.counted(24, "the number of tensors")
    pairs = cursor.counted(13, "the number of metadata")
    known: dict[str, int | str] = {}
    for _ in range(pairs):
        key = cursor.string("a key of the metadata")
        value = _value(cursor, cursor.number("I", "a type of the metadata"), key)
        if value is not None:
            known[key] = value
    architecture = known.get("general.architecture")
    if not isinstance(architecture, str):
        raise Malformed("its metadata has no general.architecture")
    numbers = {
        key.rpartition(".")[2]: value
        for key, value in known.items()
        if key.startswith(f"{architecture}.") and isinstance(value, int)
    }
    elements = 0
    blocks = set()
    for index in range(count):
        name, size = _tensor(cursor, f"tensor {index}")
        elements += size
        if found := _BLOCK.match(name):
            blocks.add(found[1])
        if elements > 8 * cursor.size:
            raise Malformed(f"tensor {index} has more weights than the file has bits")
    return Header(numbers, len(blocks), elements)


def _value(cursor: _Cursor, kind: int, key: str) -> int | str | None:
    what = f"the value of {key!r}"
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        _array(cursor, what)
    elif kind in _SCALARS:
        forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
        if kind in forms:
            return cursor.number(forms[kind], what)
        cursor.skip(_SCALARS[kind], what)
    else:
        raise Malformed(f"{what} is of an unknown type, {kind}")
    return None


def _array(cursor: _Cursor, what: str) -> None:
    kind = cursor.number("I", what)
    if kind in _SCALARS:
        count = cursor.counted(_SCALARS[kind], what)
        cursor.skip(count * _SCALARS[kind], what)
    elif kind == _STRING:
        for _ in range(cursor.counted(8, what)):
            cursor.skip(cursor.number("Q", what), what)
    else:
        raise Malformed(f"{what} is an array of type {kind}, which no model has")


def _tensor(cursor: _Cursor, what: str) -> tuple[str, int]:
    """Its name and how many elements it has."""
    name = cursor.string(what)
    dimensions = cursor.number("I", what)
    if dimensions > MOST_DIMENSIONS:
        raise Malformed(f"{what} has {dimensions} dimensions, more than {MOST_DIMENSIONS}")
    sizes = [cursor.number("Q", what) for _ in range(dimensions)]
    cursor.skip(4 + 8, what)
    return name, math.prod(sizes)
