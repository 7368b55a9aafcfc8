"""Label values of a dataset as ids from 0, and the names of these ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.errors import DataError


def label_ids(
    where: str, values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label values into ids.

    Args:
        where: Dataset, column and split, for messages.
        values: Integers and booleans are ids already; strings are looked up in ``names``.
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
    limit = len(names) if names is not None else num_labels
    known = None if names is None else set(names)

    def is_outside(value: Any) -> bool:
        if isinstance(value, str):
            return known is not None and value not in known
        return isinstance(value, int) and limit is not None and not 0 <= int(value) < limit

    return np.fromiter(map(is_outside, values), bool, len(values))


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


def _shown(names: Sequence[str]) -> str:
    """At most ten of ``names``."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}{', ...' if len(names) > 10 else ''}]"
