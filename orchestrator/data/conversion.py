"""A group of a source's files as an Arrow file, or the record that cannot be read.

What the job file does not name is not copied, and nothing is guessed: columns of text and CSV files are
texts; those of JSON files have the type that holds the values of all files, or are kept as JSON where none
does; those of Parquet files have their own. A folder is named by the files' digests and all else that shapes
it, and checked when a source is found: a copy that is damaged is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.arrow import (
    COPY_ROWS,
    join_schemas,
    load_schema,
    open_copy,
    parquet_schema,
    parquet_tables,
    require_columns,
    rows_writer,
    save_schema,
    schema_of,
    table_of,
    text_schema,
)
from orchestrator.data.cache import is_no_room, make_folder
from orchestrator.data.csv_records import read_header
from orchestrator.data.fields import kind_of
from orchestrator.data.file_columns import Columns, join_columns
from orchestrator.data.files import digest_file, digest_values
from orchestrator.data.readers import root_cause
from orchestrator.data.record import Record, UnreadableFileError
from orchestrator.data.records import FileFormat, read_records
from orchestrator.data.versions import CONVERSION
from orchestrator.errors import DataError
from orchestrator.spec.datasets import CSVDataset, Dataset, JSONDataset, TextDataset

# Bad records of a group of files that are written down.
NUM_NAMED = 100
# Rows that are read again to say on which line one stands: half a minute.
PLACED_ROWS = 1_000_000
# Files of a folder.
ROWS, REPORT = "rows.arrow", "report.json"
# 16 Mi: enough for a batch to cost little, and a few hundred MB as Python objects.
COPY_CHARS = 1 << 24


@dataclass(frozen=True)
class Group:
    """Consecutive files of a source that are converted together."""

    files: tuple[Path, ...]
    digests: tuple[str, ...]
    """Of the bytes of each file."""


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out because it cannot be read."""

    file: int
    """Number of its file in the group."""
    place: str
    """In the file."""
    problem: str


@dataclass
class Report:
    """What became of a group's files."""

    num_rows: list[int] = field(default_factory=list)
    """Rows of each file that can be read."""
    num_left_out: int = 0
    left_out: list[BadRecord] = field(default_factory=list)
    """The first of them."""


