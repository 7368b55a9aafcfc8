"""A sweep that was submitted as one job has a run directory that says how it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.runs import is_locked
from launchers.sweep_record import SweepRecord
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError, PlanError
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID

SWEEP = VALID + "sweep: {grid: {seed: [1, 2]}}\n"


def submitted(folder: Path) -> RunLayout:
    layout = RunLayout(folder / "tiny")
    layout.root.mkdir()
    layout.submitted_job.write_text(SWEEP)
    return layout


def state(console: Console, folder: Path) -> str:
    found = console("status", "tiny", "--runs-dir", folder, "--json").json()
    assert found["stages"] == []
    return str(found["state"])


@pytest.mark.parametrize(("code", "expected"), [(0, "finished"), (75, "stopped"), (1, "failed")])
def test_how_a_sweep_ended_is_its_state(code: int, expected: str, console: Console, tmp_path: Path) -> None:
    layout = submitted(tmp_path)
    layout.stop_request.write_text("of an earlier start")
    record = SweepRecord(layout)

    def work() -> int:
        assert state(console, tmp_path) == "running"
        assert not record.wants_stop()
        layout.stop_request.write_text("cancel")
        assert record.wants_stop()
        with pytest.raises(LaunchError):
            SweepRecord(layout).run(lambda: 0)
        return code

    assert record.run(work) == code
    assert state(console, tmp_path) == expected
    assert not is_locked(layout.driver_lock)
    shown = console("status", "tiny", "--runs-dir", tmp_path).output.splitlines()
    assert shown[0] == f"tiny: {expected}"


def test_why_a_sweep_could_not_begin_is_said(console: Console, tmp_path: Path) -> None:
    def work() -> int:
        raise PlanError("there is no room")

    with pytest.raises(PlanError):
        SweepRecord(submitted(tmp_path)).run(work)
    assert console("status", "tiny", "--runs-dir", tmp_path).output.splitlines()[-1] == "there is no room"


def test_a_sweep_typed_by_hand_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    record = SweepRecord(RunLayout(tmp_path / "tiny"))
    assert record.run(lambda: 75) == 75
    assert not record.wants_stop()
    assert list(tmp_path.iterdir()) == []
