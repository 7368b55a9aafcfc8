"""metrics.jsonl: one line per logged step, always written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.tracking.events import json_text, read_json_lines


class JSONLTracker:
    """Appends metrics to a file; a resumed stage first drops the lines of steps it is going to repeat."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open ``path``; lines of steps after ``resume_step`` belong to steps that no checkpoint holds."""
        kept = [record for record in read_json_lines(path) if record.get("step", 0) <= resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json_text(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(replacement, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json_text({"step": step, **metrics}) + "\n")

    def finish(self, outcome: Literal["finished", "stopped", "failed"]) -> None:
        """Close the file."""
        self._file.close()
