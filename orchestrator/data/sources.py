"""Sources of a job file: found, digested, and opened as ``datasets.Dataset``s.

``find_source`` goes through these steps:

1. find the files and digest their bytes, once
2. join consecutive small files to groups, and convert each group to Arrow, a task for each; the Arrow
   copy lies under the group's digest, so it cannot be stale

What it returns can be opened again and again, in any process that sees the same disk, and reads no more
of the files than is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.data.columns import SCAN_ROWS, check_columns
from orchestrator.data.conversion import NUM_NAMED, Conversion, Group, files_text
from orchestrator.data.fields import LABEL_KEYS
from orchestrator.data.files import digest_file, digest_values, find_files
from orchestrator.data.readers import (
    join,
    open_hub,
    open_saved,
    quiet,
    saved_folder,
)
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.errors import DataError
from orchestrator.spec.datasets import (
    Dataset,
    HubDataset,
    PackageDataset,
    SavedDataset,
)

# Places of files and checks of them: the same content elsewhere is the same data.
KEYS_WITHOUT_CONTENT = {"files", "path", "distribution", "file", "sha256", "streaming"}
# 256 MiB: a group is converted in seconds, and ten thousand small files are a few dozen groups.
GROUP_BYTES = 1 << 28


@dataclass(frozen=True)
class Source:
    """A dataset of a job, found and digested."""

    name: str
    """The dataset's name in the job file, for messages."""
    dataset: Dataset
    cache_dir: Path
    """Folder for Arrow copies."""
    content: tuple[str, ...]
    """Digests of the files that hold it, in order."""
    groups: tuple[Group, ...]
    """Empty for a hub or saved dataset, which is Arrow already."""
    against: tuple[Source, ...] = ()
    """Sources whose evaluation rows it must share nothing with, as ``decontaminate`` names them."""

    @cached_property
    def digest(self) -> str:
        """Digest of the content: the bytes of the files and the keys that shape its rows.

        Where the files lie does not matter. A hub dataset is digested as its Arrow files. Sources whose
        evaluation rows are kept out of the training rows are content too.
        """
        keys = self.dataset.model_dump(mode="json", exclude=KEYS_WITHOUT_CONTENT)
        against = [other.digest for other in self.against]
        return digest_values({"keys": keys, "content": list(self.content), "against": against})

    def without_labels(self) -> Source:
        """The same rows, read without their labels."""
        return self.with_section(self.dataset.model_copy(update=dict.fromkeys(LABEL_KEYS)))

    def with_section(self, dataset: Dataset) -> Source:
        """The same content, read by other keys."""
        return replace(self, dataset=dataset)

    def evaluated(self) -> Source:
        """The same source for its evaluation rows' texts alone, which no other source has a part in."""
        dataset = self.without_labels().dataset.model_copy(update={"decontaminate": None})
        return replace(self, dataset=dataset, against=())

    def check_columns(self) -> None:
        """Refuse a source that lacks a column which its section names.

        Raises:
            DataError: Naming the columns that there are.
        """
        check_columns(self.name, self.dataset, self.open())

    def place_of(self, number: int) -> str:
        """Where a row stands, for messages: its file and its number there."""
        with quiet():
            for group in self.groups:
                num_rows = self._num_rows(group)
                if number < num_rows:
                    return self._place_in(group, number)
                number -= num_rows
        return f"row {number} (counted from 0)"

    def _place_in(self, group: Group, number: int) -> str:
        """The file of a group's row, and its number there."""
        for alone in group.alone():
            num_rows = self._num_rows(alone)
            if number < num_rows:
                break
            number -= num_rows
        rest = " of those that can be read" if self._conversion(alone).left_out().count else ""
        return f"{alone.files[0]}: row {number}{rest} (counted from 0)"

    def _num_rows(self, group: Group) -> int:
        rows = self._conversion(group).open()
        return 0 if rows is None else len(rows)

    def open(self) -> Any:
        """All rows and columns, as a map-style, memory-mapped ``datasets.Dataset``.

        Raises:
            DataError: It cannot be read, or its files differ in their columns.
        """
        with quiet():
            if isinstance(self.dataset, HubDataset):
                return open_hub(self.name, self.dataset, self.cache_dir)
            if isinstance(self.dataset, SavedDataset):
                return open_saved(self.name, self.dataset)
            return self._join([(group, self._conversion(group).open()) for group in self.groups])

    def head(self) -> Any:
        """The first rows."""
        rows = self.open()
        return rows.select(range(min(len(rows), SCAN_ROWS)))

    def left_out(self) -> tuple[int, list[tuple[str, str]]]:
        """How many lines of its files cannot be read and were left out; place and problem of the first."""
        count, named = 0, list[tuple[str, str]]()
        for group in self.groups:
            found = self._conversion(group).left_out()
            count += found.count
            named += [
                (f"{group.files[file]}: line {line.number}", line.problem) for file, line in found.first
            ]
        return count, named[:NUM_NAMED]

    def _conversion(self, group: Group) -> Conversion:
        return Conversion(self.name, self.dataset, self.cache_dir, group)

    def _join(self, opened: list[tuple[Group, Any]]) -> Any:
        """The rows of all groups; those without any row have no columns either."""
        filled = [(group, rows) for group, rows in opened if rows is not None]
        if not filled:
            raise DataError(f"datasets.{self.name}: {no_rows(self.dataset)}")
        first_group, first = filled[0]
        for group, rows in filled:
            if rows.features != first.features:
                raise DataError(
                    f"datasets.{self.name}: {files_text(group)}: columns {_columns_text(rows)}, expected"
                    f" those of {files_text(first_group)}: {_columns_text(first)}. Give all files the same"
                    " columns, or make them two datasets."
                )
        return join([rows for _, rows in filled])


