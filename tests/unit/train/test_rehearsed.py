"""Faults on purpose happen at their step, and a worker waits there for one that comes from outside."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from orchestrator.train import rehearsed
from orchestrator.train.phases import Phase, PhaseClock
from orchestrator.train.rehearsed import WAITING, RehearsedFault, clock_for

FAULT = RehearsedFault("wait", None, "pretrain", step=2, phase="compute")


def take_steps(clock: PhaseClock, steps: range) -> None:
    """What a loop tells a clock, up to the beginning of the last step's work."""
    for step in steps:
        clock.enter("data")
        clock.enter("compute" if step > steps.start else "first_step")


def phase_of(clock: PhaseClock) -> Phase:
    assert clock.current is not None
    return clock.current.phase


def test_no_step_passes_before_the_stop_that_is_waited_for(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    FAULT.write(layout)
    clock = clock_for(layout, "pretrain", 0, 0)
    take_steps(clock, range(2))
    assert not layout.events.exists()

    def third_step() -> None:
        clock.enter("data")
        clock.enter("compute")

    waiting = threading.Thread(target=third_step, daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert phase_of(clock) == "save_wait", "a watchdog would take it for a hang"
    assert [(event["event"], event["step"]) for event in read_json_lines(layout.events)] == [(WAITING, 2)]
    layout.stop_request.touch()
    waiting.join(10)
    assert not waiting.is_alive()
    assert phase_of(clock) == "compute"


def test_a_worker_that_is_started_again_does_not_wait_again(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    FAULT.write(layout)
    layout.stop_request.touch()
    take_steps(clock_for(layout, "pretrain", 0, 0), range(3))
    layout.stop_request.unlink()
    for start_step in (0, 2):
        take_steps(clock_for(layout, "pretrain", 0, start_step), range(start_step, 4))
    assert len(list(read_json_lines(layout.events))) == 1


def test_a_stop_that_never_comes_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsed, "WAIT_SECONDS", 0.1)
    FAULT.write(RunLayout(tmp_path))
    take_steps(clock_for(RunLayout(tmp_path), "pretrain", 0, 0), range(4))
