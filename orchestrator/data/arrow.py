"""Arrow files: their columns and types, written and opened as ``datasets.Dataset``s.

Imports pyarrow and ``datasets`` where they are needed: workers, which only read prepared folders, do without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.record import UnreadableFileError

# 1000 rows: a few MB at a time, and far above the cost of a call.
COPY_ROWS = 1000


def text_schema(names: Iterable[str]) -> Any:
    """``pyarrow.Schema`` of columns of text."""
    import pyarrow

    return pyarrow.schema([(name, pyarrow.string()) for name in names])


def schema_of(rows: Sequence[Mapping[str, Any]], wanted: Iterable[str], as_text: str | None = None) -> Any:
    """``pyarrow.Schema`` of those columns of JSON rows that are wanted and there.

    Args:
        rows: Some rows.
        wanted: Names of columns.
        as_text: A column whose values are kept as the JSON text they are, whatever other rows hold; it has
            the type ``large_string``, which no other has.
    """
    import pyarrow

    fields = []
    for name in wanted:
        values = [row[name] for row in rows if name in row]
        if values:
            fields.append((name, pyarrow.large_string() if name == as_text else _type_of(values)))
    return pyarrow.schema(fields)


def _type_of(values: list[Any]) -> Any:
    """The type that holds all values; JSON where there is none, or none that could be joined with another."""
    import pyarrow

    try:
        found = pyarrow.array(values).type
    except (OverflowError, pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.json_()
    if "int64" in str(found) and _is_wide(values):
        return pyarrow.json_()
    return pyarrow.json_() if _hides_boolean(values, found) else found


def _is_wide(value: Any) -> bool:
    """Whether a whole number is there that the type of fractions, or of signed numbers, does not hold."""
    if isinstance(value, int):
        return not -(2**53) <= value <= 2**53
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(map(_is_wide, value))


def _hides_boolean(values: list[Any], kind: Any) -> bool:
    """Whether a boolean would become a number: after a fraction pyarrow takes ``true`` for 1.0."""
    from pyarrow import types

    if types.is_floating(kind):
        return any(isinstance(value, bool) for value in values)
    if types.is_list(kind):
        return _hides_boolean([item for value in values for item in value or ()], kind.value_type)
    if types.is_struct(kind):
        return any(
            _hides_boolean([(value or {}).get(field.name) for value in values], field.type) for field in kind
        )
    return False


def join_schemas(schemas: Sequence[Any], *, or_json: bool = False) -> Any:
    """Columns of all schemas, each with the type that holds the values of all.

    Args:
        schemas: ``pyarrow.Schema``s.
        or_json: What has no common type is kept as JSON.

    Raises:
        TypeError: Naming a column whose types have nothing in common, or whose ids mean other classes.
    """
    import pyarrow

    types: dict[str, Any] = {}
    class_names: dict[str, list[str]] = {}
    for schema in schemas:
        for column, names in _class_names(schema).items():
            if class_names.setdefault(column, names) != names:
                raise TypeError(f"column '{column}' has classes {class_names[column]} and {names}")
        for field in schema:
            known = types.setdefault(field.name, field.type)
            if known != field.type:
                types[field.name] = _join_types(field.name, known, field.type, or_json=or_json)
    metadata = next((schema.metadata for schema in schemas if schema.metadata), None)
    return pyarrow.schema(list(types.items()), metadata=metadata)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """What ids of the columns of a schema stand for, as ``datasets`` writes it into Parquet files."""
    written = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(written)["info"]["features"] if written else {}
    columns = {name: features[name] for name in schema.names if isinstance(features.get(name), dict)}
    inner = {name: column.get("feature", column) for name, column in columns.items()}
    return {name: found["names"] for name, found in inner.items() if "names" in found}


def _join_types(name: str, first: Any, second: Any, *, or_json: bool) -> Any:
    import pyarrow

    both = [pyarrow.schema([(name, kind)]) for kind in (first, second)]
    try:
        return pyarrow.unify_schemas(both, promote_options="permissive").field(0).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        if or_json:
            return pyarrow.json_()
        raise TypeError(f"column '{name}' holds {first} and {second}") from error


def save_schema(schema: Any, path: Path) -> None:
    """Write a ``pyarrow.Schema``."""
    path.write_bytes(schema.serialize().to_pybytes())


def load_schema(path: Path) -> Any:
    """The ``pyarrow.Schema`` that ``save_schema`` wrote."""
    import pyarrow

    return pyarrow.ipc.read_schema(pyarrow.py_buffer(path.read_bytes()))


def table_of(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """Rows of a text, JSON or CSV file as a ``pyarrow.Table``; a value that is absent is null."""
    import pyarrow

    def column(name: str, kind: Any) -> Any:
        values = [row.get(name) for row in rows]
        if kind in (pyarrow.json_(), pyarrow.large_string()):
            values = [None if value is None else json.dumps(value) for value in values]
        return pyarrow.array(values, kind)

    return pyarrow.table([column(field.name, field.type) for field in schema], schema=schema)


def parquet_schema(path: Path, wanted: Sequence[str]) -> tuple[tuple[str, ...], Any]:
    """All columns of a Parquet file, and the ``pyarrow.Schema`` of those that are wanted.

    Raises:
        UnreadableFileError: A column is there twice, or the library ``datasets`` has no such type, or did not
            write what says so.
    """
    import pyarrow
    from datasets import Features
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    twice = next((name for name in wanted if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UnreadableFileError(f"its column '{twice}' is there twice: rename one of them")
    features = {key: value for key, value in (schema.metadata or {}).items() if key == b"huggingface"}
    fields = [schema.field(name) for name in wanted if name in schema.names]
    plain = [
        field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
        for field in fields
    ]
    found = pyarrow.schema(plain, metadata=features)
    try:
        Features.from_arrow_schema(found)
        _class_names(found)
    except KeyError as error:
        raise UnreadableFileError(f"its metadata 'huggingface' lacks {error}") from error
    except ValueError as error:
        raise UnreadableFileError(str(error).rstrip(".")) from error
    return tuple(schema.names), found


def parquet_tables(path: Path, schema: Any) -> Iterator[Any]:
    """The rows of a Parquet file as ``pyarrow.Table``s of this schema.

    Raises:
        UnreadableFileError: A column is missing that other files have.
    """
    import pyarrow
    from pyarrow import parquet

    # Checksums are there where the writer wrote them; what they find is an error of this file.
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        if file.metadata.num_rows == 0:
            return
        require_columns(file.schema_arrow.names, schema)
        for batch in file.iter_batches(COPY_ROWS, columns=schema.names):
            table = pyarrow.Table.from_batches([batch]).select(schema.names)
            # Not more than needed: a struct with a key that is null everywhere cannot be cast to itself.
            columns = [
                column if column.type == field.type else column.cast(field.type)
                for column, field in zip(table.columns, schema, strict=True)
            ]
            yield pyarrow.table(columns, schema=schema)


def require_columns(names: Sequence[str], schema: Any) -> None:
    """Refuse a file that lacks a column.

    Raises:
        UnreadableFileError: Naming it.
    """
    missing = [name for name in schema.names if name not in names]
    if missing:
        raise UnreadableFileError(
            f"its columns are {list(names)}, and other files of the dataset have '{missing[0]}', too"
        )


def rows_writer(path: Path, schema: Any) -> Any:
    """A ``datasets.arrow_writer.ArrowWriter`` of one file, whose end of block completes it."""
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter

    return ArrowWriter(path=str(path), features=Features.from_arrow_schema(schema))


def copy_rows(rows: Any, path: Path) -> None:
    """Write all rows of a ``Dataset`` or an ``IterableDataset`` into an Arrow file."""
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=rows.features) as writer:
        for table in rows.with_format("arrow").iter(COPY_ROWS):
            writer.write_table(table)
        writer.finalize()


def open_copy(path: Path) -> Any:
    """The rows that ``copy_rows`` wrote, as a memory-mapped ``datasets.Dataset``."""
    import datasets

    return datasets.Dataset.from_file(str(path))


def join(parts: Sequence[Any]) -> Any:
    """The rows of all parts, one after the other."""
    import datasets

    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(list(parts))


def with_names(rows: Any, names: Sequence[str]) -> Any:
    """``rows`` with all columns of these names, in this order; messages can tell those that hold nothing.

    Args:
        rows: A ``datasets.Dataset``; ``None``: no rows.
        names: Those of ``rows`` and others.
    """
    import datasets
    import pyarrow

    known, num_rows = ([], 0) if rows is None else (rows.column_names, len(rows))
    if num_rows == 0 and names:
        return datasets.Dataset(pyarrow.table({name: pyarrow.nulls(0) for name in names}))
    others = [name for name in names if name not in known]
    if not others:
        return rows if rows is None else rows.select_columns(list(names))
    nulls = datasets.Dataset(pyarrow.table({name: pyarrow.nulls(num_rows) for name in others}))
    return datasets.concatenate_datasets([rows, nulls], axis=1).select_columns(list(names))
