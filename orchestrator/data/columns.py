"""From a source's rows to checked rows of the fields that a stage reads.

Works on any ``datasets.Dataset`` handed to it, without importing the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from orchestrator.data.csv_records import separator_hint
from orchestrator.data.csv_values import holds_value
from orchestrator.data.fields import Undecoded, columns_of, is_all_text, undecoded_problem
from orchestrator.data.files import nearest
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Dataset, DatasetSection, Scalar

# 1000 rows: a few MB of Python strings at a time, and far above the cost of a call.
SCAN_ROWS = 1000


@dataclass(frozen=True)
class Unsound:
    """A row that cannot be used, and why."""

    number: int
    """In the source, counted from 0."""
    problem: str
    place: str = ""
    """Where it stands, for messages; looked up for the first ones alone."""


def check_columns(name: str, dataset: DatasetSection, source: Any) -> None:
    """Refuse a source that lacks a column.

    Raises:
        DataError: Naming the key, and the columns that there are.
    """
    for column in dataset.filter:
        _require_column(name, "filter", column, source)
    select_columns(name, dataset, source)


def filter_rows(name: str, dataset: Dataset, source: Any, part: range) -> tuple[np.ndarray, list[Unsound]]:
    """Numbers of the rows of ``part`` that the filter keeps, int64 and rising, and rows it cannot judge.

    Of these a text that the filter looks at is not UTF-8, and nothing else keeps them out.

    Args:
        part: Rows of ``source``.

    Raises:
        DataError: The filter names a column that is not there.
    """
    for column in dataset.filter:
        _require_column(name, "filter", column, source)
    numbers = np.arange(part.start, part.stop, dtype=np.int64)
    if not dataset.filter or not part:
        return numbers, []
    # A saved dataset may carry a format of its own, such as torch.
    rows = source.select(part).with_format(None)
    is_same = holds_value if is_all_text(dataset) else _equal
    kept, unsound, first = [], list[Unsound](), part.start
    for batch in read_batches(rows, list(dataset.filter)):
        is_kept = _matches(batch, dataset.filter, is_same)
        for column, values in batch.items():
            for row, value in enumerate(values):
                if isinstance(value, Undecoded) and is_kept[row]:
                    is_kept[row] = False
                    unsound.append(Unsound(first + row, undecoded_problem(column, value)))
        kept.append(is_kept)
        first += len(is_kept)
    kept_numbers: np.ndarray = numbers[np.concatenate(kept)]
    return kept_numbers, unsound


def refuse_empty_filter(name: str, dataset: DatasetSection, num_rows: int, head: Any) -> NoReturn:
    """Raise ``DataError``: the filter keeps no row.

    Args:
        num_rows: Rows of the source.
        head: The first of them.
    """
    column, wanted = next(iter(dataset.filter.items()))
    values = head[column] if isinstance(head, Mapping) else next(read_batches(head, [column]))[column]
    found = sorted({repr(value) for value in values})
    raise DataError(
        f"datasets.{name}: filter {dataset.filter} keeps none of {num_rows} rows; column"
        f" '{column}' starts with values {', '.join(found[:10])}, expected {wanted!r}."
    )


def _matches(
    batch: Mapping[str, list[Any]],
    conditions: Mapping[str, Scalar | tuple[Scalar, ...]],
    is_same: Callable[[Any, Scalar], bool],
) -> np.ndarray:
    """Which rows of ``batch`` have one of the wanted values, or what is no text, in every column."""
    kept = np.ones(len(next(iter(batch.values()))), dtype=bool)
    for column, wanted in conditions.items():
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        kept &= [
            isinstance(found, Undecoded) or any(is_same(found, value) for value in values)
            for found in batch[column]
        ]
    return kept


def _equal(found: Any, value: Scalar) -> bool:
    """1 == True in Python, but a row whose value is true is not one whose value is 1."""
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)


def read_batches(rows: Any, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """``columns`` of ``rows``, ``SCAN_ROWS`` rows at a time; text that is not UTF-8 is given as ``bytes``."""
    rows = rows.select_columns(columns)
    for start in range(0, len(rows), SCAN_ROWS):
        part = slice(start, start + SCAN_ROWS)
        try:
            yield rows[part]
        except UnicodeDecodeError:
            table = rows.with_format("arrow")[part]
            yield {name: _decoded(table[name]) for name in columns}


def _decoded(column: Any) -> list[Any]:
    """Values of an Arrow column; the readers of JSON and Parquet do not check that texts are UTF-8."""
    return [value for chunk in column.chunks for value in _values(chunk)]


def _values(array: Any) -> list[Any]:
    """Values of an Arrow array; texts that are not UTF-8 as bytes, also in lists and structs.

    Level by level: casting a nested array fails where a struct has a child without a type.
    """
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind):
        return [_text_or_bytes(value) for value in array.cast(pyarrow.large_binary()).to_pylist()]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items, found, end = _values(array.flatten()), [], 0
        for length in compute.list_value_length(array).to_pylist():
            found.append(None if length is None else items[end : end + length])
            end += length or 0
        return found
    if types.is_struct(kind) and kind.num_fields:
        children = {field.name: _values(array.field(index)) for index, field in enumerate(kind)}
        rows = [dict(zip(children, row, strict=True)) for row in zip(*children.values(), strict=True)]
        return [
            row if is_there else None
            for row, is_there in zip(rows, array.is_valid().to_pylist(), strict=True)
        ]
    values: list[Any] = array.to_pylist()
    return values


def _text_or_bytes(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return Undecoded(value)


def select_columns(name: str, dataset: DatasetSection, source: Any) -> Any:
    """``source`` with the columns alone that its rows are made of, named as their fields are."""
    keys = columns_of(dataset)
    columns: dict[str, str] = {}
    for field, key in keys.items():
        column = getattr(dataset, key)
        if column in columns:
            raise DataError(
                f"datasets.{name}: {keys[columns[column]]} and {key} are both '{column}',"
                f" expected two of the columns {source.column_names}."
            )
        columns[column] = field
        _require_column(name, key, column, source)
    # A saved dataset may carry a format of its own, such as torch.
    return source.select_columns(list(columns)).rename_columns(columns).with_format(None)


def _require_column(name: str, key: str, column: str, source: Any) -> None:
    if column not in source.column_names:
        hint = separator_hint(source.column_names)
        raise DataError(
            f"datasets.{name}: {key}: there is no column '{column}'; the columns are"
            f" {source.column_names}."
            + (f" {hint[0].upper()}{hint[1:]}." if hint else nearest(column, source.column_names))
        )
