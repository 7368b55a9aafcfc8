"""Label values of a dataset as ids from 0, and the names of these ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.errors import DataError

LIKE_A_VALUE = re.compile(r"[-+]?[0-9]+|true|false", re.IGNORECASE)
"""Names that a reader of CSV files makes integers or booleans of."""


def label_ids(
    where: str, values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label values into ids.

    Args:
        where: Dataset, column and split, for messages.
        values: Strings are looked up in ``names``; integers and booleans are ids already, unless all names
            look like numbers or booleans themselves: readers turn such texts into values.
        names: Label names in the order of their ids; needed for strings.
        num_labels: Size of the classifier; absent: as many as there are names or values.

    Returns:
        int64 ids, one for each value, and the names.

    Raises:
        DataError: A value has no id, or there are more labels than ``num_labels``.
    """
    if names is not None and num_labels is not None and len(names) > num_labels:
        raise DataError(
            f"{where}: {len(names)} labels {_shown(names)}, but num_labels is {num_labels}."
            f" Set num_labels: {len(names)}, or filter the rows."
        )
    values = _as_texts(values, names)
    if isinstance(values[0], str):
        return _by_name(where, values, tuple(names or ()))
    return _by_number(where, values, names, num_labels)


def outside(values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None) -> np.ndarray:
    """Which label values have no id, bool ``(values,)``; where neither argument says so, all have one.

    Args:
        values: Strings, integers or booleans; others are left to ``label_ids`` to refuse.
        names: Label names in the order of their ids.
        num_labels: Size of the classifier.
    """
    values = _as_texts(values, names)
    limit = len(names) if names is not None else num_labels
    known = None if names is None else set(names)

    def is_outside(value: Any) -> bool:
        if isinstance(value, str):
            return known is not None and value not in known
        return isinstance(value, int) and limit is not None and not 0 <= int(value) < limit

    return np.fromiter(map(is_outside, values), bool, len(values))


def _as_texts(values: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    """``values``, the integers and booleans among them as texts where the names look like such."""
    if not names or not all(LIKE_A_VALUE.fullmatch(name) for name in names):
        return values
    return [str(value) if isinstance(value, int) else value for value in values]


def _by_name(where: str, values: Sequence[Any], names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    ids = {name: label_id for label_id, name in enumerate(names)}
    for row, value in enumerate(values):
        if value not in ids:
            raise DataError(
                f"{where}: row {row} (counted from 0) has label {value!r}, expected one of"
                f" {_shown(names)}. Correct label_names, or filter the row."
            )
    return np.array([ids[value] for value in values], dtype=np.int64), names


def _by_number(
    where: str, values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if not isinstance(values[0], int):
        raise DataError(
            f"{where}: row 0 has label {values[0]!r} of type {type(values[0]).__name__}, expected"
            " an integer, a boolean or a string."
        )
    limit = len(names) if names is not None else num_labels
    limit = limit if limit is not None else max(0, *(int(value) for value in values)) + 1
    for row, value in enumerate(values):
        if not 0 <= int(value) < limit:
            given = f"label_names {_shown(names)}" if names is not None else f"num_labels {limit}"
            raise DataError(
                f"{where}: row {row} (counted from 0) has label {value!r}, expected 0 to {limit - 1}"
                f" with {given}. Raise num_labels, correct label_names, or filter the row."
            )
    found = tuple(names) if names is not None else tuple(str(number) for number in range(limit))
    return np.array(values, dtype=np.int64), found


@dataclass(frozen=True)
class LabelIds:
    """Ids of single label values, where a row has several."""

    names: tuple[str, ...]
    """In the order of their ids."""

    @classmethod
    def of(cls, where: str, names: Sequence[str] | None, num_labels: int) -> LabelIds:
        """Ids of the given names; of the numbers below ``num_labels`` without them.

        Raises:
            DataError: There are more names than ``num_labels``.
        """
        if names is not None and len(names) > num_labels:
            raise DataError(
                f"{where}: {len(names)} labels {_shown(names)}, but num_labels is {num_labels}."
                f" Set num_labels: {len(names)}, or filter the rows."
            )
        return cls(tuple(names) if names is not None else tuple(map(str, range(num_labels))))

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: label_id for label_id, name in enumerate(self.names)}

    def find(self, value: Any) -> int | None:
        """The id of a name, or of a number that is an id; ``None``: it has none."""
        if isinstance(value, str):
            return self._by_name.get(value)
        is_id = isinstance(value, int) and 0 <= value < len(self.names)
        return int(value) if is_id else None

    def id_of(self, value: Any) -> int:
        """The id of a value that has one."""
        found = self.find(value)
        assert found is not None
        return found

    def problem(self, labels: Any) -> str | None:
        """What is wrong with the labels of a row."""
        if not isinstance(labels, list):
            return f"label {labels!r}, expected a list of labels (multi_label)"
        unknown = next((label for label in labels if self.find(label) is None), None)
        return None if unknown is None and None not in labels else self.complaint(unknown)

    def complaint(self, value: Any) -> str:
        """What to say of a value without an id."""
        return f"label {value!r}, expected one of {_shown(self.names)} or their ids"


def label_sets(values: Sequence[list[Any]], ids: LabelIds) -> np.ndarray:
    """Which labels each row has, bool ``(rows, labels)``.

    Args:
        values: A list of names or ids for each row, which may be empty and has no ``problem``.
        ids: Those of all labels.
    """
    held = np.zeros((len(values), len(ids.names)), dtype=bool)
    for row, labels in enumerate(values):
        for label in labels:
            held[row, ids.id_of(label)] = True
    return held


def number_problem(value: Any, num_values: int) -> str | None:
    """What is wrong with the number of a row, or with its list of ``num_values`` numbers (regression)."""
    given = value if isinstance(value, list) else [value]
    are_numbers = all(isinstance(number, int | float) for number in given)
    if len(given) == num_values and are_numbers and np.isfinite(np.array(given, dtype=np.float64)).all():
        return None
    wanted = "a finite number" if num_values == 1 else f"a list of {num_values} finite numbers"
    return f"label {value!r}, expected {wanted} (regression)"


def _shown(names: Sequence[str]) -> str:
    """At most ten of ``names``."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}{', ...' if len(names) > 10 else ''}]"
