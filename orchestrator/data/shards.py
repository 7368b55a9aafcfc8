"""A hub dataset that is streamed: known by its commit, read in shards, which are its files there.

``copied_shard`` is the only place where its rows are on the disk, for as long as somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.data.arrow import copy_rows, open_copy
from orchestrator.data.cache import scratch_folder
from orchestrator.data.columns import SCAN_ROWS, check_columns
from orchestrator.data.fields import columns_of
from orchestrator.data.readers import open_stream, quiet, root_cause
from orchestrator.data.sources import Source
from orchestrator.errors import DataError
from orchestrator.spec.datasets import HubDataset


@dataclass(frozen=True)
class StreamedSource(Source):
    """A dataset of the hub at one commit, whose rows are read file by file and not kept."""

    stream: Any = None
    """A ``datasets.IterableDataset``."""

    @property
    def section(self) -> HubDataset:
        """Its section."""
        assert isinstance(self.dataset, HubDataset)
        return self.dataset

    @property
    def num_shards(self) -> int:
        """Files that hold it, as the library counts them."""
        return int(self.stream.num_shards)

    def narrow(self) -> StreamedSource:
        """The same source with a stream of those columns alone that its section names.

        Raises:
            SourceMissingError: It cannot be reached.
        """
        columns = {getattr(self.dataset, key) for key in columns_of(self.dataset).values()}
        with quiet():
            stream = open_stream(self.name, self.section, self.cache_dir, columns | set(self.dataset.filter))
        return replace(self, stream=stream)

    def check_columns(self) -> None:
        """Refuse a source that lacks a column which its section names."""
        check_columns(self.name, self.dataset, self.stream)

    def head(self) -> Any:
        """The first rows, read anew."""
        with quiet():
            return next(self.stream.iter(SCAN_ROWS))

    def open(self) -> Any:
        """Raise ``DataError``: no rows are kept."""
        raise DataError(
            f"datasets.{self.name}: streaming: true keeps no rows, and this needs all of them at hand."
            " Set streaming: false, and the dataset is downloaded whole."
        )

    def place_of(self, number: int) -> str:
        """A row by its number among those of all files, for messages."""
        return f"{self.section.path}: row {number} of all files (counted from 0)"


@dataclass(frozen=True)
class ShardSource(Source):
    """One shard of a streamed source, whose rows are on the disk for a while."""

    copy: Path = Path()
    """An Arrow file with the columns that are needed."""
    number: int = 0
    """Of the shard, counted from 0."""

    def open(self) -> Any:
        """All rows, as a memory-mapped ``datasets.Dataset``."""
        return open_copy(self.copy)

    def place_of(self, number: int) -> str:
        """A row by its file and its number there, for messages."""
        return f"file {self.number}, row {number} (both counted from 0)"


def find_streamed(name: str, dataset: HubDataset, cache_dir: Path) -> StreamedSource:
    """A dataset of the hub whose content is known by its commit, unread.

    Raises:
        DataError: No commit is known, or the dataset cannot be reached.
    """
    if not dataset.is_pinned:
        raise DataError(
            f"datasets.{name}: streaming: true reads '{dataset.path}' at revision"
            f" '{dataset.revision or 'main'}', expected a commit, which tells what it holds. Set revision to"
            " one (40 hexadecimal digits), or start the run where the hub can be asked for it."
        )
    cache_dir = cache_dir.absolute()
    with quiet():
        stream = open_stream(name, dataset, cache_dir)
    content = (dataset.path, f"{stream.num_shards} files")
    return StreamedSource(name, dataset, cache_dir, content, (), stream=stream)


@contextmanager
def copied_shard(source: StreamedSource, number: int) -> Iterator[ShardSource]:
    """One shard, whose rows are on the disk until the end of the block.

    Raises:
        DataError: It cannot be read.
    """
    with scratch_folder(source.cache_dir / "streaming" / f"{source.digest}-{number:06d}") as folder:
        copy = folder / "rows.arrow"
        try:
            with quiet():
                copy_rows(source.stream.shard(source.num_shards, number), copy)
        except Exception as error:
            raise DataError(
                f"datasets.{source.name}: file {number} (counted from 0) of the {source.num_shards} of"
                f" '{source.section.path}' cannot be streamed: {root_cause(error)}. Start again to go on:"
                " files that are finished are not read again. What comes again is in the file: it is damaged,"
                " or its columns or types are not those of the first one."
            ) from error
        content = (*source.content, str(number))
        yield ShardSource(
            source.name, source.dataset, source.cache_dir, content, (), copy=copy, number=number
        )
