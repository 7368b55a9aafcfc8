"""Records of CSV files; all values are texts.

Nobody can tell where a quote should have ended that is not meant as one. So where a quote is not closed, or
closes too early, or a record of several lines has another number of fields than the header, its first line
alone is bad, and reading goes on at the line after it.

What is promised: every line begins a record, unless it is in the record of an earlier line that has the
number of fields of the header. So a sound row comes out once and as it stands there, whatever quotes are
stray in lines before it, and each bad line is told by its number.

What cannot be promised: a stray quote that takes in the lines up to another one, and so happens to give the
right number of fields, is not to be told from a field of several lines; all of it is one row. And where such
a field stands in a bad record, its lines are looked at as records of their own, and may be taken for rows.

A line is read again for each line before it that leaves a quote open beyond it: mostly one. Where all n lines
do, and take each other's quotes for their own, that is n^2 / 2 lines: 1.1 s for 4,000 short ones.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.record import Record, UnreadableFileError, open_lines, repeated, undecodable

# A field of 268 million characters is taken for a quote that is not closed; csv would keep the rest of any
# file in memory.
MAX_FIELD_CHARS = 1 << 28
SEPARATORS = ";\t|"
# Stands for a carriage return inside a line, which csv refuses in a field without quotes though pandas writes
# it there: half a character, and no byte that is not UTF-8 becomes this one.
LONE_RETURN = "\udc0d"


def read_header(path: Path, delimiter: str, *, quoted: bool) -> list[str]:
    """Columns of a CSV file; none of one without a line.

    Raises:
        UnreadableFileError: Saying where and why.
    """
    with open_lines(path) as lines:
        for record in csv_records(lines, delimiter, quoted=quoted, header_alone=True):
            if record.values is not None:
                return list(record.values)
    return []


def csv_records(
    lines: Iterator[str], delimiter: str, *, quoted: bool, header_alone: bool = False
) -> Iterator[Record]:
    """Records of a CSV file; each must have the fields of the header, with quotes as RFC 4180 wants them.

    Args:
        quoted: Whether fields may be in quotes; otherwise a quote is a character as others are.
        header_alone: Give the header as a record whose values are its columns, and nothing after it.

    Raises:
        UnreadableFileError: The header cannot be read.
    """
    source = _Lines(lines)
    taken = source.taken

    def make_reader() -> Iterator[list[str]]:
        if quoted:
            return map(_restored, csv.reader(source, delimiter=delimiter, strict=True))
        return map(_restored, csv.reader(source, delimiter=delimiter, quoting=csv.QUOTE_NONE))

    limit = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        reader = make_reader()
        number, header = 1, list[str]()
        while True:
            taken.clear()
            fields: list[str] = []
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                source.give_back()
                problem: str | None = f"a quote is not closed, or is not doubled inside a field ({error})"
                reader = make_reader()
            else:
                problem = _record_problem(fields, header, taken, number)
                if header and len(fields) != len(header):
                    source.give_back()
            values = None
            if header:
                values = dict(zip(header, fields, strict=True)) if fields and not problem else None
            elif fields or problem:
                header = _columns(number, fields, problem)
                if header_alone:
                    yield Record(f"line {number}", tuple(taken), dict.fromkeys(header))
                    return
            yield Record(f"line {number}", tuple(taken), values, problem)
            number += len(taken)
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """Lines of a file, of which those of a bad record are given back to be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        """Before the first line."""
        self._lines = lines
        self._waiting: deque[str] = deque()
        self.taken: list[str] = []
        """Lines of the record."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append(line)
        if "\r" not in line:
            return line
        inside = line.rstrip("\r\n")
        return inside.replace("\r", LONE_RETURN) + line[len(inside) :]

    def give_back(self) -> None:
        """Keep the first line of the record alone."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _restored(fields: list[str]) -> list[str]:
    return [field.replace(LONE_RETURN, "\r") for field in fields]


def _columns(number: int, fields: list[str], problem: str | None) -> list[str]:
    """Columns of a header; those without a name get one by their place, as pandas gives them.

    Raises:
        UnreadableFileError: The header has a problem.
    """
    columns = [name or f"Unnamed: {place}" for place, name in enumerate(fields)]
    twice = repeated(columns)
    if problem is None and twice is not None:
        problem = f"the header has the column {twice!r} twice"
    if problem is not None:
        raise UnreadableFileError(f"line {number}: {problem}")
    return columns


def _record_problem(fields: list[str], header: list[str], lines: list[str], number: int) -> str | None:
    """Why a record is not sound; one without fields is a blank line, and no header yet means it is that.

    Args:
        number: Of its first line.
    """
    if fields and header and len(fields) != len(header):
        count = f"{len(fields)} {'field' if len(fields) == 1 else 'fields'}"
        end = f" up to line {number + len(lines) - 1}, where a quote is closed" if len(lines) > 1 else ""
        return f"{count}{end}, {_expected(header)}"
    return undecodable("".join(lines))


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
