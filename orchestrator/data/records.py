"""Lines of text, JSON Lines and CSV files that cannot be read, found one by one.

The library's readers say of a whole file that it cannot be read, and some of them read a broken quote as if
it were meant: two rows become one. Here a file is cut into the lines that make up each row; each piece is
sound or has a problem, and a copy without the latter can be written. Bytes of sound rows are not touched.

After a quote that is not closed, or that closes too early, reading goes on at the line after the one where
its record began. Where a field in quotes has several lines, these are then looked at as rows of their own.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A field of 268 million characters is taken for a quote that is not closed; csv would keep the rest of any
# file in memory.
MAX_FIELD_CHARS = 1 << 28
SEPARATORS = ";\t|"


@dataclass(frozen=True)
class LineFormat:
    """How lines make rows."""

    kind: str
    """``text``, ``json`` or ``csv``."""
    delimiter: str = ","
    """Of CSV columns."""
    sample_by: str = "line"
    """What a row of a text file is: ``line``, ``paragraph`` or ``document``."""


@dataclass(frozen=True)
class Piece:
    """The lines of one row, or of none where they are blank."""

    number: int
    """Of its first line, counted from 1."""
    lines: tuple[str, ...]
    """With their ends; bytes that are not UTF-8 as lone surrogates."""
    problem: str | None = None
    is_header: bool = False
    """Whether the others cannot be read without it."""


@dataclass(frozen=True)
class BadLine:
    """Where a row that cannot be read begins, and why."""

    number: int
    """Counted from 1."""
    problem: str
    is_header: bool = False


def bad_lines(path: Path, form: LineFormat) -> Iterator[BadLine]:
    """Where rows of a file begin that cannot be read."""
    for piece in read_pieces(path, form):
        if piece.problem is not None:
            yield BadLine(piece.number, piece.problem, piece.is_header)


def copy_sound(path: Path, target: Path, form: LineFormat) -> None:
    """Write the sound rows of a file to ``target``, byte by byte as they are."""
    with target.open("w", encoding="utf-8", newline="") as copy:
        for piece in read_pieces(path, form):
            if piece.problem is None:
                copy.writelines(piece.lines)


def is_line_based(path: Path, form: LineFormat) -> bool:
    """Whether lines make rows: not in a JSON file that holds one list or one object."""
    if form.kind != "json":
        return True
    with path.open("rb") as stream:
        first = stream.readline().removeprefix(b"\xef\xbb\xbf").strip()
    # An object in one line stays an object if the rest is cut off.
    return first.startswith(b"{") and not first.endswith((b"{", b"[", b","))


def read_pieces(path: Path, form: LineFormat) -> Iterator[Piece]:
    """All lines of a file, as the pieces that rows are made of."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        if form.kind == "csv":
            yield from _csv_records(stream, form.delimiter)
        elif form.kind == "json":
            yield from _json_lines(stream)
        else:
            yield from _texts(stream, form.sample_by)


def _undecodable(text: str) -> str | None:
    """The problem of text whose bytes are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        shown = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the surrogate {code:#06x}"
        return f"{shown} after {error.start} characters is not UTF-8"
    return None


def _texts(lines: Iterator[str], sample_by: str) -> Iterator[Piece]:
    """Lines, paragraphs with the blank line that ends them, or the whole file."""
    taken: list[str] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        taken.append(line)
        if sample_by == "line" or (sample_by == "paragraph" and not line.strip("\r\n")):
            yield Piece(first, tuple(taken), _undecodable("".join(taken)))
            taken, first = [], number + 1
    if taken:
        yield Piece(first, tuple(taken), _undecodable("".join(taken)))


def _json_lines(lines: Iterator[str]) -> Iterator[Piece]:
    for number, line in enumerate(lines, start=1):
        yield Piece(number, (line,), _json_problem(line) if line.strip() else None)


def _json_problem(line: str) -> str | None:
    problem = _undecodable(line)
    if problem is not None:
        return problem
    try:
        record = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} (character {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(record, dict):
        return f"holds {line.strip()[:40]}, expected an object"
    return _undecodable(json.dumps(record, ensure_ascii=False)) if "\\u" in line else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _csv_records(lines: Iterator[str], delimiter: str) -> Iterator[Piece]:
    """Records of a CSV file; each must have the fields of the header, with quotes as RFC 4180 wants them."""
    waiting: deque[str] = deque()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        while True:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield line

    limit = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        reader = csv.reader(feed(), delimiter=delimiter, strict=True)
        number, header = 1, list[str]()
        while True:
            taken.clear()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # What the broken quote has swallowed is read again.
                waiting.extendleft(reversed(taken[1:]))
                del taken[1:]
                problem: str | None = f"a quote is not closed, or is not doubled inside a field ({error})"
                reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            else:
                problem = _record_problem(fields, header, taken)
            is_header = not header and (problem is not None or bool(fields))
            yield Piece(number, tuple(taken), problem, is_header)
            if is_header:
                if problem is not None:
                    return
                header = fields
            number += len(taken)
    finally:
        csv.field_size_limit(limit)


def _record_problem(fields: list[str], header: list[str], lines: list[str]) -> str | None:
    """Why a record is not sound; one without fields is a blank line, and no header yet means it is that."""
    if fields and header and len(fields) != len(header):
        return f"{len(fields)} {'field' if len(fields) == 1 else 'fields'}, {_expected(header)}"
    return None if "".join(lines).isascii() else _undecodable("".join(lines))


def _expected(header: list[str]) -> str:
    """The header's fields, and what separates them if it seems to be something else."""
    hint = separator_hint(header)
    return f"expected {len(header)} as in the header" + (f" ({hint})" if hint else "")


def separator_hint(columns: list[str]) -> str | None:
    """What to set where a header of one column holds a usual separator; ``None`` elsewhere."""
    if len(columns) != 1:
        return None
    found = next((mark for mark in SEPARATORS if mark in columns[0]), None)
    return None if found is None else f"if {found!r} separates columns, set delimiter: {json.dumps(found)}"
