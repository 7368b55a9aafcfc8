"""Records of JSON files: a line each, or all in one list.

A file that is one list is read value by value (``json_text.py``), so that what is wrong with one record, but
not with the syntax of the file, is wrong with that record alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from orchestrator.data.json_text import DECODER, JSONText
from orchestrator.data.record import Record, UnreadableFileError, refuse_foreign, repeated, undecodable

# Of lines with an object each, the first few may be cut off; as many in a row as this are one object.
HEAD_LINES = 8


def is_list_file(path: Path) -> bool:
    """Whether a file holds one list, or one object over several lines, and not a record on each line.

    One list: its first line begins with ``[``, and is not a whole list that other lines follow.
    One object: its first line begins with ``{`` and is not a whole object, and the first lines together are:
    they hold it, or nothing in them is no part of one.
    """
    with path.open("rb") as stream:
        beginning = stream.read(3)
        stream.seek(3 if beginning == b"\xef\xbb\xbf" else 0)
        lines = (line for line in map(bytes.strip, stream) if line)
        first = next(lines, b"")
        if first.startswith(b"["):
            return next(lines, None) is None or _state([first]) != "whole"
        if not first.startswith(b"{") or _state([first]) != "begun":
            return False
        head = [first, *islice(lines, HEAD_LINES - 1)]
        return _state(head) in (("whole", "begun") if len(head) == HEAD_LINES else ("whole",))


def _state(lines: list[bytes]) -> Literal["whole", "begun", "broken"]:
    """Whether lines are a JSON value, or may be the beginning of one, or neither."""
    text = b"\n".join(lines).decode("utf-8", "surrogateescape")
    try:
        # Numbers of any length are numbers.
        json.loads(text, parse_int=str)
    except json.JSONDecodeError as error:
        return "begun" if error.pos >= len(text) else "broken"
    except RecursionError:
        return "broken"
    return "whole"


def json_lines(lines: Iterator[str], wanted: Sequence[str], typed: Sequence[str]) -> Iterator[Record]:
    """An object on each line.

    Args:
        wanted: Columns whose texts must be UTF-8; of others nobody reads more than that they are JSON.
        typed: Those of them whose numbers must fit into a column.
    """
    for number, line in enumerate(lines, start=1):
        problem, values = _json_object(line, wanted, typed) if line.strip() else (None, None)
        yield Record(f"line {number}", (line,), values, problem)


def _json_object(
    line: str, wanted: Sequence[str], typed: Sequence[str]
) -> tuple[str | None, dict[str, Any] | None]:
    """The problem of a line, or the object it holds."""
    problem = undecodable(line)
    if problem is not None:
        return problem, None
    try:
        record = DECODER.decode(line)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} (character {error.pos + 1})", None
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}", None
    if not isinstance(record, dict):
        return f"holds {_shown(record)}, expected an object", None
    problem = _record_problem(record, wanted, typed, is_escaped="\\u" in line)
    return problem, record if problem is None else None


def json_list(path: Path, field: str | None, wanted: Sequence[str], typed: Sequence[str]) -> Iterator[Record]:
    """Records of a file that holds one list, or one object with a list for each column; none of a blank file.

    Args:
        field: Key of the list or object of lists, where it is in an object.
        wanted: As of ``json_lines``.
        typed: As of ``json_lines``.

    Raises:
        UnreadableFileError: It holds something else, or no JSON.
    """
    refuse_foreign(path)
    text = JSONText(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    is_escaped = "\\u" in text.text
    try:
        for number, (line, record, problem) in enumerate(_whole_file(text, field), start=1):
            place = f"record {number}" + (f" (line {line})" if line else "")
            values = {"text": record} if isinstance(record, str) else record
            if problem is None and not isinstance(values, dict):
                problem = f"holds {_shown(record)}, expected an object"
            problem = problem or _record_problem(values, wanted, typed, is_escaped=is_escaped)
            yield Record(place, (), values if problem is None else None, problem)
    except json.JSONDecodeError as error:
        raise UnreadableFileError(
            f"line {error.lineno}: no JSON: {error.msg} (character {error.colno})"
        ) from error


Found = tuple[int | None, Any, str | None]
"""The line of a record, where it is known; the record; or what is wrong with it."""


def _whole_file(text: JSONText, field: str | None) -> Iterator[Found]:
    if not text.peek():
        return
    if field is None:
        yield from _records(text)
    else:
        yield from _records_of(text, field)
    if text.peek():
        raise text.error("Extra data")


def _records_of(text: JSONText, field: str) -> Iterator[Found]:
    """Records of the list that an object has under a key.

    Raises:
        UnreadableFileError: It has none, or two.
    """
    if text.peek() != "{":
        text.value()
        raise UnreadableFileError(f"holds no object, expected one with the key '{field}' (field)")
    names = []
    for name in text.members():
        names.append(name)
        if names.count(field) > 1:
            raise UnreadableFileError(f"no JSON: the key '{field}' is there twice")
        if name == field:
            yield from _records(text)
        else:
            text.value()
    if field not in names:
        raise UnreadableFileError(
            f"holds an object with keys {sorted(names)[:10]}, expected one with the key '{field}' (field)"
        )


def _records(text: JSONText) -> Iterator[Found]:
    """Records of one list, or of one object with a list for each column.

    Raises:
        UnreadableFileError: It is neither.
    """
    begins = text.peek()
    if begins == "[":
        for _ in text.parts("[", "]"):
            line = text.line()
            yield (line, *text.value())
    elif begins == "{":
        yield from _rows_of_columns(text)
    else:
        value, problem = text.value()
        raise UnreadableFileError(problem or f"holds {_shown(value)}, expected a list of records")


def _rows_of_columns(text: JSONText) -> Iterator[Found]:
    """Rows of an object with a list for each column.

    Raises:
        UnreadableFileError: It is none.
    """
    columns: list[list[tuple[Any, str | None]]] = []
    names, are_lists = [], True
    for name in text.members():
        names.append(name)
        if text.peek() == "[":
            columns.append([text.value() for _ in text.parts("[", "]")])
        else:
            are_lists = False
            text.value()
    if (twice := repeated(names)) is not None:
        raise UnreadableFileError(f"no JSON: the key {twice!r} is there twice")
    if not are_lists or len({len(column) for column in columns}) != 1:
        raise UnreadableFileError(
            f"holds one object with keys {sorted(names)[:10]}, expected lines with an object each, or a list"
            " of objects (set field, if one of the keys has it)"
        )
    for row in zip(*columns, strict=True):
        problem = next((problem for _, problem in row if problem is not None), None)
        yield None, dict(zip(names, (value for value, _ in row), strict=True)), problem


def _shown(value: Any) -> str:
    """A value for messages."""
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "a value that is nested too deeply"


def _record_problem(
    record: Mapping[str, Any], wanted: Sequence[str], typed: Sequence[str], *, is_escaped: bool
) -> str | None:
    """What is wrong with the columns of a record that somebody reads.

    Args:
        is_escaped: Whether a text of it may be written with escapes, half a character of which is no UTF-8.
    """
    try:
        if is_escaped:
            read = {name: record[name] if name in wanted else None for name in record}
            if (problem := undecodable(json.dumps(read, ensure_ascii=False))) is not None:
                return problem
        for column in typed:
            if column in record and (number := _unfit(record[column])) is not None:
                return f"column '{column}' holds {number}"
    except RecursionError as error:
        return f"no JSON: {error}"
    return None


def _unfit(value: Any) -> str | None:
    """A number somewhere in a JSON value that no column can hold, and what was expected."""
    if isinstance(value, int):
        is_wide = not -(2**63) <= value < 2**64
        return f"the whole number {value}, expected one of at most 64 bits" if is_wide else None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{json.dumps(value)}, expected a number that JSON has"
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _unfit(item)) is not None), None)
    return None
