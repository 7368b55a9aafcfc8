"""The labels of a split's rows, and the names of a classifier's outputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.csv_values import are_ids, label_in, like_a_value, number_in
from orchestrator.data.fields import is_all_text
from orchestrator.data.labels import LabelIds, label_ids, label_problem, label_sets, number_problem
from orchestrator.data.rows import Rows, distinct_labels, rarest_label
from orchestrator.data.selection import Split
from orchestrator.data.sources import Source
from orchestrator.errors import DataError

# Some MB of tags at a time.
BATCH_ROWS = 1000

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
        DataError: A label is not what the layout wants, has no id or another one than ``given``, or there are
            too many.
    """
    source = rows.source
    where = f"datasets.{source.name}: column '{source.dataset.label_column}', split '{split}'"
    own = _own_names(opened)
    _check_order(where, source.dataset.label_names or own, given)
    if layout.labels == "numbers":
        return _numbers(rows, opened, where, given, num_labels or 1)
    names = given or _names(source, opened)
    if names is not None and num_labels is not None and len(names) > num_labels:
        is_found = not (given or own or source.dataset.label_names)
        raise DataError(f"{where}: {_too_many(source, names, num_labels, is_found=is_found)}")
    if layout.document == "text" and layout.labels == "class":
        return _classes(rows, opened, where, names, num_labels)
    if num_labels is None:
        num_labels = len(names) if names is not None else _most(opened["label"][:])
    ids = LabelIds.of(names, num_labels)
    if layout.document == "words":
        return _tags(rows, opened, where, ids)
    return _sets(rows, opened, where, ids)


def _numbers(
    rows: Rows, opened: Any, where: str, given: Sequence[str] | None, num_values: int
) -> tuple[Rows, Labels]:
    """A number for each row, or a list of ``num_values``."""
    source, values = rows.source, opened["label"][:]
    if is_all_text(source.dataset):
        values = [number_in(text) for text in values]
    # Lists of one number have the shape of numbers, but not both in one column.
    size = num_values if num_values > 1 or all(isinstance(value, list) for value in values) else None
    rows, values = _sound(rows, where, values, [number_problem(value, size) for value in values])
    of_values = given or source.dataset.label_names or _value_names(source, num_values)
    return rows, Labels(np.array(values, np.float32).reshape(-1, num_values), tuple(of_values))


def _classes(
    rows: Rows, opened: Any, where: str, names: Sequence[str] | None, num_labels: int | None
) -> tuple[Rows, Labels]:
    """A label for each row."""
    dataset, own, values = rows.source.dataset, _own_names(opened), opened["label"][:]
    if is_all_text(dataset):
        values = [label_in(text, names) for text in values]
    elif own is not None:
        values = [_named(value, dataset.label_names or own) for value in values]
    problems = [label_problem(value, names, num_labels) for value in values]
    rows, values = _sound(rows, where, values, problems)
    return rows, Labels(*label_ids(values, names, num_labels))


def _tags(rows: Rows, opened: Any, where: str, ids: LabelIds) -> tuple[Rows, Labels]:
    """A tag for each word; their ids are made where words become tokens."""
    if _own_names(opened) is not None and all(like_a_value(name) for name in ids.names):
        raise DataError(f"{where}: its tags are ids of names that are numbers: give them other label_names")
    found = [ids.tags_problem(tags) for batch in opened.iter(BATCH_ROWS) for tags in batch["label"]]
    return _sound(rows, where, found, found)[0], Labels(None, ids.names)


def _sets(rows: Rows, opened: Any, where: str, ids: LabelIds) -> tuple[Rows, Labels]:
    """A list of labels for each row."""
    own, values = _own_names(opened), opened["label"][:]
    if own is not None:
        values = [_named(labels, rows.source.dataset.label_names or own) for labels in values]
    rows, values = _sound(rows, where, values, [ids.problem(labels) for labels in values])
    return rows, Labels(label_sets(values, ids), ids.names)


