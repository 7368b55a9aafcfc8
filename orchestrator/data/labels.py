"""Label values of a dataset as ids from 0, and the names of these ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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

    def complaint(self, value: Any) -> str:
        """What to say of a value without an id."""
        return f"label {value!r}, expected one of {_shown(self.names)} or their ids"


def label_sets(values: Sequence[Any], ids: LabelIds, place_of: Callable[[int], str]) -> np.ndarray:
    """Which labels each row has, bool ``(rows, labels)``.

    Args:
        values: A list of names or ids for each row, which may be empty.
        place_of: Names a row by its place in ``values``, for messages.

    Raises:
        DataError: A row holds no list, or a label that has no id.
    """
    held = np.zeros((len(values), len(ids.names)), dtype=bool)
    for row, labels in enumerate(values):
        if not isinstance(labels, list):
            raise DataError(f"{place_of(row)}: label {labels!r}, expected a list of labels (multi_label).")
        for label in labels:
            found = ids.find(label)
            if found is None:
                raise DataError(
                    f"{place_of(row)}: {ids.complaint(label)}. Correct label_names, or filter the row."
                )
            held[row, found] = True
    return held


def label_numbers(values: Sequence[Any], num_values: int, place_of: Callable[[int], str]) -> np.ndarray:
    """The numbers of each row, float32 ``(rows, num_values)``.

    Args:
        values: A number for each row, or a list of ``num_values``.
        place_of: Names a row by its place in ``values``, for messages.

    Raises:
        DataError: A row holds something else, another number of numbers, or one that is not finite.
    """
    numbers = np.empty((len(values), num_values), dtype=np.float32)
    for row, value in enumerate(values):
        given = value if isinstance(value, list) else [value]
        are_numbers = all(isinstance(number, int | float) for number in given)
        if len(given) != num_values or not are_numbers or not np.isfinite(given).all():
            wanted = "a finite number" if num_values == 1 else f"a list of {num_values} finite numbers"
            raise DataError(
                f"{place_of(row)}: label {value!r}, expected {wanted} (regression). Set num_values, correct"
                " or filter the row."
            )
        numbers[row] = given
    return numbers


def _shown(names: Sequence[str]) -> str:
    """At most ten of ``names``."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}{', ...' if len(names) > 10 else ''}]"
