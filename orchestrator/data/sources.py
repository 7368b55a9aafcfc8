"""Sources of a job file: found, digested, and opened as ``datasets.Dataset``s.

``find_source`` goes through these steps:

1. find the files and digest their bytes, once
2. join consecutive small files to groups, and find the columns and types of each, a task for each
3. convert each group to Arrow with the types that hold the values of all, a task for each; a copy lies under
   the digest of its group and columns, so it cannot be stale

What it returns can be opened again and again, in any process that sees the same disk, and reads no more
of the files than is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.data.arrow import join, text_schema, with_names
from orchestrator.data.columns import SCAN_ROWS, check_columns
from orchestrator.data.conversion import NUM_NAMED, Conversion, Group
from orchestrator.data.fields import LABEL_KEYS, columns_of, kind_of, wanted_columns
from orchestrator.data.file_columns import Columns, join_columns
from orchestrator.data.files import digest_file, digest_values, find_files
from orchestrator.data.hub_copy import fetch_hub
from orchestrator.data.readers import open_hub, open_saved, quiet, saved_folder
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.data.versions import ROWS
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
    wanted: tuple[str, ...] = ()
    """Columns that the section names for whatever kind of stage, which are those that are copied."""
    messages: str | None = None
    """That of them which holds conversations, whatever a stage reads."""
    columns: Columns | None = None
    """Those of all files; absent without files."""
    against: tuple[Source, ...] = ()
    """Sources whose evaluation rows it must share nothing with, as ``decontaminate`` names them."""

    @cached_property
    def digest(self) -> str:
        """Digest of the content: bytes of the files, keys that shape the rows, versions of the code.

        Where the files lie does not matter. A hub dataset is digested as its Arrow files. Sources whose
        evaluation rows are kept out of the training rows are content too.
        """
        keys = self.dataset.model_dump(mode="json", exclude=KEYS_WITHOUT_CONTENT)
        against = [other.digest for other in self.against]
        content: dict[str, Any] = {"content": list(self.content), "against": against}
        if self.groups and self.left_out()[0]:
            # A record may be left out for a value of any column that is copied, whichever a stage reads.
            content["copied"] = self.wanted
        return digest_values({"versions": ROWS, "keys": keys, **content})

    @property
    def files(self) -> dict[str, str]:
        """Digests by path of the files that hold it, where they are known by one."""
        paths = [str(path) for group in self.groups for path in group.files]
        if isinstance(self.dataset, SavedDataset):
            folder = Path(self.dataset.path).expanduser().absolute()
            parts = (entry.rpartition(" ") for entry in self.content)
            return {str(folder / name): digest for name, _, digest in parts}
        return dict(zip(paths, self.content, strict=True)) if paths else {}

    def without_labels(self) -> Source:
        """The same rows, read without their labels."""
        return self.with_section(self.dataset.model_copy(update=dict.fromkeys(LABEL_KEYS)))

    def with_section(self, dataset: Dataset) -> Source:
        """The same content, read by other keys."""
        return replace(self, dataset=dataset)

    def evaluated(self) -> tuple[Source, ...]:
        """The same source for its evaluation rows' texts alone, which no other source has a part in.

        Once for each way to read them: a row whose second text is missing is skipped where pairs are read,
        and may be held out where texts are.
        """
        section = self.without_labels().dataset.model_copy(update={"decontaminate": None})
        skips_labels = self.dataset.label_column is not None and self.dataset.on_bad_row == "skip"
        if skips_labels or self.dataset.text_pair_column is not None:
            # A stage that skips rows without a label, or reads no pairs, keeps other rows than are kept here.
            section = section.model_copy(update={"max_rows": None, "near_duplicates": None})
        views = [section]
        if "text_pair" in columns_of(section):
            views.append(section.model_copy(update={"text_pair_column": None}))
        return tuple(replace(self, dataset=view, against=()) for view in views)

    def check_columns(self) -> None:
        """Refuse a source that lacks a column which its section names.

        Raises:
            DataError: Naming the columns that there are.
        """
        check_columns(self.name, self.dataset, self.open())

    def place_of(self, number: int) -> str:
        """Where a row stands, for messages: its file, its first line there and its number.

        The file is read up to it.
        """
        for group in self.groups:
            conversion = self.conversion(group)
            report = conversion.report(self.schema)
            for path, num_rows in zip(group.files, report.num_rows, strict=True):
                if number < num_rows:
                    place = conversion.place_in(path, number)
                    row = f"row {number}{' of those that can be read' if report.num_left_out else ''}"
                    return f"{path}: {f'{place}, ' if place else ''}{row} (counted from 0)"
                number -= num_rows
        return f"row {number} (counted from 0)"

    def open(self) -> Any:
        """All rows and columns, as a map-style, memory-mapped ``datasets.Dataset``.

        Raises:
            DataError: It cannot be read.
        """
        with quiet():
            if isinstance(self.dataset, HubDataset):
                return open_hub(self.name, self.dataset, self.cache_dir)
            if isinstance(self.dataset, SavedDataset):
                return open_saved(self.name, self.dataset)
            assert self.columns is not None
            rows = join([self.conversion(group).open(self.schema) for group in self.groups])
            return with_names(rows, self.columns.names)

    def head(self) -> Any:
        """The first rows."""
        rows = self.open()
        return rows.select(range(min(len(rows), SCAN_ROWS)))

    def left_out(self) -> tuple[int, list[tuple[str, str]]]:
        """How many records of its files cannot be read and were left out; place and problem of the first."""
        count, named = 0, list[tuple[str, str]]()
        for group in self.groups:
            report = self.conversion(group).report(self.schema)
            count += report.num_left_out
            named += [(f"{group.files[bad.file]}: {bad.place}", bad.problem) for bad in report.left_out]
        return count, named[:NUM_NAMED]

    def is_empty(self) -> str:
        """What to say of a source without rows."""
        text = f"datasets.{self.name}: the corpus is empty: 0 rows in {_place(self.dataset)}, expected text."
        count, named = self.left_out()
        if not count:
            return text
        place, problem = named[0]
        return f"{text} {count} records that cannot be read are skipped, first {place}: {problem}."

    @property
    def schema(self) -> Any:
        """Of the columns that are copied."""
        assert self.columns is not None
        return self.columns.schema

    def conversion(self, group: Group) -> Conversion:
        """What turns a group of its files into Arrow."""
        return Conversion(self.name, self.dataset, self.cache_dir, group, self.wanted, self.messages)


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
            content = fetch_hub(name, dataset, cache_dir)
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
    source = Source(
        name,
        dataset,
        cache_dir,
        tuple(content),
        tuple(groups),
        wanted_columns(dataset),
        dataset.messages_column,
    )
    found = zip(
        map(_files_text, groups), tasks.map(_look, [(source, group) for group in groups]), strict=True
    )
    columns = join_columns(name, found, or_json=kind_of(dataset) == "json")
    if columns.names and not columns.schema.names:
        check_columns(name, dataset, with_names(None, columns.names))
    # Without a column there is no record, and a copy of no rows still reports those that are bad.
    source = replace(source, columns=columns if columns.names else Columns((), text_schema(["text"])))
    for _ in tasks.map(_convert, [(source, group) for group in groups]):
        pass
    if not columns.names:
        raise DataError(source.is_empty())
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


def _look(work: tuple[Source, Group]) -> Columns:
    """Find a group's columns and their types."""
    source, group = work
    return source.conversion(group).look()


def _convert(work: tuple[Source, Group]) -> None:
    """Make a group's Arrow copy."""
    source, group = work
    with quiet():
        source.conversion(group).make(source.schema)


def _files_text(group: Group) -> str:
    """A group's files, for messages."""
    first, count = group.files[0], len(group.files)
    return str(first) if count == 1 else f"{first} and {count - 1} files after it"


def _place(dataset: Dataset) -> str:
    """Where the section says its data lies, for messages."""
    if isinstance(dataset, HubDataset | SavedDataset):
        return dataset.path
    if isinstance(dataset, PackageDataset):
        return f"{dataset.distribution}: {dataset.file}"
    return dataset.files if isinstance(dataset.files, str) else ", ".join(dataset.files)
