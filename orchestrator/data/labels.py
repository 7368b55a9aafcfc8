"""Label values of a dataset as ids from 0, and the names of these ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.data.csv_values import like_a_value

MAX_LABELS = 1_000_000
"""Where nobody says how many labels there are, a higher one is taken for a mistake."""
LARGEST = float(np.finfo(np.float32).max)
"""Numbers are kept in float32."""


def label_ids(
    values: Sequence[Any], names: Sequence[str] | None, num_labels: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label values into ids.

    Args:
        values: Without a ``label_problem``. Strings are looked up in ``names``; integers and booleans are ids
            already, unless all names look like numbers or booleans themselves.
        names: Label names in the order of their ids; needed for strings.
        num_labels: Size of the classifier; absent: as many as there are names or values.

    Returns:
        int64 ids, one for each value, and the names.
    """
    by_name = {name: label_id for label_id, name in enumerate(names or ())}
    texts = _as_texts([_whole(value) for value in values], names)
    ids = [by_name[value] if isinstance(value, str) else int(value) for value in texts]
    if names is None:
        limit = max(ids, default=0) + 1 if num_labels is None else num_labels
        names = [str(number) for number in range(limit)]
    return np.array(ids, dtype=np.int64), tuple(names)


def label_problem(value: Any, names: Sequence[str] | None, num_labels: int | None) -> str | None:
    """What is wrong with the label of a row: it is of no kind that has an id, or outside the set.

    Args:
        value: Of a row.
        names: Label names in the order of their ids; absent: labels are ids.
        num_labels: Size of the classifier; absent: as many as there are names or values.
    """
    (value,) = _as_texts([_whole(value)], names)
    if isinstance(value, str):
        return None if names is not None and value in names else f"label {value!r}, expected {_set(names)}"
    if not isinstance(value, int):
        kind = type(value).__name__
        return f"label {value!r} of type {kind}, expected an integer, a boolean or a string"
    limit = len(names) if names is not None else num_labels
    if value >= 0 and int(value) < (MAX_LABELS if limit is None else limit):
        return None
    if limit is None:
        return f"label {value!r}, expected 0 to {MAX_LABELS - 1}: set num_labels, or label_names"
    given = f"label_names {list(names)[:10]}" if names is not None else f"num_labels {limit}"
    return f"label {value!r}, expected 0 to {limit - 1} with {given}"


def _whole(value: Any) -> Any:
    """A whole number as an integer: a column with one fraction among them holds all numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _set(names: Sequence[str] | None) -> str:
    """Labels that are texts and have an id, for messages."""
    return "a whole number, as the others are" if names is None else f"one of {list(names)[:10]}"


def _as_texts(values: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    """``values``, the integers and booleans among them as texts where the names look like such."""
    if not names or not all(like_a_value(name) for name in names):
        return values
    return [_as_text(value, names) if isinstance(value, int) else value for value in values]


def _as_text(value: int, names: Sequence[str]) -> str:
    """An integer, or a boolean as the names spell it."""
    text = str(value)
    if not isinstance(value, bool):
        return text
    return next((name for name in names if name.lower() == text.lower()), text)


@dataclass(frozen=True)
class LabelIds:
    """Ids of single label values, where a row has several."""

    names: tuple[str, ...]
    """In the order of their ids."""

    @classmethod
    def of(cls, names: Sequence[str] | None, num_labels: int) -> LabelIds:
        """Ids of the given names; of the numbers below ``num_labels`` without them."""
        return cls(tuple(names) if names is not None else tuple(map(str, range(num_labels))))

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: label_id for label_id, name in enumerate(self.names)}

    def find(self, value: Any) -> int | None:
        """The id of a name, or of a number that is an id; ``None``: it has none.

        Where all names look like numbers or booleans, a number is a name.
        """
        (value,) = _as_texts([_whole(value)], self.names)
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

    def tags_problem(self, tags: Sequence[Any]) -> str | None:
        """What is wrong with the tags of a row's words."""
        for word, tag in enumerate(tags):
            if self.find(tag) is None:
                return f"word {word} (counted from 0) has {self.complaint(tag)}"
        return None

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


def number_problem(value: Any, num_values: int | None) -> str | None:
    """What is wrong with the number of a row, or with its list of numbers (regression).

    Args:
        value: Of a row; a boolean is no number.
        num_values: Numbers of the list; ``None``: a number by itself, and no list.
    """
    given = value if isinstance(value, list) and num_values is not None else [value]
    are_fit = all(_is_number(number) and abs(number) <= LARGEST for number in given)
    if are_fit and len(given) == (num_values or 1):
        return None
    wanted = "a finite number" if num_values in (None, 1) else f"a list of {num_values} finite numbers"
    return f"label {value!r}, expected {wanted} (regression)"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(names: Sequence[str]) -> str:
    """At most ten of ``names``."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}{', ...' if len(names) > 10 else ''}]"