@dataclass(frozen=True)
class Conversion:
    """What is converted, and where to."""

    name: str
    """The dataset's name in the job file, for messages."""
    dataset: Dataset
    cache_dir: Path
    group: Group
    wanted: tuple[str, ...]
    """Columns that the job file names."""
    messages: str | None
    """That of them which holds conversations, kept as the JSON they are."""

    def look(self) -> Columns:
        """Which columns the files have, and of what types; JSON files are read for that, once.

        Raises:
            DataError: A file cannot be read.
        """
        if kind_of(self.dataset) == "json":
            folder = make_folder(self._folder("columns", {}), self._write_columns)
            names = json.loads((folder / "names.json").read_text("utf-8"))
            return Columns(tuple(names), load_schema(folder / "schema.arrow"))
        files = [path for path in self.group.files if path.stat().st_size]
        return join_columns(self.name, [(str(path), self._columns_of(path)) for path in files])

    def make(self, schema: Any) -> None:
        """Make the group's Arrow copy, unless it is there and whole.

        Args:
            schema: ``pyarrow.Schema`` of the columns that are copied.

        Raises:
            DataError: A file cannot be read.
        """
        make_folder(self._rows_folder(schema), lambda folder: self._write_rows(folder, schema))

    def open(self, schema: Any) -> Any:
        """The rows of the group as a ``datasets.Dataset``, from its Arrow copy."""
        folder = self._rows_folder(schema)
        if not folder.exists():
            self.make(schema)
        return open_copy(folder / ROWS)

    def report(self, schema: Any) -> Report:
        """What became of the files of an Arrow copy that was made."""
        found = json.loads((self._rows_folder(schema) / REPORT).read_text("utf-8"))
        left_out = [BadRecord(**record) for record in found.pop("left_out")]
        return Report(**found, left_out=left_out)

    def place_in(self, path: Path, number: int) -> str | None:
        """Where a row of those that can be read stands in its file; ``None``: without lines, or far down."""
        if kind_of(self.dataset) == "parquet" or number >= PLACED_ROWS:
            return None
        try:
            rows = (record for record in read_records(path, self._form()) if record.values is not None)
            record = next(islice(rows, number, None), None)
        except (OSError, UnreadableFileError):
            # It was changed since it was converted.
            return None
        return None if record is None else record.place

    def _form(self) -> FileFormat:
        dataset = self.dataset
        return FileFormat(
            kind_of(dataset),
            delimiter=dataset.delimiter if isinstance(dataset, CSVDataset) else ",",
            quoted=dataset.quoted if isinstance(dataset, CSVDataset) else True,
            sample_by=dataset.sample_by if isinstance(dataset, TextDataset) else "line",
            field=dataset.field if isinstance(dataset, JSONDataset) else None,
            wanted=self.wanted,
            typed=tuple(name for name in self.wanted if name != self.messages),
        )

    def _folder(self, room: str, more: dict[str, Any]) -> Path:
        key = {
            "version": CONVERSION,
            "form": asdict(self._form()),
            "on_bad_row": self.dataset.on_bad_row,
            "wanted": self.wanted,
            "content": self.group.digests,
        }
        return self.cache_dir / room / digest_values(key | more)

    def _rows_folder(self, schema: Any) -> Path:
        return self._folder("arrow", {"schema": schema.serialize().to_pybytes().hex()})

    def _columns_of(self, path: Path) -> Columns:
        """Columns of a text, CSV or Parquet file."""
        kind = kind_of(self.dataset)
        with self._reading(path):
            if kind == "parquet":
                return Columns(*parquet_schema(path, self.wanted))
            form = self._form()
            names = read_header(path, form.delimiter, quoted=form.quoted) if kind == "csv" else ["text"]
            return Columns(tuple(names), text_schema([name for name in names if name in self.wanted]))

    def _write_columns(self, folder: Path) -> None:
        """Find columns and types of JSON files."""
        names: dict[str, None] = {}
        schemas: list[Any] = []
        for file, path in enumerate(self.group.files):
            with self._reading(path):
                for batch in self._batches(path, Report()):
                    for values in batch:
                        names.update(dict.fromkeys(values))
                    found = schema_of(batch, self.wanted, self.messages)
                    if found not in schemas:
                        schemas.append(found)
            self._check_unchanged(file)
        (folder / "names.json").write_text(json.dumps(list(names)), "utf-8")
        save_schema(join_schemas(schemas, or_json=True), folder / "schema.arrow")

    def _write_rows(self, folder: Path, schema: Any) -> None:
        report = Report()
        with rows_writer(folder / ROWS, schema) as writer:
            for file, path in enumerate(self.group.files):
                report.num_rows.append(0)
                with self._reading(path):
                    for table in self._tables(path, schema, report) if path.stat().st_size else ():
                        writer.write_table(table)
                        report.num_rows[file] += len(table)
                self._check_unchanged(file)
            writer.finalize()
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=1), "utf-8")

    def _check_unchanged(self, file: int) -> None:
        """What was read is what was digested before: nothing else may lie under that digest.

        Raises:
            DataError: It is not.
        """
        path = self.group.files[file]
        if digest_file(path) != self.group.digests[file]:
            raise DataError(
                f"datasets.{self.name}: {path} was changed while it was read. Start again when"
                " nobody writes it."
            )

    def _tables(self, path: Path, schema: Any, report: Report) -> Iterator[Any]:
        """The rows of a file as ``pyarrow.Table``s."""
        if kind_of(self.dataset) == "parquet":
            yield from parquet_tables(path, schema)
            return
        for batch in self._batches(path, report):
            if kind_of(self.dataset) == "csv":
                require_columns(list(batch[0]), schema)
            yield table_of(batch, schema)

    def _batches(self, path: Path, report: Report) -> Iterator[list[Mapping[str, Any]]]:
        """The rows of a file, some at a time; bad records are counted in ``report``.

        Raises:
            DataError: A record cannot be read and is not to be skipped.
        """
        file, size = len(report.num_rows) - 1, 0
        batch: list[Mapping[str, Any]] = []
        for record in read_records(path, self._form()):
            if record.problem is not None:
                self._leave_out(path, record, file, report)
            if record.values is None:
                continue
            batch.append(record.values)
            size += record.size
            if len(batch) == COPY_ROWS or size >= COPY_CHARS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _leave_out(self, path: Path, record: Record, file: int, report: Report) -> None:
        if self.dataset.on_bad_row == "error":
            what_to_do = "Correct it, or set on_bad_row: skip."
            raise DataError(self._message(path, f"{record.place}: {record.problem}. {what_to_do}"))
        report.num_left_out += 1
        if len(report.left_out) < NUM_NAMED:
            report.left_out.append(BadRecord(file, record.place, str(record.problem)))

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Name the file in errors of the block."""
        try:
            yield
        except UnreadableFileError as error:
            raise DataError(self._message(path, f"{error}.")) from error
        except DataError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and is_no_room(error):
                raise
            raise DataError(self._message(path, f"{root_cause(error)}.")) from error

    def _message(self, path: Path, problem: str) -> str:
        kind = kind_of(self.dataset)
        return (
            f"datasets.{self.name}: {path} cannot be read as {kind}: {problem}"
            f" Expected {kind} files of one shape, in UTF-8."
        )
