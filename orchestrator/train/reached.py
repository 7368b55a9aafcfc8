"""How far a stage has come, as its files say, which a run may be writing meanwhile.

A run makes a checkpoint complete, removes older ones, and then records its steps in the ledger; the next save
waits for that, and the result comes after the last. So files are read in an order in which no run contradicts
itself, whenever it goes on or is killed:

1. checkpoints are listed, and the newest one's state is read, which says where the ledger ended when it was
   saved. One that is gone by then was removed for a newer one, and so its steps are recorded;
2. the result, and then the ledger: it has the steps of all that was listed, but for those of the newest
   checkpoint while their record is pending;
3. where the ledger is ahead of the list, checkpoints once more: what is recorded has its checkpoint, or a
   newer one that took its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.steps import StepFolder, list_steps
from orchestrator.errors import CheckpointError, DataError
from orchestrator.train.ledger import Record, read_ledger


@dataclass(frozen=True)
class Listed:
    """Checkpoints of a stage before its ledger is read."""

    folder: Path
    steps: list[StepFolder]
    newest: int
    """Step of the newest complete one; 0 without any."""
    recorded: int | None
    """Where the ledger ended when that was saved; ``None``: it does not say."""

    @classmethod
    def of(cls, folder: Path) -> Listed:
        """Those in ``folder``."""
        steps = list_steps(folder)
        complete = [found for found in steps if found.is_complete]
        if not complete:
            return cls(folder, steps, 0, None)
        try:
            recorded = seal.read_state(complete[-1].path).get("recorded")
        except (CheckpointError, OSError):
            recorded = None
        return cls(folder, steps, complete[-1].step, recorded)

    def is_followed_by(self, step: int) -> bool:
        """Whether a complete checkpoint of ``step`` or a later one is there by now."""
        before, found = None, self.steps
        # While a folder is listed, a run may remove what was found; then the next list is another one.
        while found != before:
            before, found = found, list_steps(self.folder)
            if any(step <= other.step and other.is_complete for other in found):
                return True
        return False


@dataclass(frozen=True)
class Reached:
    """How far a stage has come."""

    records: list[Record]
    """Those of the ledger."""
    recorded: int
    """Steps that the ledger speaks of."""
    newest: int
    """The step of the newest checkpoint or of the result, which the ledger has to come to."""
    is_pending: bool
    """The record of the newest checkpoint is the next thing that is written."""

    @classmethod
    def read(cls, layout: StageLayout, listed: Listed) -> Reached:
        """What the result, the ledger and the checkpoints say.

        Args:
            listed: The stage's checkpoints; listed before.

        Raises:
            DataError: The result or the ledger is damaged.
        """
        finished = _finished_step(layout)
        records = read_ledger(layout.ledger)
        recorded = max([record.steps[1] for record in records], default=0)
        newest = max(listed.newest, finished)
        if recorded > newest and listed.is_followed_by(recorded):
            newest = recorded
        # A result is written after the last record: with one nothing is pending, nor made up for.
        is_pending = finished <= recorded < newest and listed.recorded == recorded
        return cls(records, recorded, newest, is_pending)

    @property
    def note(self) -> str | None:
        """What a person should know that is no violation."""
        if not self.is_pending:
            return None
        first = self.recorded + 1
        steps = f"steps {first} to {self.newest}" if first < self.newest else f"step {first}"
        return f"the record of {steps} is pending; this run or its next start writes it"


def _finished_step(layout: StageLayout) -> int:
    """The last step, as ``result.json`` has it; 0 before the stage is finished.

    Raises:
        DataError: It does not say.
    """
    try:
        return int(json.loads(layout.result.read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return 0
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{layout.result} is damaged: {error!r}") from error
