"""What else than the ledger says how many workers took its steps, and which steps made no update.

Both change no row that is read, so no replay finds them out. Each checkpoint that is kept says it of the
steps that it was the first to hold, and so does its event, which outlives it. ``events.jsonl`` is read as it
was written, start by start: one that goes on from an earlier step takes back what was said of later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import StepFolder
from orchestrator.counts import counted
from orchestrator.errors import CheckpointError
from orchestrator.tracking.events import read_events
from orchestrator.train.ledger import Range, Record

WITNESSED = ("recorded", "world_size", "left_out")
"""What the event of a checkpoint repeats of its state."""


@dataclass(frozen=True)
class Witness:
    """What is said of the steps of one record."""

    name: str
    """Who says it, for messages."""
    world_size: int | None
    """``None``: it does not say, as those of earlier versions."""
    left_out: list[Range] | None

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> Witness:
        """From a checkpoint's state, or from its event."""
        left_out = fields.get("left_out")
        return cls(
            name,
            fields.get("world_size"),
            None if left_out is None else [(first, end) for first, end in left_out],
        )

    def contradiction(self, record: Record) -> str | None:
        """What the record says otherwise."""
        first, end = record.steps
        steps, found = f"steps {first + 1} to {end}", list(record.left_out)
        if self.world_size is not None and record.world_size not in (None, self.world_size):
            workers = counted(record.world_size or 0, "worker")
            return f"{steps} are recorded with {workers}, and {self.name} has {self.world_size}"
        if self.left_out not in (None, found):
            return f"of {steps} {found} are left out, and {self.name} has {self.left_out}"
        return None


Witnesses = Mapping[Range, list[Witness]]
"""By steps of a record."""


def find_witnesses(layout: StageLayout, checkpoints: list[StepFolder]) -> Witnesses:
    """All that there are of a stage.

    Args:
        checkpoints: Those of the stage, listed before the ledger was read.
    """
    found: dict[Range, list[Witness]] = {}
    for folder in checkpoints:
        # One that is damaged, or was removed meanwhile, says nothing here.
        with suppress(CheckpointError, OSError, KeyError, TypeError, ValueError):
            state = seal.read_state(folder.path)
            steps = int(state["recorded"]), folder.step
            found.setdefault(steps, []).append(Witness.of("their checkpoint", state))
    events = RunLayout(layout.root.parent).events
    for event in _last_saves(events, layout.root.name).values():
        with suppress(KeyError, TypeError, ValueError):
            steps = int(event["recorded"]), int(event["step"])
            found.setdefault(steps, []).append(Witness.of(f"their event in {events.name}", event))
    return found


def find_contradiction(record: Record, witnesses: Witnesses) -> str | None:
    """What a witness says otherwise than the record."""
    said = (witness.contradiction(record) for witness in witnesses.get(record.steps, ()))
    return next((contradiction for contradiction in said if contradiction is not None), None)


def _last_saves(events: Path, stage: str) -> dict[int, dict[str, Any]]:
    """By step, the event of the checkpoint that the stage last had."""
    saves: dict[int, dict[str, Any]] = {}
    for event in read_events(events):
        step = event.get("step")
        if event.get("stage") != stage or not isinstance(step, int):
            continue
        if event.get("event") == "training_started":
            saves = {saved: known for saved, known in saves.items() if saved <= step}
        elif event.get("event") == "checkpoint":
            saves[step] = event
    return saves


def unwitnessed(records: list[Record], witnesses: Witnesses) -> str | None:
    """What to say of records of which the ledger alone says these things."""
    ranges: list[Range] = []
    for record in records:
        said = witnesses.get(record.steps, [])
        is_known = any(one.world_size is not None for one in said) and any(
            one.left_out is not None for one in said
        )
        if is_known or record.world_size is None:
            continue
        first, end = record.steps
        ranges[-1:] = (
            [(ranges[-1][0], end)] if ranges and ranges[-1][1] == first else [*ranges[-1:], (first, end)]
        )
    if not ranges:
        return None
    shown = ", ".join(f"{first + 1} to {end}" for first, end in ranges[:3])
    more = f" and {len(ranges) - 3} more ranges" if len(ranges) > 3 else ""
    return (
        f"not proved of steps {shown}{more}: how many workers there were and which steps made no update,"
        " which the ledger alone says, without a checkpoint or an event"
    )