def _too_many(source: Source, names: Sequence[str], num_labels: int, *, is_found: bool) -> str:
    """What to say of more names than outputs.

    Args:
        is_found: Nobody named them: they are the values that rows have.
    """
    shown = f"[{', '.join(map(repr, names[:10]))}{', ...' if len(names) > 10 else ''}]"
    text = f"{len(names)} labels {shown}, but num_labels is {num_labels}"
    if not is_found:
        return f"{text}. Set num_labels: {len(names)}, or name fewer."
    label, count, place = rarest_label(source)
    rows = "row has" if count == 1 else "rows have"
    return (
        f"{text}; {count} {rows} {label!r}, first {place}. Correct or filter the rows; or set label_names to"
        f" those that there are, and others are refused, or left out by on_bad_row: skip; or set"
        f" num_labels: {len(names)}."
    )


def _sound(
    rows: Rows, where: str, values: Sequence[Any], problems: Sequence[str | None]
) -> tuple[Rows, Sequence[Any]]:
    """Rows whose label has no problem, with their labels.

    Raises:
        DataError: A label has a problem and is not to be skipped, or all have.
    """
    bad = [row for row, problem in enumerate(problems) if problem is not None]
    if not bad:
        return rows, values
    source = rows.source
    place, problem = source.place_of(int(rows.numbers[bad[0]])), problems[bad[0]]
    if source.dataset.on_bad_row == "error" or len(bad) == len(values):
        raise DataError(
            f"{where}: {place}: {problem}. Correct the label, label_names or num_labels, filter the row, or"
            " set on_bad_row: skip."
        )
    log.warning("%s: %d of %d rows are skipped, first %s: %s", where, len(bad), len(values), place, problem)
    kept = np.ones(len(values), bool)
    kept[bad] = False
    sound = [value for value, is_kept in zip(values, kept, strict=True) if is_kept]
    return replace(rows, numbers=rows.numbers[kept]), sound


def _names(source: Source, rows: Any) -> Sequence[str] | None:
    """The section's names, the source's own or its texts; ``None`` for plain numbers."""
    own, given = _own_names(rows), source.dataset.label_names
    if own and given and sorted(own) == sorted(given) and list(own) != list(given):
        raise DataError(
            f"datasets.{source.name}: label_names {list(given)} are in another order than the column's own"
            f" {list(own)}, whose ids are their places. Leave label_names out, or give them in that order."
        )
    if source.dataset.label_names is not None or own is not None:
        return source.dataset.label_names or own
    if not holds_text(rows.features["label"]):
        return None
    labels = distinct_labels(source)
    are_texts = bool(labels) and isinstance(labels[0], str)
    return labels if are_texts and not (is_all_text(source.dataset) and are_ids(labels)) else None


def _own_names(rows: Any) -> Sequence[str] | None:
    """Names that the column itself has for its ids."""
    feature = rows.features["label"]
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _named(label: Any, names: Sequence[str]) -> Any:
    """The name of an id, or the names of several: what a column with names holds is never a name itself."""
    if isinstance(label, list):
        return [_named(one, names) for one in label]
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label


def _check_order(where: str, own: Sequence[str] | None, given: Sequence[str] | None) -> None:
    """Refuse ids that stand for other labels than in the datasets that the classifier learns from.

    Raises:
        DataError: One does.
    """
    for label_id, (here, there) in enumerate(zip(own or (), given or (), strict=False)):
        if here != there:
            raise DataError(
                f"{where}: label {label_id} is '{here}' of {list(own or ())}, and '{there}' of"
                f" {list(given or ())} in the datasets that are trained on. Give all of them label_names in"
                " one order"
            )


def holds_text(feature: Any) -> bool:
    """Whether a column of this ``datasets`` feature may hold strings, or lists of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "_type", "") == "Json" or str(getattr(inner, "dtype", "")) in (
        "string",
        "large_string",
    )


def _value_names(source: Source, num_values: int) -> tuple[str, ...]:
    """Names of a row's numbers: the column's, numbered where there are several."""
    column = str(source.dataset.label_column)
    return (column,) if num_values == 1 else tuple(f"{column}_{number}" for number in range(num_values))


def _most(lists: Sequence[Any]) -> int:
    """One more than the highest id in some lists; 1 without any."""
    ids = [label for labels in lists if isinstance(labels, list) for label in labels]
    return max((int(label) for label in ids if isinstance(label, int)), default=0) + 1
