"""Where a stage goes on in the datasets that a stage before it has read (``data.after``)."""

from __future__ import annotations

import json

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import DataError
from orchestrator.train.ledger import read_ledger


def read_begun(layout: StageLayout, after: str | None) -> tuple[dict[str, int], tuple[str, str] | None]:
    """Rows that each dataset had given when a prepared stage began.

    Args:
        after: The stage that it goes on after, in the same run directory.

    Returns:
        The rows; and the first dataset in which ``after`` has ended elsewhere, with what is wrong.
    """
    begun: dict[str, int] = json.loads(layout.inputs.read_text(encoding="utf-8")).get("begun", {})
    if after is None:
        return begun, None
    try:
        records = read_ledger(StageLayout(layout.root.with_name(after)).ledger)
    except DataError as error:
        return begun, (next(iter(begun)), str(error))
    ends = (records[-1].sources or {}) if records else {}
    for name, number in begun.items():
        found = ends.get(name, (0, None))[1]
        if found != number:
            problem = f"it begins with draw {number}, and stage '{after}' ended before draw {found}"
            return begun, (name, problem)
    return begun, None
