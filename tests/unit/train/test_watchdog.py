"""When a worker counts as hung, and what it does about it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.train.phases import Current, Phase, PhaseClock
from orchestrator.train.watchdog import EXIT_CODE, FIRST_SECONDS, Watchdog, limit_seconds


def test_a_unit_of_work_may_take_five_times_the_slowest_or_the_timeout_whichever_is_longer() -> None:
    assert limit_seconds(None, 30.0) == FIRST_SECONDS
    assert limit_seconds(None, 2 * FIRST_SECONDS) == 2 * FIRST_SECONDS
    assert limit_seconds(2.0, 30.0) == 30.0
    assert limit_seconds(7.0, 30.0) == 35.0


def test_the_clock_adds_up_units_by_kind_and_knows_the_slowest() -> None:
    clock = PhaseClock()
    clock.enter("data")
    clock.enter("compute")
    time.sleep(0.03)
    clock.enter("compute")
    clock.enter("save")
    assert clock.current == Current(3, "save")
    assert clock.slowest["compute"] >= 0.03
    taken = clock.take()
    assert list(taken) == ["data", "compute"]
    assert taken["compute"] >= 0.03
    assert clock.take() == {}


def hang(folder: Path, timeout_seconds: float | None) -> None:
    """One quick step, and one that takes 5 s."""
    clock = PhaseClock()

    def on_hang(phase: Phase, seconds: float) -> None:
        (folder / "taken").write_text(f"{phase} {seconds > 1}")

    with Watchdog(clock, timeout_seconds, folder / "stacks.txt", on_hang):
        clock.enter("compute")
        clock.enter("compute")
        time.sleep(5)


def watched(folder: Path, timeout_seconds: float | None) -> int:
    """Exit code of a process that hangs."""
    call = f"hang(Path({str(folder)!r}), {timeout_seconds})"
    code = f"from pathlib import Path; from tests.unit.train.test_watchdog import hang; {call}"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_a_process_that_hangs_leaves_its_stacks_and_ends(tmp_path: Path) -> None:
    assert watched(tmp_path, 1.0) == EXIT_CODE
    assert (tmp_path / "taken").read_text() == "compute True"
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "in hang" in stacks and "in _watch" in stacks


def test_without_a_timeout_nothing_is_a_hang(tmp_path: Path) -> None:
    assert watched(tmp_path, None) == 0


def test_sigquit_leaves_the_stacks_of_a_healthy_worker_and_changes_nothing(tmp_path: Path) -> None:
    with Watchdog(PhaseClock(), 30.0, tmp_path / "stacks.txt", lambda phase, seconds: None):
        os.kill(os.getpid(), signal.SIGQUIT)
        assert "test_watchdog.py" in (tmp_path / "stacks.txt").read_text()
