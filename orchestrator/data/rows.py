"""Which rows of a source a split has: filtered, sound, unique, chosen by the hash of their text.

``find_rows`` goes through these steps:

1. examine the source in ranges of rows, a task for each: keep what the filter names, check every kept
   row, hash its text
2. keep what was found, under the digest of the source
3. choose the rows of the split
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.cache import make_folder
from orchestrator.data.columns import (
    SCAN_ROWS,
    Unsound,
    filter_rows,
    hash_rows,
    refuse_empty_filter,
    select_columns,
    unsound_rows,
)
from orchestrator.data.files import digest_values
from orchestrator.data.readers import quiet
from orchestrator.data.selection import Split, needs_hashes, select_rows
from orchestrator.data.sources import Source, no_rows
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Dataset

# A million rows are examined in several seconds, which is worth a process elsewhere.
RANGE_ROWS = 1_000_000
# Raised when a row is judged or hashed in another way.
EXAMINATION_VERSION = 1
# Skipped rows that are written down with their problem.
NUM_NAMED = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a source."""

    source: Source
    numbers: np.ndarray
    """int64: their numbers in the source, rising."""
    num_skipped: int
    """Rows of the source that were skipped because something was wrong with them."""

    def open(self) -> Any:
        """A map-style ``datasets.Dataset`` with the fields of a row as columns (``fields.py``)."""
        with quiet():
            opened = self.source.open()
            return select_columns(self.source.name, self.source.dataset, opened).select(self.numbers)


@dataclass(frozen=True)
class Examined:
    """What one range of a source's rows holds."""

    numbers: np.ndarray
    """int64: rows that the filter keeps and that are sound, by their number in the source."""
    hashes: np.ndarray
    """uint64 ``(rows, 2)`` of their texts; without rows where the split does not need them."""
    num_filtered: int
    """Rows that the filter keeps, sound or not."""
    unsound: tuple[Unsound, ...]


def find_rows(source: Source, split: Split, tasks: Tasks = IN_PROCESS) -> Rows:
    """Rows of one split of ``source``.

    Raises:
        DataError: The source is empty or lacks a column, a text or label is null or of the wrong type, or
            no row is left.
    """
    name, dataset = source.name, source.dataset
    folder = _examined(source, tasks)
    numbers = np.load(folder / "numbers.npy", allow_pickle=False)
    counts = json.loads((folder / "counts.json").read_text("utf-8"))
    num_filtered, num_skipped = int(counts["num_filtered"]), int(counts["num_skipped"])
    if num_skipped:
        row = counts["skipped"][0]
        log.warning(
            "datasets.%s: %d of %d rows are skipped, first %s: %s",
            *(name, num_skipped, num_filtered, source.place_of(row["number"]), row["problem"]),
        )
    if needs_hashes(dataset):
        hashes = np.load(folder / "hashes.npy", allow_pickle=False)
        numbers = numbers[select_rows(hashes, dataset, split)]
    elif split != "train":
        numbers = numbers[:0]
    if len(numbers) == 0:
        raise DataError(
            f"datasets.{name}: split '{split}' has none of {num_filtered} rows with validation_fraction"
            f" {dataset.validation_fraction} and test_fraction {dataset.test_fraction}."
            + (f" {num_skipped} of them are skipped." if num_skipped else "")
            + (" Lower them." if split == "train" else f" Raise {split}_fraction.")
        )
    return Rows(source, numbers, num_skipped)


def distinct_labels(source: Source) -> list[Any]:
    """The distinct labels of all splits together, sorted; filtered rows do not count."""
    with quiet():
        opened = source.open()
        rows = opened.select(filter_rows(source.name, source.dataset, opened, range(len(opened))))
        rows = select_columns(source.name, source.dataset, rows)
        if not hasattr(rows.features["label"], "feature"):
            return sorted(set(rows.unique("label")) - {None})
        batches = rows.select_columns(["label"]).iter(SCAN_ROWS)
        lists = [labels for batch in batches for labels in batch["label"] if labels is not None]
        return sorted({label for labels in lists for label in labels} - {None})


def _examined(source: Source, tasks: Tasks) -> Path:
    """Folder with what all ranges of the source hold, made once."""
    key = {"version": EXAMINATION_VERSION, "source": source.digest}

    def build(folder: Path) -> None:
        with quiet():
            num_rows = len(source.open())
        if num_rows == 0:
            raise DataError(f"datasets.{source.name}: {no_rows(source.dataset)}")
        ranges = [range(start, min(start + RANGE_ROWS, num_rows)) for start in range(0, num_rows, RANGE_ROWS)]
        found = list(tasks.map(examine, [(source, part) for part in ranges]))
        num_filtered = sum(part.num_filtered for part in found)
        if num_filtered == 0:
            refuse_empty_filter(source.name, source.dataset, source.open())
        np.save(folder / "numbers.npy", np.concatenate([part.numbers for part in found]))
        np.save(folder / "hashes.npy", np.concatenate([part.hashes for part in found]))
        unsound = [asdict(row) for part in found for row in part.unsound]
        counts = {"num_filtered": num_filtered, "num_skipped": len(unsound), "skipped": unsound[:NUM_NAMED]}
        (folder / "counts.json").write_text(json.dumps(counts, indent=1), "utf-8")

    return make_folder(source.cache_dir / "examined" / digest_values(key), build)


def examine(work: tuple[Source, Sequence[int]]) -> Examined:
    """Filter, check and hash one range of a source's rows.

    Raises:
        DataError: A column is missing, or a row is unsound and not to be skipped.
    """
    source, part = work
    dataset = source.dataset
    with quiet():
        opened = source.open()
        numbers = filter_rows(source.name, dataset, opened, part)
        num_filtered = len(numbers)
        rows = select_columns(source.name, dataset, opened)
        unsound = list(islice(unsound_rows(dataset, rows.select(numbers), numbers), _most_unsound(dataset)))
        if unsound and dataset.on_bad_row == "error":
            raise DataError(
                f"datasets.{source.name}: {source.place_of(unsound[0].number)}: {unsound[0].problem}."
                " Correct or filter the row, or set on_bad_row: skip."
            )
        numbers = np.setdiff1d(numbers, [row.number for row in unsound], assume_unique=True)
        hashes = hash_rows(rows.select(numbers)) if needs_hashes(dataset) else np.empty((0, 2), np.uint64)
    return Examined(numbers, hashes, num_filtered, tuple(unsound))


def _most_unsound(dataset: Dataset) -> int | None:
    """Unsound rows to look for: the first one is an error, unless all are skipped."""
    return 1 if dataset.on_bad_row == "error" else None
