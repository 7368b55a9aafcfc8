"""What a text of a CSV file stands for, where a key of the job file expects a value.

A CSV file holds texts alone. Each is understood by itself and by what is expected of it, never by its
neighbours: so neither the number of rows nor a stray word changes what the others mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.spec.datasets import Scalar

INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(nan|inf)", re.IGNORECASE)
BOOLEANS = {"false": 0, "true": 1}


def holds_value(text: str | None, value: Scalar) -> bool:
    """Whether a text is that value: ``1.0`` is the number 1, and ``True`` is true."""
    if text is None or isinstance(value, str):
        return text == value
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    return number_in(text) == value


def number_in(text: str) -> float | int | str:
    """The number that a text is, else the text."""
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def are_ids(texts: Iterable[str]) -> bool:
    """Whether all texts are whole numbers, so that labels without names are their own ids."""
    return all(INTEGER.fullmatch(text) for text in texts)


def label_in(text: str, names: Sequence[str] | None) -> str | int:
    """The name that a text is, or the id; a text that is neither stays as it is.

    Args:
        text: The label of a row.
        names: Label names in the order of their ids; absent: labels are ids.
    """
    if names is not None and (text in names or all(like_a_value(name) for name in names)):
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    return BOOLEANS.get(text.lower(), text)


def like_a_value(name: str) -> bool:
    """Whether a label's name could be a number or a boolean, so that such a label is looked up as a text."""
    return NUMBER.fullmatch(name) is not None or name.lower() in BOOLEANS
