"""Faults on purpose: what ``orchestrator rehearse`` has a worker do to itself at a given step.

A run directory with a ``rehearsal.json`` is one of a rehearsal. The faults happen inside the workers, so that
they reach every machine of a cluster, and each happens once, however often the workers are started again.
For a fault that comes from outside, workers wait at its step, so that it finds them there.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from orchestrator.train.phases import Phase, PhaseClock

EVENT = "rehearsed_fault"
WAITING = "rehearsed_wait"
"""Not a fault yet: a worker is where one is to come from outside."""
FaultKind = Literal["kill", "hang", "freeze", "wait"]
# Long enough that whoever waits for it has given up.
FOR_EVER = 10**6
# Whoever is to ask for the stop looks every 0.1 s and its driver every 0.2 s, which on a cluster gives notice
# 10 s before it asks; what has not come by then does not come.
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class RehearsedFault:
    """What happens to which rank, and when."""

    kind: FaultKind
    """``kill``: SIGKILL to itself; ``freeze``: SIGSTOP to itself; ``hang``: sleep and never come back;
    ``wait``: go on once the run has been asked to stop."""
    rank: int | None
    """``None``: every rank."""
    stage: str
    step: int
    """Steps completed before it."""
    phase: Phase
    """The kind of work it happens in."""
    delay_seconds: float = 0.0
    """From the beginning of that work."""

    def write(self, layout: RunLayout) -> None:
        """Make the run of ``layout`` one of a rehearsal."""
        layout.rehearsal.write_text(json.dumps(asdict(self)), encoding="utf-8")


class FaultyClock(PhaseClock):
    """A clock that lets a fault happen when its time has come."""

    def __init__(self, fault: RehearsedFault, start_step: int, happen: Callable[[], None]) -> None:
        """Call ``happen`` when the fault's work begins, in a stage that starts after ``start_step`` steps."""
        super().__init__()
        self._fault = fault
        self._happen = happen
        # The wait for data begins each step, and one more comes at the end.
        self._step = start_step - 1

    def enter(self, phase: Phase) -> None:
        """Count steps, and let the fault happen."""
        super().enter(phase)
        self._step += phase == "data"
        # A step that is saved has been completed.
        completed = self._step + (phase == "save")
        if (phase, completed) != (self._fault.phase, self._fault.step):
            return
        if self._fault.delay_seconds:
            threading.Timer(self._fault.delay_seconds, self._happen).start()
        elif self._fault.kind == "wait":
            # Nobody takes it for a hang, nor as the measure of one.
            super().enter("save_wait")
            self._happen()
            super().enter(phase)
        else:
            self._happen()


def clock_for(layout: RunLayout, stage: str, rank: int, start_step: int) -> PhaseClock:
    """The clock of a rank: faulty in a rehearsal that has something in store for it."""
    if not layout.rehearsal.exists():
        return PhaseClock()
    fault = RehearsedFault(**json.loads(layout.rehearsal.read_text(encoding="utf-8")))
    if fault.stage != stage or fault.rank not in (None, rank):
        return PhaseClock()
    return FaultyClock(fault, start_step, lambda: _happen(fault, layout, rank))


def _happen(fault: RehearsedFault, layout: RunLayout, rank: int) -> None:
    """Let the fault happen, unless it has happened before."""
    if not _is_first_time(layout.rehearsal.with_suffix(f".rank-{rank}")):
        return
    event = WAITING if fault.kind == "wait" else EVENT
    append_event(layout.events, event, stage=fault.stage, rank=rank, kind=fault.kind, step=fault.step)
    if fault.kind == "wait":
        _wait_for(layout.stop_request)
    elif fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(FOR_EVER)


def _wait_for(path: Path) -> None:
    """Wait until there is a file, or nobody can be going to write it any more."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _is_first_time(marker: Path) -> bool:
    """Whether ``marker`` was not there yet; it is from now on."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
