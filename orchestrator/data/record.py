"""One record of a file of text, JSON or CSV, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

# 1 Mi: nearly every file has a line feed in it.
READ_BYTES = 1 << 20
FOREIGN = {
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"BZh91AY&SY": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
}
"""What a file is that begins so, and what to do."""


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
    """The problem of text whose bytes are not UTF-8, or hardly are text."""
    if "\0" in text:
        return f"a NUL character after {text.index(chr(0))} characters, which no text has: is it UTF-16?"
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


def refuse_foreign(path: Path) -> None:
    """Refuse a file that is no UTF-8 text.

    Raises:
        UnreadableFileError: It begins as such files do.
    """
    with path.open("rb") as stream:
        beginning = stream.read(len(max(FOREIGN, key=len)))
    found = next((what for magic, what in FOREIGN.items() if beginning.startswith(magic)), None)
    if found is not None:
        raise UnreadableFileError(f"it is {found} before it is read")


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[str]]:
    """Lines of a file with their ends, without a byte order mark; bytes that are no UTF-8 as lone surrogates.

    A carriage return alone ends a line where no line feed does, as on the first Macs; elsewhere it is a
    character like others. The codec ``utf-8-sig`` would drop the beginning of a mark at the end of a file.

    Raises:
        UnreadableFileError: It is no UTF-8 text.
    """
    refuse_foreign(path)
    with path.open("rb") as raw:
        end = "\n" if any(b"\n" in part for part in iter(lambda: raw.read(READ_BYTES), b"")) else "\r"
    with path.open(encoding="utf-8", errors="surrogateescape", newline=end) as stream:
        first = stream.readline().removeprefix("\ufeff")
        yield chain([first] if first else [], stream)
