"""A rehearsed run ends, also where nobody notices its fault."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launchers import rehearsal
from launchers.rehearsed_faults import FAULTS, Fault
from launchers.rehearsed_run import OverdueError, RehearsedRun
from launchers.run_directory import only_driver
from orchestrator.errors import LaunchError, PlanError
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved, parse_resolved
from orchestrator.tracking.events import append_event, read_json_lines
from tests.unit.launchers.test_run_directory import make_job


class Sleeper(RehearsedRun):
    """A run whose driver does nothing for a minute."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.open()
        self.process = subprocess.Popen(["sleep", "60"])
        return self.process


def test_a_start_that_takes_too_long_is_ended_and_nothing_of_ray_is_left(tmp_path: Path) -> None:
    run = Sleeper(make_job(), "hang", tmp_path, 0.2)
    (run.open().root / "ray-x1y2").mkdir()
    with pytest.raises(OverdueError, match="0 s"):
        run.run()
    assert run.process.poll() is not None
    assert list(run.layout.root.iterdir()) == []
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

    def meet(run: RehearsedRun, *others: object) -> int:
        for event in events:
            append_event(run.open().events, event, stage="pretrain", rank=0, seconds=1.0, phase="data")
        return run.run()

    monkeypatch.setattr(rehearsal, "FAULTS", {"hang": Fault("frozen", meet)})
    stage = make_job().stages[-1]
    finding = rehearsal._rehearse_one("hang", run.job, stage, run, run)  # type: ignore[arg-type]
    assert not finding.ok
    assert finding.note == f"{expected} of a start (files in {run.layout.root})"


@pytest.mark.parametrize("purpose", ["reference", *FAULTS])
def test_a_job_with_the_longest_name_has_runs_of_its_own(purpose: str, tmp_path: Path) -> None:
    longest = ["n" * 63 + last for last in "ab"]
    runs = [RehearsedRun(make_job().model_copy(update={"name": name}), purpose, tmp_path) for name in longest]
    for run in runs:
        parse_resolved(dump_resolved(run.job), "the copy")
        assert run.job.name.startswith("n")
        assert run.job.name.endswith(f".rehearsal-{purpose}")
    assert runs[0].layout.root != runs[1].layout.root
    assert RehearsedRun(make_job(), purpose, tmp_path).job.name == f"job.rehearsal-{purpose}"


class Healthy(RehearsedRun):
    """A run whose driver ends at once, with success."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.open()
        return subprocess.Popen(["true"])


@pytest.mark.parametrize("fault", ["kill-rank", "kill-all", "corrupt", "preempt"])
def test_a_fault_that_did_not_happen_is_a_failed_line(fault: str, tmp_path: Path) -> None:
    run = Healthy(make_job(), fault, tmp_path, 20.0)
    stage = make_job().stages[-1]
    finding = rehearsal._rehearse_one(fault, run.job, stage, run, run)  # type: ignore[arg-type]
    assert not finding.ok
    assert finding.note.startswith("the fault did not happen before the run was at its end (files in ")


def test_an_elastic_run_meets_its_fault_at_a_rank_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(resources={"num_workers": {"min": 1, "max": 4}})
    met: list[int] = []

    def meet(run: RehearsedRun, job: Job, *others: object) -> int:
        assert run.job.resources.is_elastic
        met.append(job.resources.num_workers)
        return 1

    def run(self: RehearsedRun) -> int:
        append_event(self.open().stage("pretrain").ledger, "", steps=[0, 12], world_size=2)
        return 0

    monkeypatch.setattr(RehearsedRun, "run", run)
    monkeypatch.setattr(rehearsal, "FAULTS", {"first": Fault("", meet), "second": Fault("", meet)})
    findings = rehearsal.rehearse(job, None, ["first", "second"], tmp_path, lambda line: None)
    assert met == [2, 2]
    assert [finding.ok for finding in findings] == [False, False]


QUICK_DRIVER = """
import signal, sys
from pathlib import Path
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker
from orchestrator.train.rehearsed import clock_for

layout = RunLayout(Path(sys.argv[1]))
layout.stop_request.unlink(missing_ok=True)
signal.signal(signal.SIGTERM, lambda *arguments: layout.stop_request.touch())
clock = clock_for(layout, "pretrain", 0, 0)
tracker = JSONLTracker(layout.stage("pretrain").metrics, resume_step=0)
for step in range(12):
    clock.enter("data")
    clock.enter("compute" if step else "first_step")
    if layout.stop_request.exists():
        append_event(layout.events, "run_stopped", step=step)
        sys.exit(75)
    tracker.log(step + 1, {"train/loss": 1.0})
append_event(layout.events, "run_finished")
"""


class Quick(RehearsedRun):
    """A run whose steps take no time."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.open().stage("pretrain").root.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", QUICK_DRIVER, str(self.layout.root)])


@pytest.mark.parametrize("fault", ["preempt", "resize", "switch-strategy"])
def test_a_stop_from_outside_finds_the_quickest_job_at_its_step(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Quick(make_job(), fault, tmp_path, 50.0)
    monkeypatch.setattr(RehearsedRun, "changed", lambda self, changes: run)
    assert FAULTS[fault].meet(run, run.job, {}) == 0
    ends = [event for event in read_json_lines(run.layout.events) if event["event"].startswith("run_")]
    assert [(end["event"], end.get("step")) for end in ends] == [("run_stopped", 6), ("run_finished", None)]


def test_a_second_rehearsal_of_a_job_is_refused_and_leaves_the_first_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[str] = []

    def run(self: RehearsedRun) -> int:
        append_event(self.open().stage("pretrain").ledger, "", steps=[0, 12], world_size=1)
        if not refusals:
            refusals.append("not refused")
            with pytest.raises(LaunchError) as refused:
                rehearsal.rehearse(make_job(), None, [], tmp_path, lambda line: None)
            refusals.append(str(refused.value))
        return 0 if self.layout.stage("pretrain").ledger.exists() else 1

    monkeypatch.setattr(RehearsedRun, "run", run)
    assert rehearsal.rehearse(make_job(), None, [], tmp_path, lambda line: None) == []
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    assert refusals[1] == (
        f"{tmp_path / 'job'}: already being rehearsed by {owner}; wait for its end, or give this one another"
        " --runs-dir or another name (--set name=NAME)"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_a_runs_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(PlanError, match=r"rehearsals cannot be made: Not a directory\. Name a"):
        rehearsal.rehearse(make_job(), None, [], tmp_path / "runs", lambda line: None)


def test_the_folder_of_a_driver_that_outlived_its_rehearsal_is_not_removed(tmp_path: Path) -> None:
    run = RehearsedRun(make_job(), "reference", tmp_path)
    with only_driver(run.open()), pytest.raises(LaunchError, match=f"by process {os.getpid()} on .*cancel"):
        run.remove()
    assert run.layout.driver_lock.exists()
    run.remove()
    assert not run.layout.root.exists()
