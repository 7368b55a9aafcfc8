"""From a source's rows to checked rows of text and label.

Works on any ``datasets.Dataset`` handed to it, without importing the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from orchestrator.data.files import nearest
from orchestrator.data.selection import hash_texts, needs_hashes
from orchestrator.errors import DataError
from orchestrator.spec.datasets import DatasetSection, Scalar

# 1000 rows: a few MB of Python strings at a time, and far above the cost of a call.
SCAN_ROWS = 1000


def filter_rows(name: str, dataset: DatasetSection, source: Any) -> tuple[Any, np.ndarray]:
    """The rows that the filter keeps, and the number of each in the source."""
    numbers = np.arange(len(source), dtype=np.int64)
    for column in dataset.filter:
        _require_column(name, "filter", column, source)
    if not dataset.filter:
        return source, numbers
    kept = [_matches(batch, dataset.filter) for batch in _batches(source, list(dataset.filter))]
    numbers = np.flatnonzero(np.concatenate(kept))
    if len(numbers) == 0:
        column, wanted = next(iter(dataset.filter.items()))
        found = sorted({repr(value) for value in source.select(range(min(len(source), SCAN_ROWS)))[column]})
        raise DataError(
            f"datasets.{name}: filter {dataset.filter} keeps none of {len(source)} rows; column"
            f" '{column}' starts with values {', '.join(found[:10])}, expected {wanted!r}."
        )
    return source.select(numbers), numbers


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
    """``source`` with its text and label columns alone, renamed."""
    columns = {dataset.text_column: "text"}
    if dataset.label_column == dataset.text_column:
        raise DataError(
            f"datasets.{name}: text_column and label_column are both '{dataset.text_column}',"
            f" expected two of the columns {source.column_names}."
        )
    if dataset.label_column is not None:
        columns[dataset.label_column] = "label"
    for key, column in zip(("text_column", "label_column"), columns, strict=False):
        _require_column(name, key, column, source)
    # A saved dataset may carry a format of its own, such as torch.
    return source.select_columns(list(columns)).rename_columns(columns).with_format(None)


def _require_column(name: str, key: str, column: str, source: Any) -> None:
    if column not in source.column_names:
        raise DataError(
            f"datasets.{name}: {key}: there is no column '{column}'; the columns are"
            f" {source.column_names}.{nearest(column, source.column_names)}"
        )


def check_rows(name: str, dataset: DatasetSection, rows: Any, numbers: np.ndarray) -> np.ndarray:
    """Check every text and label; hash the texts where the split needs it."""
    hash_batch: Callable[[list[str]], np.ndarray] = (
        hash_texts if needs_hashes(dataset) else lambda texts: np.empty((0, 2), np.uint64)
    )
    hashes = []
    first = 0
    for batch in _batches(rows, rows.column_names):
        texts = batch["text"]
        bad = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if bad is not None:
            raise DataError(
                f"datasets.{name}: row {numbers[first + bad]} (counted from 0): column"
                f" '{dataset.text_column}' holds"
                f" {texts[bad]!r}, expected a string. Correct or filter the row."
            )
        unlabelled = next((i for i, label in enumerate(batch.get("label", ())) if label in (None, "")), None)
        if unlabelled is not None:
            row = numbers[first + unlabelled]
            raise DataError(
                f"datasets.{name}: row {row} (counted from 0): column '{dataset.label_column}'"
                " holds no label. Correct or filter the row."
            )
        hashes.append(hash_batch(texts))
        first += len(texts)
    return np.concatenate(hashes)
