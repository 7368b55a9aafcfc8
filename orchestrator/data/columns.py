"""From a source's rows to checked rows of the fields that a stage reads.

Works on any ``datasets.Dataset`` handed to it, without importing the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from orchestrator.data.fields import columns_of, identities, problems
from orchestrator.data.files import nearest
from orchestrator.data.selection import hash_texts
from orchestrator.errors import DataError
from orchestrator.spec.datasets import DatasetSection, Scalar

# 1000 rows: a few MB of Python strings at a time, and far above the cost of a call.
SCAN_ROWS = 1000


def check_columns(name: str, dataset: DatasetSection, source: Any) -> None:
    """Refuse a source that lacks a column.

    Raises:
        DataError: Naming the key, and the columns that there are.
    """
    for column in dataset.filter:
        _require_column(name, "filter", column, source)
    select_columns(name, dataset, source)


def filter_rows(name: str, dataset: DatasetSection, source: Any, part: Sequence[int]) -> np.ndarray:
    """Numbers of the rows of ``part`` that the filter keeps, int64 and rising.

    Args:
        part: Consecutive rows of ``source``.

    Raises:
        DataError: The filter names a column that is not there.
    """
    for column in dataset.filter:
        _require_column(name, "filter", column, source)
    numbers = np.arange(part[0], part[-1] + 1, dtype=np.int64)
    if not dataset.filter:
        return numbers
    rows = source.select(part)
    kept = [_matches(batch, dataset.filter) for batch in _batches(rows, list(dataset.filter))]
    kept_numbers: np.ndarray = numbers[np.concatenate(kept)]
    return kept_numbers


def refuse_empty_filter(name: str, dataset: DatasetSection, source: Any) -> NoReturn:
    """Raise ``DataError``: the filter keeps no row."""
    column, wanted = next(iter(dataset.filter.items()))
    found = sorted({repr(value) for value in source.select(range(min(len(source), SCAN_ROWS)))[column]})
    raise DataError(
        f"datasets.{name}: filter {dataset.filter} keeps none of {len(source)} rows; column"
        f" '{column}' starts with values {', '.join(found[:10])}, expected {wanted!r}."
    )


def _matches(
    batch: Mapping[str, list[Any]], conditions: Mapping[str, Scalar | tuple[Scalar, ...]]
) -> np.ndarray:
    """Which rows of ``batch`` have one of the wanted values in every column."""
    kept = np.ones(len(next(iter(batch.values()))), dtype=bool)
    for column, wanted in conditions.items():
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        # 1 == True in Python, but a row whose value is true is not one whose value is 1.
        kept &= [
            any(isinstance(found, bool) == isinstance(value, bool) and found == value for value in values)
            for found in batch[column]
        ]
    return kept


def _batches(source: Any, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """``columns`` of ``source`` as Python values, ``SCAN_ROWS`` rows at a time."""
    yield from source.select_columns(columns).with_format(None).iter(SCAN_ROWS)


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
        raise DataError(
            f"datasets.{name}: {key}: there is no column '{column}'; the columns are"
            f" {source.column_names}.{nearest(column, source.column_names)}"
        )


@dataclass(frozen=True)
class Unsound:
    """A row that cannot be used, and why."""

    number: int
    """In the source, counted from 0."""
    problem: str


def unsound_rows(dataset: DatasetSection, rows: Any, numbers: np.ndarray) -> Iterator[Unsound]:
    """Rows with a field of the wrong kind, or without a label.

    Args:
        rows: As ``select_columns`` returns them.
        numbers: Their numbers in the source.
    """
    first = 0
    for batch in _batches(rows, rows.column_names):
        found = list(problems(dataset, batch))
        for number, problem in zip(numbers[first:], found, strict=False):
            if problem is not None:
                yield Unsound(int(number), problem)
        first += len(found)


def hash_rows(rows: Any) -> np.ndarray:
    """Hashes of the texts of ``rows``, uint64 ``(rows, 2)``; labels do not count."""
    fields = [field for field in rows.column_names if field != "label"]
    hashes = [hash_texts(identities(batch)) for batch in _batches(rows, fields)]
    return np.concatenate([np.empty((0, 2), np.uint64), *hashes])
