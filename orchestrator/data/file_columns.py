"""Which columns the files of a source have, and of what types, all files together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.data.arrow import join_schemas
from orchestrator.errors import DataError


@dataclass(frozen=True)
class Columns:
    """What files hold, by column."""

    names: tuple[str, ...]
    """All that are there."""
    schema: Any
    """``pyarrow.Schema`` of those that the job file names."""


def join_columns(name: str, found: Iterable[tuple[str, Columns]], *, or_json: bool = False) -> Columns:
    """Columns of several files or groups together.

    Args:
        name: The dataset's name in the job file, for messages.
        found: Each with its place.
        or_json: Whether a column whose types have nothing in common is kept as JSON.

    Raises:
        DataError: Files have columns of types that have nothing in common.
    """
    joined, first = Columns((), join_schemas([])), ""
    for place, columns in found:
        try:
            schema = join_schemas([joined.schema, columns.schema], or_json=or_json)
        except TypeError as error:
            raise DataError(
                f"datasets.{name}: {place}: {error}, {first} the former. Give the column one type in all"
                " files, or make them two datasets."
            ) from error
        joined = Columns(tuple(dict.fromkeys([*joined.names, *columns.names])), schema)
        first = first or place
    return joined
