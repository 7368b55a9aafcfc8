"""A rehearsed run ends, also where nobody notices its fault."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launchers import rehearsal
from launchers.rehearsed_run import OverdueError, RehearsedRun
from orchestrator.tracking.events import append_event
from tests.unit.launchers.test_run_directory import make_job


class Sleeper(RehearsedRun):
    """A run whose driver does nothing for a minute."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.open()
        self.process = subprocess.Popen(["sleep", "60"])
        return self.process


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run = Sleeper(make_job(), "hang", tmp_path, 0.2)
    with pytest.raises(OverdueError, match="0 s"):
        run.run()
    assert run.process.poll() is not None
    assert isinstance(run.changed({"num_workers": 2}), RehearsedRun)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), "the fault did not happen within 0 s"),
        (("stage_started", "rehearsed_fault"), "not noticed within 0 s"),
        (("rehearsed_fault", "hang"), "noticed, but not at its end within 0 s"),
    ],
)
def test_a_fault_that_nobody_notices_is_a_failed_line(
    events: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Sleeper(make_job(), "hang", tmp_path, 0.2)

    def meet(*arguments: object) -> int:
        for event in events:
            append_event(run.open().events, event, stage="pretrain")
        return run.run()

    fault = rehearsal.FAULTS["hang"]
    monkeypatch.setitem(rehearsal.FAULTS, "hang", fault.__class__("frozen", meet))  # type: ignore[arg-type]
    stage = make_job().stages[-1]
    finding = rehearsal._rehearse_one("hang", run.job, stage, run, run)  # type: ignore[arg-type]
    assert not finding.ok
    assert finding.note == f"{expected} of a start (files in {run.layout.root})"
