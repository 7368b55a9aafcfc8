"""How commands print: one JSON document, a table in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from orchestrator.tracking.events import json_text


def print_json(document: Mapping[str, Any]) -> None:
    """Print ``document`` as the command's one JSON document."""
    print(json_text(document, indent=2))


@contextmanager
def apart_from_json(*, as_json: bool) -> Iterator[None]:
    """Send what libraries print, as Ray does of a process that dies, to stderr: stdout is the document's."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn in a terminal, aligned columns otherwise."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(title)
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  " + "  ".join(cells).rstrip())


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Metrics in one line, four significant digits each."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics.items()
    )


def number_text(value: float | None) -> str:
    """A count with separators; ``?`` when it is not known yet."""
    if value is None:
        return "?"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
