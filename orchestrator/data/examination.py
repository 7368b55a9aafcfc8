"""What a source holds, before any split is chosen: a look at every row, once for all splits.

1. examine the source in ranges of rows, a task for each: keep what the filter names, check every kept row,
   scrub its text, drop it if it is too short, too long or no prose, hash its text and the whole row
2. drop what repeats an earlier row, exactly or nearly
3. keep what is left, with counts by reason, under the digest of the source
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.cache import make_folder
from orchestrator.data.columns import (
    Unsound,
    filter_rows,
    read_batches,
    refuse_empty_filter,
    select_columns,
)
from orchestrator.data.examined import Examined, renumbered
from orchestrator.data.fields import Batch, identities, problems, split_texts
from orchestrator.data.near_duplicates import distinct_rows
from orchestrator.data.quality import why_dropped
from orchestrator.data.readers import quiet
from orchestrator.data.scrub import scrub
from orchestrator.data.selection import hash_rows, needs_hashes, unique_rows
from orchestrator.data.shards import StreamedSource
from orchestrator.data.sources import Source
from orchestrator.data.tasks import Tasks
from orchestrator.errors import DataError

# A million rows are examined in several seconds, by rules of quality in minutes: worth a process elsewhere.
RANGE_ROWS = 1_000_000
# Skipped rows that are written down with their place and problem.
NUM_NAMED = 5


@dataclass(frozen=True)
class Survey:
    """The folder of an examined source."""

    numbers: np.ndarray
    """int64: rows that are kept, rising."""
    hashes: np.ndarray
    """uint64 ``(rows, 2)``, or without rows."""
    num_rows: int
    """Rows of the source."""
    num_filtered: int
    """Those that the filter keeps."""
    num_skipped: int
    """Of these, rows that are not sound."""
    skipped: tuple[Unsound, ...]
    """The first of them."""
    dropped: Mapping[str, int]
    scrubbed: Mapping[str, int]


def survey(source: Source, tasks: Tasks) -> Survey:
    """What the source holds; looked at once.

    Raises:
        DataError: The source is empty, a column is missing, or a row is unsound and not to be skipped.
    """
    target = source.cache_dir / "examined" / source.digest
    folder = make_folder(target, lambda folder: _write_survey(source, tasks, folder))
    counts = json.loads((folder / "counts.json").read_text("utf-8"))
    skipped = tuple(Unsound(**row) for row in counts.pop("skipped"))
    return Survey(
        numbers=_load(folder, "numbers"),
        hashes=_load(folder, "hashes"),
        skipped=skipped,
        **counts,
    )


def _load(folder: Path, name: str) -> np.ndarray:
    array: np.ndarray = np.load(folder / f"{name}.npy", allow_pickle=False)
    return array


def _write_survey(source: Source, tasks: Tasks, folder: Path) -> None:
    name, dataset = source.name, source.dataset
    found = _examined(source, tasks)
    num_rows = sum(part.num_rows for part in found)
    if num_rows == 0:
        raise DataError(source.is_empty())
    num_filtered = sum(part.num_filtered for part in found)
    if num_filtered == 0:
        refuse_empty_filter(name, dataset, num_rows, source.head())
    numbers, hashes = (
        np.concatenate([getattr(part, array) for part in found]) for array in ("numbers", "hashes")
    )
    dropped: Counter[str] = Counter()
    scrubbed: Counter[str] = Counter()
    for part in found:
        dropped.update(part.dropped)
        scrubbed.update(part.scrubbed)
    num_blank = sum(part.num_blank for part in found)
    if num_blank == len(numbers) > 0:
        raise DataError(
            f"datasets.{name}: none of {num_blank} rows holds a token: their texts are empty or white space."
            " Check the files and the text column."
        )
    kept = _distinct(source, numbers, hashes, tasks, dropped)
    np.save(folder / "numbers.npy", numbers[kept])
    np.save(folder / "hashes.npy", hashes[kept] if len(hashes) else hashes)
    unsound = [row for part in found for row in part.unsound]
    named = [replace(row, place=source.place_of(row.number)) for row in unsound[:NUM_NAMED]]
    counts = {
        "num_rows": num_rows,
        "num_filtered": num_filtered,
        "num_skipped": len(unsound),
        "skipped": [asdict(row) for row in named],
        "dropped": dropped,
        "scrubbed": scrubbed,
    }
    (folder / "counts.json").write_text(json.dumps(counts, indent=1), "utf-8")


def _examined(source: Source, tasks: Tasks) -> list[Examined]:
    """What each range of the source's rows holds; of a streamed source, each shard."""
    if isinstance(source, StreamedSource):
        shards = (Examined.load(shard_folder(source, number)) for number in range(source.num_shards))
        return list(renumbered(shards))
    with quiet():
        num_rows = len(source.open())
    ranges = [range(start, min(start + RANGE_ROWS, num_rows)) for start in range(0, num_rows, RANGE_ROWS)]
    return list(tasks.map(examine, [(source, part) for part in ranges]))


