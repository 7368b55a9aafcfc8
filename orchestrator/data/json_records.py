"""Records of JSON files: a line each, or all in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.record import Record, UnreadableFileError, repeated, undecodable


def is_list_file(path: Path) -> bool:
    """Whether a file holds one list or one object, over several lines or none but the first."""
    with path.open("rb") as stream:
        lines = (line.removeprefix(b"\xef\xbb\xbf").strip() for line in stream)
        first, second, third = [*islice((line for line in lines if line), 3), b"", b"", b""][:3]
    if not first.startswith(b"{") or not first.endswith((b"{", b"[", b",")):
        return first.startswith(b"[")
    # Of lines with an object each, the first may be cut off anywhere; what follows is no part of it then.
    if first.endswith(b"["):
        return not (second.startswith(b"{") and second.endswith(b"}") and third.startswith(b"{"))
    return not second.startswith(b"{")


def json_lines(lines: Iterator[str], typed: Sequence[str]) -> Iterator[Record]:
    """An object on each line, whose numbers fit into the ``typed`` columns."""
    for number, line in enumerate(lines, start=1):
        problem, values = _json_object(line, typed) if line.strip() else (None, None)
        yield Record(f"line {number}", (line,), values, problem)


def _json_object(line: str, typed: Sequence[str]) -> tuple[str | None, dict[str, Any] | None]:
    """The problem of a line, or the object it holds."""
    problem = undecodable(line)
    if problem is not None:
        return problem, None
    try:
        record = _load_json(line)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} (character {error.pos + 1})", None
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}", None
    if not isinstance(record, dict):
        return f"holds {line.strip()[:40]}, expected an object", None
    problem = undecodable(json.dumps(record, ensure_ascii=False)) if "\\u" in line else None
    problem = problem or _wide_number(record, typed)
    return problem, record if problem is None else None


def json_list(path: Path, field: str | None, typed: Sequence[str]) -> Iterator[Record]:
    """Records of a file that holds one list, or one object with a list for each column.

    Raises:
        UnreadableFileError: It holds something else.
    """
    try:
        found = _load_json(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UnreadableFileError(
            f"line {error.lineno}: no JSON: {error.msg} (character {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"no JSON: {error}") from error
    if field is not None:
        if not isinstance(found, dict) or field not in found:
            keys = f"an object with keys {sorted(found)[:10]}" if isinstance(found, dict) else "no object"
            raise UnreadableFileError(f"holds {keys}, expected one with the key '{field}' (field)")
        found = found[field]
    if isinstance(found, dict):
        found = _json_columns(found)
    if not isinstance(found, list):
        raise UnreadableFileError(f"holds {str(found)[:40]!r}, expected a list of records")
    for number, record in enumerate(found, start=1):
        values = {"text": record} if isinstance(record, str) else record
        if not isinstance(values, dict):
            yield Record(f"record {number}", (), problem=f"holds {str(record)[:40]}, expected an object")
            continue
        problem = undecodable(json.dumps(values, ensure_ascii=False)) or _wide_number(values, typed)
        yield Record(f"record {number}", (), values if problem is None else None, problem)


def _wide_number(values: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """What is wrong with a record that holds a whole number too large for a column."""
    for column in columns:
        if column in values and (number := _widest(values[column])) is not None:
            return f"column '{column}' holds the whole number {number}, expected one of at most 64 bits"
    return None


def _widest(value: Any) -> int | None:
    """A whole number of more than 64 bits somewhere in a JSON value."""
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _widest(item)) is not None), None)
    return None


def _json_columns(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object with a list for each column.

    Raises:
        UnreadableFileError: It is none.
    """
    lengths = {len(column) if isinstance(column, list) else None for column in found.values()}
    if len(lengths) != 1 or None in lengths:
        raise UnreadableFileError(
            f"holds one object with keys {sorted(found)[:10]}, expected lines with an object each, or a list"
            " of objects (set field, if one of the keys has it)"
        )
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {repeated(names)!r} is there twice")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
