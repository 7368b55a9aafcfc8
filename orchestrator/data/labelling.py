"""The labels of a split's rows, and the names of a classifier's outputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.labels import LabelIds, label_ids, label_numbers, label_sets, outside
from orchestrator.data.rows import Rows, distinct_labels
from orchestrator.data.selection import Split
from orchestrator.data.sources import Source
from orchestrator.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """Labels as labels.npy holds them."""

    values: np.ndarray | None
    """One line for each row; absent where rows have none, or where each word has its own."""
    names: tuple[str, ...]
    """Of the classifier's outputs."""


NO_LABELS = Labels(None, ())


def find_labels(
    rows: Rows,
    opened: Any,
    split: Split,
    layout: RowLayout,
    given: Sequence[str] | None,
    num_labels: int | None,
) -> tuple[Rows, Labels]:
    """Labels of ``rows`` as the layout wants them, and the rows that have one of the set.

    Args:
        opened: A ``datasets.Dataset`` with the label of each row, beside other fields or alone.
        given: Names in the order of their ids; absent: the section's, the source's own, or the sorted
            values found in all splits.
        num_labels: Outputs of the classifier; absent: as many as there are names or values.

    Raises:
        DataError: A label is not what the layout wants, has no id, or there are too many.
    """
    source = rows.source
    where = f"datasets.{source.name}: column '{source.dataset.label_column}', split '{split}'"
    if layout.document == "text" and layout.labels == "class":
        names = given or _names(source, opened)
        rows, inside = _inside(rows, where, opened["label"][:], names, num_labels)
        return rows, Labels(*label_ids(where, inside, names, num_labels))

    def place_of(row: int) -> str:
        return f"{where}: {source.place_of(int(rows.numbers[row]))}"

    if layout.labels == "numbers":
        num_values = num_labels or 1
        names = given or source.dataset.label_names or _value_names(source, num_values)
        return rows, Labels(label_numbers(opened["label"][:], num_values, place_of), tuple(names))
    names = given or _names(source, opened)
    if num_labels is None:
        num_labels = len(names) if names is not None else _most(opened["label"][:])
    ids = LabelIds.of(where, names, num_labels)
    values = None if layout.document == "words" else label_sets(opened["label"][:], ids, place_of)
    return rows, Labels(values, ids.names)


def _inside(
    rows: Rows, where: str, values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None
) -> tuple[Rows, list[Any]]:
    """Rows whose label is one of the set, with their labels.

    Raises:
        DataError: A label is outside the set and not to be skipped, or all are.
    """
    source = rows.source
    is_outside = outside(values, names, num_labels)
    if not is_outside.any():
        return rows, list(values)
    first = int(np.argmax(is_outside))
    place = source.place_of(int(rows.numbers[first]))
    problem = f"label {values[first]!r}, expected {_set_text(values[first], names, num_labels)}"
    if source.dataset.on_bad_row == "error" or is_outside.all():
        raise DataError(
            f"{where}: {place}: {problem}. Correct label_names or num_labels, filter the row, or set"
            " on_bad_row: skip."
        )
    log.warning(
        "%s: %d of %d rows are skipped, first %s: %s",
        *(where, np.count_nonzero(is_outside), len(values), place, problem),
    )
    kept = [value for value, is_bad in zip(values, is_outside, strict=True) if not is_bad]
    return replace(rows, numbers=rows.numbers[~is_outside]), kept


def _set_text(label: Any, names: Sequence[str] | None, num_labels: int | None) -> str:
    """Labels that have an id, for messages."""
    if isinstance(label, str):
        return f"one of {list(names or ())[:10]}"
    if names is not None:
        return f"0 to {len(names) - 1} with label_names {list(names)[:10]}"
    return f"0 to {(num_labels or 1) - 1} with num_labels {num_labels}"


def _names(source: Source, rows: Any) -> Sequence[str] | None:
    """The section's names, the source's own or its strings; ``None`` for plain numbers."""
    feature = rows.features["label"]
    is_list = hasattr(feature, "feature")
    own: Sequence[str] | None = getattr(feature.feature if is_list else feature, "names", None)
    if source.dataset.label_names is not None or own is not None:
        return source.dataset.label_names or own
    return distinct_labels(source) if holds_text(feature) else None


def holds_text(feature: Any) -> bool:
    """Whether a column of this ``datasets`` feature holds strings, or lists of them."""
    dtype = getattr(getattr(feature, "feature", feature), "dtype", "")
    return str(dtype) in ("string", "large_string")


def _value_names(source: Source, num_values: int) -> tuple[str, ...]:
    """Names of a row's numbers: the column's, numbered where there are several."""
    column = str(source.dataset.label_column)
    return (column,) if num_values == 1 else tuple(f"{column}_{number}" for number in range(num_values))


def _most(lists: Sequence[Any]) -> int:
    """One more than the highest id in some lists; 1 without any."""
    ids = [label for labels in lists if isinstance(labels, list) for label in labels]
    return max((int(label) for label in ids if isinstance(label, int)), default=0) + 1
