"""What a stage's workers have written since the last look: metrics, and events worth a line."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.counts import counted
from orchestrator.tracking.events import read_events

# A message may hold a whole traceback of a library; a person wants its beginning.
SHOWN_CHARACTERS = 200
CONSEQUENCES = {
    "stop": "stopped before the update",
    "skip": "left out",
    "rollback": "back to the newest checkpoint, the rows since are left out",
}
"""By what the job says about an anomaly."""
DAMAGED = "checkpoint_damaged"
WAITING = "stage_waiting_for_room"


class StageNews:
    """News of one stage, from the moment it is made; what was there before is none.

    Workers that start write ``metrics.jsonl`` anew, without the lines of steps that they are going to
    repeat. Of such a file only steps after the one they started from are new.
    """

    def __init__(self, stage: str, run: RunLayout) -> None:
        """Everything written so far is known."""
        self.stage = stage
        self.is_finished = False
        """Whether it has ended as it should, with all its metrics written."""
        self._run = run
        self._path = run.stage(stage).metrics
        self._inode = _inode(self._path)
        self._offset = self._path.stat().st_size if self._inode is not None else 0
        self._num_events = sum(1 for _ in read_events(run.events))
        self._has_begun = False
        self._start_step: int | None = None
        self._is_failing = False

    def messages(self) -> Iterator[str]:
        """A line for each failure, damaged checkpoint, step left out and start from a checkpoint."""
        events = list(read_events(self._run.events))
        new, self._num_events = events[self._num_events :], len(events)
        for event in new:
            is_mine = event.get("stage") == self.stage
            if event["event"] == "stage_started":
                # Whoever dies between a result and its event starts the next stage when it comes back.
                self.is_finished = self._has_begun and not is_mine
                self._has_begun |= is_mine
            if not is_mine:
                continue
            if event["event"] == "stage_finished":
                self.is_finished = True
            if event["event"] == WAITING:
                yield "waits for room for its workers"
            if event["event"] == "stage_preempted":
                yield "nodes are taken away: saved, and goes on elsewhere"
            if event["event"] == "anomaly":
                action = str(event["action"])
                yield f"step {event['step']}: {event['what']}: {CONSEQUENCES.get(action, action)}"
            if event["event"] == "overflow":
                scales = f"loss scale {event['loss_scale']:.0f} -> {event['next_loss_scale']:.0f}"
                yield f"step {event['step']}: gradients overflowed float16: left out, {scales}"
            if event["event"] == "hang":
                what = f"rank {event['rank']} made no progress in {event['seconds']:g} s ({event['phase']})"
                yield f"{what}; stacks are in {self._run.stage(self.stage).log(0).parent}"
            if event["event"] == "rank_failed" and not self._is_failing:
                self._is_failing = True
                text = f"{event['error']}: {event['message']}".splitlines()[0][:SHOWN_CHARACTERS]
                yield f"rank {event['rank']} failed: {text}"
            if event["event"] == DAMAGED:
                yield damage_text(event)
            if event["event"] == "checkpoints_gone":
                recorded, step = counted(event["recorded"], "recorded step"), event.get("step", 0)
                if step:
                    yield f"of its {recorded} no checkpoint after step {step} is left: they are trained anew"
                else:
                    yield f"no checkpoint of its {recorded} is left: it begins anew"
            if event["event"] == "weights_chosen" and event["step"] != event["last_step"]:
                yield f"weights/ are those of step {event['step']}, its best evaluation"
            if event["event"] == "checkpoint_not_uploaded":
                text = str(event["problem"]).splitlines()[0][:SHOWN_CHARACTERS]
                yield f"checkpoints are here, but could not be copied: {text}; the next save tries again"
            if event["event"] == "training_started":
                is_restart = self._start_step is not None
                self._start_step, self._is_failing = int(event["step"]), False
                if is_restart:
                    yield f"restarted, goes on from step {self._start_step}"
                elif self._start_step:
                    yield f"goes on from step {self._start_step}"

    def metrics(self) -> list[dict[str, Any]]:
        """Logged steps, in order."""
        inode = _inode(self._path)
        if inode is None:
            return []
        if inode != self._inode:
            # Read at the next look: by then its writer has said from which step it starts.
            self._inode, self._offset = inode, 0
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, _, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + (1 if complete else 0)
        lines = [json.loads(line) for line in complete.splitlines()]
        return [line for line in lines if self._start_step is None or line["step"] > self._start_step]


def damage_text(event: Mapping[str, Any]) -> str:
    """What a person is told of a checkpoint that was set aside."""
    return (
        f"the checkpoint of step {event['step']} is damaged ({event['problem']}); it is kept as"
        f" {event['kept_as']}, and the newest good one, if any, is used"
    )


def _inode(path: Path) -> int | None:
    """Which file lies under ``path``; ``None``: none, or a folder, which the workers refuse."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino if stat.S_ISREG(found.st_mode) else None
