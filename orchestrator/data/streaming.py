"""A dataset of the hub that is too large for the disk: tokenised file by file, its rows never kept.

``stream_shards`` gives each of its files, a shard, to a task of its own, which

1. copies the columns that are needed to the disk (``shards.py``)
2. examines the copy (``examination.py``), and keeps what it found
3. encodes the rows of each split (``tokenise.py``), and keeps tokens and labels
4. removes the copy

So the disk holds the rows of running tasks alone, and a shard that is finished is not read again. A shard
knows nothing of the others: texts that repeat another shard's, and rows beyond ``max_rows``, are encoded and
left out by ``StreamedParts.join``, which takes the rows that ``find_rows`` chose from all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.arrow import copy_rows, join, open_copy
from orchestrator.data.cache import is_whole, make_folder
from orchestrator.data.examination import examine, shard_folder
from orchestrator.data.examined import Examined
from orchestrator.data.files import digest_values
from orchestrator.data.labelling import holds_text
from orchestrator.data.prepared import FORMAT_VERSION
from orchestrator.data.readers import quiet
from orchestrator.data.rows import Rows
from orchestrator.data.selection import Split, choose_rows, splits_of, unique_rows
from orchestrator.data.shards import ShardSource, StreamedSource, copied_shard
from orchestrator.data.tasks import Tasks
from orchestrator.data.texts import TextPart
from orchestrator.data.tokenise import (
    PART_VERSION,
    Documents,
    Progress,
    Work,
    find_numbers,
    join_parts,
    write_part,
)
from orchestrator.data.tokenizer import tokenizer_digest
from orchestrator.errors import DataError


@dataclass(frozen=True)
class _Shard:
    """What one task makes of one shard."""

    source: StreamedSource
    number: int
    work: Work
    folders: Mapping[Split, Path]
    """Where the tokens of each split go."""


@dataclass(frozen=True)
class StreamedParts:
    """Folders with the tokens of one split, one for each shard in order."""

    parts: tuple[tuple[Path, int], ...]
    """Each with the number of the shard's first row among those of all shards."""

    def labels(self, rows: Rows) -> Any:
        """A ``datasets.Dataset`` whose column ``label`` has those of ``rows``."""
        with quiet():
            found = []
            for part, first in self.parts:
                _, is_there = find_numbers(part, first, rows.numbers)
                found.append(open_copy(part / "labels.arrow").select(np.flatnonzero(is_there)))
            return join(found)

    def join(self, rows: Rows, folder: Path) -> Documents:
        """Write the tokens of all documents of ``rows``, and their targets, into ``folder``."""
        return join_parts(self.parts, rows.numbers, folder)


def stream_shards(
    source: StreamedSource,
    split: Split,
    work: Work,
    *,
    tasks: Tasks,
    on_progress: Progress,
) -> StreamedParts:
    """Tokenise all shards of which something is missing.

    Held-out rows are encoded in the same go, so that they are there when their turn comes.

    Args:
        split: Which rows are wanted.
        on_progress: Called with the rows read and an estimate of their total, by the shards that are left.

    Raises:
        DataError: A shard cannot be read, or holds an unsound row that is not to be skipped; or labels have
            no names.
    """
    narrow = source.narrow()
    if work.layout.labelled:
        _require_label_names(narrow, work)
    held_out = splits_of(source.dataset)[1:]
    folders = {part: parts_folder(source, part, work) for part in dict.fromkeys([split, *held_out])}
    shards = [
        _Shard(narrow, number, work, {part: folder / f"{number:06d}" for part, folder in folders.items()})
        for number in range(source.num_shards)
    ]
    parts, done = list[tuple[Path, int]](), 0
    for shard, num_rows in zip(shards, tasks.map(stream_shard, shards), strict=True):
        parts.append((shard.folders[split], done))
        done += num_rows
        on_progress(done, done * len(shards) // len(parts))
    return StreamedParts(tuple(parts))


def parts_folder(source: StreamedSource, split: Split, work: Work) -> Path:
    """Where the parts of a split's shards are kept until they are joined."""
    key = {
        "format_version": FORMAT_VERSION,
        "part_version": PART_VERSION,
        "source": source.digest,
        "split": split,
        "tokenizer": tokenizer_digest(work.tokenizer_dir),
        "layout": asdict(work.layout),
    }
    return source.cache_dir / "parts" / digest_values(key)


def _require_label_names(source: StreamedSource, work: Work) -> None:
    """Names of labels that are words cannot be gathered from rows that are not kept.

    Raises:
        DataError: There are none.
    """
    dataset = source.dataset
    feature = source.stream.features[dataset.label_column]
    if dataset.label_names is None and work.layout.labels != "numbers" and holds_text(feature):
        raise DataError(
            f"datasets.{source.name}: label_names is not set, and column '{dataset.label_column}' holds"
            " strings, whose distinct values streaming: true cannot know beforehand. Set label_names to"
            " them, in the order of their ids."
        )


def stream_shard(shard: _Shard) -> int:
    """Make the folders of a shard unless all are there; the number of its rows."""
    source, found_in = shard.source, shard_folder(shard.source, shard.number)
    if not all(is_whole(folder) for folder in (found_in, *shard.folders.values())):
        with copied_shard(source, shard.number) as rows:
            found = _examine_shard(rows)
            make_folder(found_in, found.save)
            for split, folder in shard.folders.items():
                _encode_split(rows, found, split, shard.work, folder)
    return Examined.load(found_in).num_rows


def _examine_shard(rows: ShardSource) -> Examined:
    with quiet():
        num_rows = len(rows.open())
    return examine((rows, range(num_rows)))


def _encode_split(rows: ShardSource, found: Examined, split: Split, work: Work, folder: Path) -> None:
    """Make the part of one split, of the rows that it may have for all that the shard alone can tell."""
    dataset = rows.dataset
    kept = unique_rows(found.hashes) if dataset.deduplicate else np.arange(len(found.numbers))
    hashes = found.hashes[kept] if len(found.hashes) else found.hashes
    part = TextPart(rows, found.numbers[kept[choose_rows(hashes, len(kept), dataset, split)]])

    def build(target: Path) -> None:
        write_part(part, work, target)
        if work.layout.labelled:
            copy_rows(part.open().select_columns(["label"]), target / "labels.arrow")

    with quiet():
        make_folder(folder, build)
