"""One record of a file of text, JSON or CSV, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """The lines of one row, or of none where they are blank or a header."""

    place: str
    """Its first line, such as ``line 3``, counted from 1; or the record, where a JSON file is one list."""
    lines: tuple[str, ...]
    """With their ends; bytes that are not UTF-8 as lone surrogates; absent where a JSON file is one list."""
    values: Mapping[str, Any] | None = None
    """By column; absent without a row."""
    problem: str | None = None
    """Why it cannot be read."""

    @property
    def size(self) -> int:
        """Characters of its lines."""
        return sum(map(len, self.lines))


class UnreadableFileError(Exception):
    """No record of a file can be read: its header is broken, or it is one value and no JSON."""


def undecodable(text: str) -> str | None:
    """The problem of text whose bytes are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        shown = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the surrogate {code:#06x}"
        return f"{shown} after {error.start} characters is not UTF-8"
    return None


def repeated(names: list[str]) -> str | None:
    """The first name in order that is there twice."""
    return next((name for name, after in pairwise(sorted(names)) if name == after), None)


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[str]]:
    """Lines of a file with their ends, without a byte order mark; bytes that are no UTF-8 as lone surrogates.

    The codec ``utf-8-sig`` would drop the beginning of a mark at the end of a file.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        first = stream.readline().removeprefix("\ufeff")
        yield chain([first] if first else [], stream)
