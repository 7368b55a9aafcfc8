"""Records of text, JSON and CSV files, one by one, exactly as they are written.

General readers say of a whole file that it cannot be read, take a broken quote as if it were meant, and guess
types: the text ``007`` becomes a number, a text such as ``2020-01-01`` a time. Here a file is cut into the
lines that make up each record; each is sound and has its values as they stand there, or has a problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.csv_records import csv_records
from orchestrator.data.json_records import is_list_file, json_lines, json_list
from orchestrator.data.record import Record, open_lines, undecodable


@dataclass(frozen=True)
class FileFormat:
    """How a file holds records."""

    kind: str
    """``text``, ``json`` or ``csv``."""
    delimiter: str = ","
    """Of CSV columns."""
    quoted: bool = True
    """Whether CSV fields may be in quotes."""
    sample_by: str = "line"
    """What a row of a text file is: ``line``, ``paragraph`` or ``document``."""
    field: str | None = None
    """Key of the list of records, where a JSON file is one object."""
    wanted: tuple[str, ...] = ()
    """Columns of a JSON file that somebody reads."""
    typed: tuple[str, ...] = ()
    """Those of them whose values get a type."""


def read_records(path: Path, form: FileFormat) -> Iterator[Record]:
    """All lines of a file, as the records that rows are made of.

    Raises:
        UnreadableFileError: Saying where and why.
    """
    if form.kind == "json" and (form.field is not None or is_list_file(path)):
        yield from json_list(path, form.field, form.wanted, form.typed)
        return
    with open_lines(path) as lines:
        if form.kind == "csv":
            yield from csv_records(lines, form.delimiter, quoted=form.quoted)
        elif form.kind == "json":
            yield from json_lines(lines, form.wanted, form.typed)
        else:
            yield from _texts(lines, form.sample_by)


def _texts(lines: Iterator[str], sample_by: str) -> Iterator[Record]:
    """Lines, paragraphs with the blank line that ends them, or the whole file."""
    taken: list[str] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        taken.append(line)
        if sample_by == "line" or (sample_by == "paragraph" and not line.strip("\r\n")):
            yield _text(first, taken, sample_by)
            taken, first = [], number + 1
    if taken:
        yield _text(first, taken, sample_by)


def _text(number: int, lines: list[str], sample_by: str) -> Record:
    """A row of text; ends of lines inside it are line feeds, and a line or a paragraph ends without one."""
    text = "".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    if sample_by != "document":
        text = text.rstrip("\n")
    problem = undecodable(text)
    is_row = problem is None and (bool(text) or sample_by == "line")
    return Record(f"line {number}", tuple(lines), {"text": text} if is_row else None, problem)
