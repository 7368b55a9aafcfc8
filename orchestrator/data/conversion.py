"""A group of a source's files as Arrow, or the line that cannot be read.

CSV files are first looked through for broken quotes, of which the library makes rows of its own; files of
text and JSON Lines are when the library refuses them. With ``on_bad_row: skip`` copies without the bad lines
are read instead, which lie in the cache under the digest of the files, with what was left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.cache import make_folder
from orchestrator.data.files import digest_values
from orchestrator.data.readers import read_files, root_cause
from orchestrator.data.sound_lines import BadLine, LineFormat, bad_lines, copy_sound, is_line_based
from orchestrator.errors import DataError
from orchestrator.spec.datasets import CSVDataset, Dataset, JSONDataset, PackageDataset, TextDataset

# Raised when other lines are called bad.
SOUND_VERSION = 1
# Bad lines of a group of files that are written down.
NUM_NAMED = 100


@dataclass(frozen=True)
class Group:
    """Consecutive files of a source that are converted together."""

    files: tuple[Path, ...]
    digests: tuple[str, ...]
    """Of the bytes of each file."""

    @property
    def digest(self) -> str:
        """Of the bytes of all files."""
        return digest_values({"content": list(self.digests)})

    def alone(self) -> Iterator[Group]:
        """Each file as a group of its own."""
        for path, digest in zip(self.files, self.digests, strict=True):
            yield Group((path,), (digest,))


@dataclass(frozen=True)
class LeftOut:
    """Lines of a group's files that were left out because they cannot be read."""

    count: int
    first: tuple[tuple[int, BadLine], ...] = ()
    """Number of the file in its group, and the line."""


@dataclass(frozen=True)
class Conversion:
    """What is converted, and where to."""

    name: str
    """The dataset's name in the job file, for messages."""
    dataset: Dataset
    cache_dir: Path
    group: Group

    def open(self) -> Any:
        """The rows of the group from its Arrow copy, made if it is not there; ``None``: it has no row.

        Raises:
            DataError: A file cannot be read.
        """
        kind, _ = reader_of(self.dataset)
        is_looked_through = kind == "csv" or self._sound_folder().exists()
        files = self._sound_files() if is_looked_through else list(self.group.files)
        try:
            return self._read(files)
        except Exception as error:
            if kind in ("text", "json") and not is_looked_through and self._sound_files() != files:
                return self.open()
            place, cause = str(files[0]), error
            if len(files) > 1:
                # The library seldom says which file it was.
                place, cause = next(self._unreadable(files), (files_text(self.group), error))
            raise DataError(self._message(place, f"{root_cause(cause)}.")) from cause

    def left_out(self) -> LeftOut:
        """Lines that ``open`` has left out."""
        report = self._sound_folder() / "lines.json"
        if not report.exists():
            return LeftOut(0)
        found = json.loads(report.read_text("utf-8"))
        first = tuple((file, BadLine(**line)) for file, line in found["first"])
        return LeftOut(sum(found["counts"]), first)

    def _read(self, files: list[Path]) -> Any:
        kind, options = reader_of(self.dataset)
        files = [path for path in files if path.stat().st_size]
        if not files:
            return None
        try:
            return read_files(kind, files, str(self.cache_dir / "arrow" / self.group.digest), options)
        except Exception as error:
            if "corresponds to no data" in str(error):
                return None
            raise

    def _unreadable(self, files: list[Path]) -> Iterator[tuple[str, Exception]]:
        """Files that cannot be read on their own, each with the reason."""
        for path in files:
            try:
                self._read([path])
            except Exception as error:
                yield str(path), error

    def _form(self) -> LineFormat:
        kind, options = reader_of(self.dataset)
        return LineFormat(kind, options.get("delimiter", ","), options.get("sample_by", "line"))

    def _sound_folder(self) -> Path:
        kind, options = reader_of(self.dataset)
        key = {"version": SOUND_VERSION, "kind": kind, "options": options, "content": self.group.digest}
        return self.cache_dir / "sound" / digest_values(key | {"on_bad_row": self.dataset.on_bad_row})

    def _sound_files(self) -> list[Path]:
        """The group's files, or copies of those with bad lines that are without them.

        Raises:
            DataError: A line cannot be read and is not to be skipped, or is a header.
        """
        folder = make_folder(self._sound_folder(), self._write_sound)
        counts = json.loads((folder / "lines.json").read_text("utf-8"))["counts"]
        return [
            folder / _copy_name(index) if count else path
            for index, (path, count) in enumerate(zip(self.group.files, counts, strict=True))
        ]

    def _write_sound(self, folder: Path) -> None:
        form = self._form()
        counts, first = [], list[tuple[int, dict[str, Any]]]()
        for index, path in enumerate(self.group.files):
            bad = bad_lines(path, form) if is_line_based(path, form) else iter(())
            named = list(islice(bad, NUM_NAMED))
            if named and (self.dataset.on_bad_row == "error" or named[0].is_header):
                raise DataError(self._bad_line_message(path, named[0]))
            if named:
                copy_sound(path, folder / _copy_name(index), form)
            counts.append(len(named) + sum(1 for _ in bad))
            first += [(index, asdict(line)) for line in named]
        report = {"counts": counts, "first": first[:NUM_NAMED]}
        (folder / "lines.json").write_text(json.dumps(report, indent=1), "utf-8")

    def _bad_line_message(self, path: Path, line: BadLine) -> str:
        what_to_do = "" if line.is_header else " Correct the line, or set on_bad_row: skip."
        return self._message(str(path), f"line {line.number}: {line.problem}.{what_to_do}")

    def _message(self, place: str, problem: str) -> str:
        kind, _ = reader_of(self.dataset)
        return (
            f"datasets.{self.name}: {place} cannot be read as {kind}: {problem}"
            f" Expected {kind} files of one shape, in UTF-8."
        )


def reader_of(dataset: Dataset) -> tuple[str, dict[str, Any]]:
    """The library's name of the format, and the options that the section sets."""
    kind = dataset.format if isinstance(dataset, PackageDataset) else dataset.source
    options: dict[str, Any] = {}
    if kind == "csv":
        # pandas would read the texts "NA", "null" and "None" as missing.
        options["keep_default_na"] = False
        # A first row with one field too many would else shift every column by one.
        options["index_col"] = False
    if isinstance(dataset, CSVDataset):
        options["delimiter"] = dataset.delimiter
    if isinstance(dataset, TextDataset):
        options["sample_by"] = dataset.sample_by
    if isinstance(dataset, JSONDataset) and dataset.field is not None:
        options["field"] = dataset.field
    return kind, options


def files_text(group: Group) -> str:
    """A group's files, for messages."""
    first, count = group.files[0], len(group.files)
    return str(first) if count == 1 else f"{first} and {count - 1} files after it"


def _copy_name(index: int) -> str:
    """The name of the copy of a group's file."""
    return f"{index:06d}"
