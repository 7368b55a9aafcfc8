"""Which rows of a source a split has: fit to train on, chosen by the hash of their text.

``find_rows`` goes through these steps:

1. examine the source, once for all splits (``examination.py``)
2. choose the rows of the split (``selection.py``)
3. of training rows, drop those that share text with evaluation rows (``decontamination.py``)
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from orchestrator.data.columns import read_batches, select_columns
from orchestrator.data.decontamination import clean_rows
from orchestrator.data.examination import survey
from orchestrator.data.readers import quiet
from orchestrator.data.selection import Split, choose_rows
from orchestrator.data.sources import Source
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.data.texts import TextPart, open_rows
from orchestrator.errors import DataError

# Skipped rows that are shown.
NUM_SHOWN = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowCounts:
    """What became of a source's rows on their way to a split."""

    num_rows: int
    """Rows of the source, those that cannot be read included."""
    num_filtered: int
    """Those that its filter keeps, or that cannot be read."""
    num_skipped: int
    """Of these, rows that cannot be read or used."""
    skipped: tuple[tuple[str, str], ...]
    """Place and problem of the first of them."""
    dropped: Mapping[str, int]
    """Rows by the key of the section that drops them, for all splits; ``decontaminate``: for this one."""
    scrubbed: Mapping[str, int]
    """Placeholders put into texts, those that repeat an earlier one included, by kind of personal data."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a source."""

    source: Source
    numbers: np.ndarray
    """int64: their numbers in the source, rising."""
    counts: RowCounts
    """How they came about."""

    @property
    def num_skipped(self) -> int:
        """Rows of the source that were skipped because something was wrong with them."""
        return self.counts.num_skipped

    def open(self) -> Any:
        """A map-style ``datasets.Dataset`` with the fields of a row as columns (``fields.py``)."""
        return open_rows(self.source, self.numbers)


def find_rows(source: Source, split: Split, tasks: Tasks = IN_PROCESS) -> Rows:
    """Rows of one split of ``source``, at least one.

    Raises:
        DataError: As ``look_for_rows`` does, or no row is left.
    """
    found = look_for_rows(source, split, tasks)
    if len(found.numbers) == 0:
        raise DataError(_nothing_left(found, split))
    return found


def look_for_rows(source: Source, split: Split, tasks: Tasks = IN_PROCESS) -> Rows:
    """Rows of one split of ``source``, of which there may be none.

    Raises:
        DataError: The source is empty or lacks a column, or a text or label is null or of the wrong type.
    """
    found = survey(source, tasks)
    num_left_out, left_out = source.left_out()
    num_skipped = found.num_skipped + num_left_out
    skipped = [*left_out, *((row.place, row.problem) for row in found.skipped)]
    num_filtered = found.num_filtered + num_left_out
    if skipped:
        place, problem = skipped[0]
        _warn_once(
            f"datasets.{source.name}: {num_skipped} of {num_filtered} rows are skipped, first"
            f" {place}: {problem}"
        )
    chosen = choose_rows(found.hashes, len(found.numbers), source.dataset, split)
    dropped = dict(found.dropped)
    if source.dataset.decontaminate is not None and split == "train":
        kept = clean_rows(
            source,
            found.numbers[chosen],
            lambda: _held_out(source, tasks),
            source.dataset.decontaminate,
            tasks,
        )
        dropped["decontaminate"] = len(chosen) - len(kept)
        chosen = chosen[kept]
    counts = RowCounts(
        num_rows=found.num_rows + num_left_out,
        num_filtered=num_filtered,
        num_skipped=num_skipped,
        skipped=tuple(skipped[:NUM_SHOWN]),
        dropped=dropped,
        scrubbed=found.scrubbed,
    )
    return Rows(source, found.numbers[chosen], counts)


@cache
def _warn_once(message: str) -> None:
    """Say it once in a process: every split of a source, and whatever learns from it, finds the same."""
    log.warning("%s", message)


def distinct_labels(source: Source) -> list[Any]:
    """The distinct labels of the rows of all splits together, sorted.

    Raises:
        DataError: Texts are among other values.
    """
    first_rows = {label: first for label, (_, first) in _label_rows(source).items()}
    texts = next((label for label in first_rows if isinstance(label, str)), None)
    other = next((label for label in first_rows if not isinstance(label, str)), None)
    if texts is not None and other is not None:
        places = [f"{source.place_of(first_rows[label])} holds {label!r}" for label in (texts, other)]
        raise DataError(
            f"datasets.{source.name}: column '{source.dataset.label_column}': {places[0]} and {places[1]},"
            " expected labels of one kind. Correct or filter the rows, or set label_names."
        )
    return sorted(first_rows)


def rarest_label(source: Source) -> tuple[Any, int, str]:
    """The label of the fewest rows of all splits, in how many it is, and where it stands first."""
    label, (count, first) = min(_label_rows(source).items(), key=lambda item: item[1][0])
    return label, count, source.place_of(first)


def _label_rows(source: Source) -> dict[Any, tuple[int, int]]:
    """By label of the rows of all splits, how often it is there and in which row first."""
    found: dict[Any, tuple[int, int]] = {}
    with quiet():
        numbers = survey(source, IN_PROCESS).numbers
        rows = select_columns(source.name, source.dataset, source.open().select(numbers))
        labels = (label for batch in read_batches(rows, ["label"]) for label in batch["label"])
        for number, label in zip(numbers.tolist(), labels, strict=True):
            for value in label if isinstance(label, list) else [label]:
                if isinstance(value, Hashable) and value not in (None, ""):
                    count, first = found.get(value, (0, number))
                    found[value] = count + 1, first
    return found


def _held_out(source: Source, tasks: Tasks) -> list[TextPart]:
    """The evaluation rows of the sources that ``source`` must share nothing with.

    Raises:
        DataError: One of the datasets holds out no row, in whatever way it is read.
    """
    found: dict[str, list[tuple[Rows, Split]]] = {}
    for other in source.against:
        fractions = {"validation": other.dataset.validation_fraction, "test": other.dataset.test_fraction}
        splits: list[Split] = [split for split in ("validation", "test") if fractions[split] > 0.0]
        looked = [(look_for_rows(other, split, tasks), split) for split in splits or ["train"]]
        found.setdefault(other.name, []).extend(looked)
    for name, looked in found.items():
        if not any(len(rows.numbers) for rows, _ in looked):
            raise DataError(
                f"datasets.{source.name}: decontaminate: dataset '{name}' has no row to compare with."
                f" {_nothing_left(*looked[0])} Or take '{name}' out of against."
            )
    return [TextPart(rows.source, rows.numbers) for looked in found.values() for rows, _ in looked]


def _nothing_left(rows: Rows, split: Split) -> str:
    """Why a split has no row."""
    dataset, counts = rows.source.dataset, rows.counts
    text = (
        f"datasets.{rows.source.name}: split '{split}' has none of {counts.num_filtered} rows with"
        f" validation_fraction {dataset.validation_fraction} and test_fraction {dataset.test_fraction}."
    )
    if counts.num_skipped:
        text += f" {counts.num_skipped} of them are skipped."
    lost = {reason: count for reason, count in counts.dropped.items() if count}
    if lost:
        text += f" Dropped are {', '.join(f'{count} by {reason}' for reason, count in lost.items())}."
    return text + (" Lower them." if split == "train" else f" Raise {split}_fraction.")