def find_source(name: str, dataset: Dataset, cache_dir: Path, tasks: Tasks = IN_PROCESS) -> Source:
    """Find a dataset, digest it, and convert its files; ``shards.py`` finds one that is streamed.

    Args:
        name: The dataset's name in the job file, for messages.
        dataset: Its section.
        cache_dir: Folder for Arrow copies.
        tasks: Runs the digests and conversions.

    Raises:
        DataError: It is missing, empty or unreadable.
    """
    cache_dir = cache_dir.absolute()
    if isinstance(dataset, HubDataset):
        with quiet():
            opened = open_hub(name, dataset, cache_dir)
        content = [digest_file(Path(part["filename"])) for part in opened.cache_files]
        return Source(name, dataset, cache_dir, tuple(content), ())
    if isinstance(dataset, SavedDataset):
        folder = saved_folder(name, dataset)
        parts = sorted(path for path in folder.rglob("*") if path.is_file())
        content = [f"{part.relative_to(folder).as_posix()} {digest_file(part)}" for part in parts]
        return Source(name, dataset, cache_dir, tuple(content), ())
    files = find_files(name, dataset)
    groups, content = [], list[str]()
    for members, digests in tasks.map(_digest_files, _consecutive(files)):
        groups.append(Group(tuple(members), tuple(digests)))
        content += digests
    source = Source(name, dataset, cache_dir, tuple(content), tuple(groups))
    for _ in tasks.map(_convert_alone, [(source, group) for group in groups]):
        pass
    return source


def _consecutive(files: list[Path]) -> list[list[Path]]:
    """Files in order, joined until a list holds ``GROUP_BYTES``."""
    lists: list[list[Path]] = []
    room = 0
    for path in files:
        num_bytes = path.stat().st_size
        if num_bytes > room or not lists:
            lists.append([])
            room = GROUP_BYTES
        lists[-1].append(path)
        room -= num_bytes
    return lists


def _digest_files(files: list[Path]) -> tuple[list[Path], list[str]]:
    return files, [digest_file(path) for path in files]


def _convert_alone(work: tuple[Source, Group]) -> None:
    """Make a group's Arrow copy."""
    source, group = work
    with quiet():
        Conversion(source.name, source.dataset, source.cache_dir, group).open()


def no_rows(dataset: Dataset) -> str:
    """What to say of a source without rows."""
    return f"the corpus is empty: 0 rows in {_place(dataset)}, expected text."


def _columns_text(rows: Any) -> str:
    """Columns and their types, for messages."""
    return ", ".join(f"{name} ({feature.dtype})" for name, feature in rows.features.items())


def _place(dataset: Dataset) -> str:
    """Where the section says its data lies, for messages."""
    if isinstance(dataset, HubDataset | SavedDataset):
        return dataset.path
    if isinstance(dataset, PackageDataset):
        return f"{dataset.distribution}: {dataset.file}"
    return dataset.files if isinstance(dataset.files, str) else ", ".join(dataset.files)