def shard_folder(source: StreamedSource, number: int) -> Path:
    """Where ``Examined`` of one shard is kept."""
    return source.cache_dir / "shards" / source.digest / f"{number:06d}"


def _distinct(
    source: Source, numbers: np.ndarray, hashes: np.ndarray, tasks: Tasks, dropped: Counter[str]
) -> np.ndarray:
    """Positions of rows that repeat no earlier one; those that do are counted in ``dropped``."""
    kept = np.arange(len(numbers))
    if source.dataset.deduplicate:
        kept = unique_rows(hashes)
        dropped["deduplicate"] = len(numbers) - len(kept)
    near = source.dataset.near_duplicates
    if near is not None:
        distinct = kept[distinct_rows(source, numbers[kept], near, tasks)]
        dropped["near_duplicates"] = len(kept) - len(distinct)
        kept = distinct
    return kept


def examine(work: tuple[Source, range]) -> Examined:
    """Filter, check, scrub, judge and hash one range of a source's rows.

    Raises:
        DataError: A column is missing, or a row is unsound and not to be skipped.
    """
    source, part = work
    dataset = source.dataset
    with quiet():
        opened = source.open()
        filtered, unsound = filter_rows(source.name, dataset, opened, part)
        rows = select_columns(source.name, dataset, opened).select(filtered)
        found = _Findings(source)
        found.refuse(unsound)
        first = 0
        for batch in read_batches(rows, rows.column_names):
            num_rows = len(next(iter(batch.values())))
            found.add(filtered[first : first + num_rows], batch)
            first += num_rows
    return found.result(len(part), len(filtered) + len(unsound))


class _Findings:
    """What is found in a range of rows, batch by batch."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._numbers: list[int] = []
        self._num_blank = 0
        self._hashes = [np.empty((0, 2), np.uint64)]
        self._unsound: list[Unsound] = []
        self._dropped: Counter[str] = Counter()
        self._scrubbed: Counter[str] = Counter()

    def add(self, numbers: np.ndarray, batch: Batch) -> None:
        """Judge some rows.

        Raises:
            DataError: One is unsound and not to be skipped.
        """
        dataset = self._source.dataset
        sound: list[int] = []
        for position, problem in enumerate(problems(dataset, batch)):
            if problem is None:
                sound.append(position)
            else:
                self.refuse([Unsound(int(numbers[position]), problem)])
        rows = {field: [values[position] for position in sound] for field, values in batch.items()}
        found = self._scrub(rows) if dataset.scrub else []
        texts = identities(rows)
        kept: list[int] = []
        for position, (number, text) in enumerate(zip(numbers[sound].tolist(), texts, strict=True)):
            reason = why_dropped(text, dataset)
            if reason is not None:
                self._dropped[reason] += 1
                continue
            if found:
                self._scrubbed.update(found[position])
            self._numbers.append(number)
            self._num_blank += not text.strip()
            kept.append(position)
        if needs_hashes(dataset):
            chosen = ([values[position] for position in kept] for values in (split_texts(rows), texts))
            self._hashes.append(hash_rows(*chosen))

    def _scrub(self, rows: dict[str, list[Any]]) -> list[Mapping[str, int]]:
        """Put placeholders into the texts of ``rows``; how many of each kind, row by row.

        Before anything is hashed. Sections that name other columns than a text's have no ``scrub``, so a text
        that is read alone and in pairs is the same in both.
        """
        dataset = self._source.dataset
        found = [scrub(text, dataset.scrub, dataset.phone_regions) for text in rows["text"]]
        rows["text"] = [text for text, _ in found]
        return [counts for _, counts in found]

    def refuse(self, rows: Sequence[Unsound]) -> None:
        """Count rows that are not sound.

        Raises:
            DataError: They are not to be skipped.
        """
        if rows and self._source.dataset.on_bad_row == "error":
            raise DataError(
                f"datasets.{self._source.name}: {self._source.place_of(rows[0].number)}: {rows[0].problem}."
                " Correct or filter the row, or set on_bad_row: skip."
            )
        self._unsound += rows

    def result(self, num_rows: int, num_filtered: int) -> Examined:
        """All that was found among ``num_filtered`` of ``num_rows`` rows."""
        return Examined(
            num_rows=num_rows,
            numbers=np.array(self._numbers, np.int64),
            hashes=np.concatenate(self._hashes),
            num_blank=self._num_blank,
            num_filtered=num_filtered,
            unsound=tuple(sorted(self._unsound, key=lambda row: row.number)),
            dropped=dict(self._dropped),
            scrubbed=dict(self._scrubbed),
        )
