"""events.jsonl, the append-only record of a run; JSON lines read back; and files that are replaced whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def json_text(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that every parser reads: a metric that is not finite becomes ``null``.

    Source: RFC 8259, section 6: NaN and infinities are no numbers of JSON.
    """
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """``value`` with ``None`` in place of each float that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def time_now() -> str:
    """The current time as events have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


NUMBER = int | float
# What is read of events of these kinds, and is no event without.
FIELDS: dict[str, dict[str, Any]] = {
    "stage_started": {"stage": str},
    "training_started": {"stage": str, "step": int, "max_steps": int},
    "training_ended": {"stage": str, "step": int},
    "checkpoint": {"stage": str, "step": int},
    "checkpoint_damaged": {"stage": str, "step": int, "problem": str, "kept_as": str},
    "checkpoint_not_uploaded": {"problem": str},
    "checkpoints_gone": {"recorded": int},
    "weights_chosen": {"step": int, "last_step": int},
    "anomaly": {"step": int, "what": str, "action": str},
    "overflow": {"step": int, "loss_scale": NUMBER, "next_loss_scale": NUMBER},
    "rank_failed": {"stage": str, "rank": int, "error": str, "message": str},
    "hang": {"rank": int, "seconds": NUMBER, "phase": str},
    "compared": {"rule": dict, "stop": bool, "step": int, "value": NUMBER | None},
}


def append_event(path: Path, event: str, **fields: Any) -> None:
    """Append one event with the current time; one write, so that lines of several processes do not mix.

    What a writer that was killed has left of its line ends first: it is lost, and this event is not.
    """
    line = (json_text({"time": time_now(), "event": event, **fields}) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = b"\n" + line if is_torn else line
        # A disk that fills up takes the beginning of it, and says so of the rest.
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, and a crash loses neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file in order; a torn line (its writer was killed) is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


def read_event(line: str | bytes) -> dict[str, Any] | None:
    """The event of a line; ``None``: it is torn or damaged, and what it said is lost."""
    try:
        event = json.loads(line)
        for key in ("time", "counted_until"):
            if key in event or key == "time":
                datetime.fromisoformat(event[key])
        kind = event["event"]
        seconds = event.get("seconds", {})
        measured = seconds.values() if isinstance(seconds, dict) else [seconds]
        is_sound = isinstance(kind, str) and all(isinstance(value, int | float) for value in measured)
        fields = FIELDS.get(kind, {}).items() if is_sound else ()
        is_sound &= all(isinstance(event[key], type_) for key, type_ in fields)
        return event if is_sound else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a run in order; a torn or damaged line is left out."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            event = read_event(line)
            if event is not None:
                yield event
