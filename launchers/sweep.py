"""The runs of a sweep, as many at once as there is room for, each with a driver of its own.

All share one Ray: the cluster that RAY_ADDRESS names, or one inside this machine. A run that fails ends no
other; the same command goes on with those that are not finished. A run that early stopping ends (``asha.py``)
is asked to save and stop, as by Ctrl-C, and is not started again.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from launchers.asha import Asha
from launchers.cli_print import apart_from_json, print_json
from launchers.preparation import StoppedError
from launchers.ray_notice import NODES_GONE, is_asked_to_make_room
from launchers.ray_session import check_this_machine, connected_address, count_runs, ray_session
from launchers.run import stoppable
from launchers.submission import write_submitted
from launchers.sweep_record import SweepRecord
from launchers.sweep_results import Outcome, print_results, results
from launchers.verdicts import STOPPED_EARLY, verdict_text
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.early_stopping import rule_of
from orchestrator.spec.job import Job
from orchestrator.spec.plan import fewest_workers, input_stage

POLL_SECONDS = 0.2
# What a driver ends with that was stopped and has saved.
STOPPED = 75
# A driver that was asked to stop before it could take the signal.
TERMINATED = -signal.SIGTERM
# Of what a failed driver printed.
SHOWN_LINES = 5
Look = Callable[[], Mapping[str, Mapping[str, Any]]]
"""The comparison by which a run has to end early, by the run's name."""


def run_sweep(job: Job, jobs: Sequence[Job], options: Namespace) -> int:
    """Run all runs of ``job``'s sweep to their ends and print what came of each; the command's exit code.

    Args:
        jobs: That of each run.
        options: Of ``run``.

    Returns:
        0: all have finished or were stopped early; 75: the sweep was stopped; 1: a run has failed.

    Raises:
        LaunchError: There is no Ray.
        PlanError: There is no room for a single run.
    """
    record = SweepRecord(RunLayout(options.runs_dir.resolve() / job.name))
    return record.run(lambda: _run_all(job, jobs, options, record))


def _run_all(job: Job, jobs: Sequence[Job], options: Namespace, record: SweepRecord) -> int:
    """The same, beside the sweep's own record."""
    assert job.sweep is not None
    for run in jobs:
        check_this_machine(fewest_workers(run))
    passed_on = [*(["--fresh"] if options.fresh else []), *(["--redo", options.redo] if options.redo else [])]
    runs_dir, at_once = options.runs_dir.resolve(), job.sweep.at_once
    drivers = Drivers(runs_dir, lambda path: _command(path, runs_dir, passed_on))
    compare = _comparing(job, jobs, options)

    def look() -> Mapping[str, Mapping[str, Any]]:
        if record.wants_stop():
            drivers.stop("cancel")
        return compare()

    def refuse_to_go_on() -> None:
        if record.wants_stop():
            drivers.stop("cancel")
        if drivers.is_stopped:
            raise StoppedError("nothing of the sweep has started")

    def work() -> dict[str, Outcome]:
        with ray_session():
            try:
                room = min(count_runs(run, _note, refuse_to_go_on) for run in jobs)
            except StoppedError:
                return {run.name: Outcome("waiting") for run in jobs}
            return drivers.run(jobs, min(room, at_once or room), look, connected_address())

    if is_asked_to_make_room():
        drivers.stop("a signal before the driver started")
    with apart_from_json(as_json=options.json):
        ends = stoppable(work, drivers.stop, drivers.kill)
    found = results(job, jobs, runs_dir)
    if options.json:
        runs = [
            {
                "name": run.name,
                "state": ends[run.name].state,
                "reason": ends[run.name].reason,
                "values": dict(point),
                "metrics": metrics,
            }
            for run, point, metrics in zip(jobs, job.sweep.points, found, strict=True)
        ]
        print_json({"runs": runs})
    else:
        print_results(job.sweep.points, ends, found)
    states = {end.state for end in ends.values()}
    if states & {"stopped", "waiting"}:
        print(f"Stopped, with the work saved. To go on:\n  {_command_to_go_on(options)}", file=sys.stderr)
    if "failed" in states:
        return 1
    return 0 if states <= {"finished", STOPPED_EARLY} else STOPPED


def _command_to_go_on(options: Namespace) -> str:
    """What to type for what is left; --fresh and --redo would start over what has begun since."""
    parts = ["orchestrator", "run", str(options.job)]
    for override in options.overrides:
        parts += ["--set", override]
    if str(options.runs_dir) != "runs":
        parts += ["--runs-dir", str(options.runs_dir)]
    return shlex.join(parts)


def _command(job_file: Path, runs_dir: Path, options: Sequence[str]) -> list[str]:
    """The driver of one run."""
    command = [sys.executable, "-m", "launchers.cli", "run", str(job_file)]
    return [*command, "--runs-dir", str(runs_dir), *options]


def _comparing(job: Job, jobs: Sequence[Job], options: Namespace) -> Look:
    """What tells of the runs that are to end early, as far as the sweep wants any to."""
    rule = rule_of(job)
    if rule is None:
        return dict
    name: str | None = rule.stage
    read = []
    while name is not None:
        read.append(name)
        name = input_stage(job.stage(name))
    anew = options.fresh or options.redo in read
    return Asha(rule, jobs, options.runs_dir.resolve(), anew=anew).look


def _note(message: str) -> None:
    print(f"[sweep] {message}", file=sys.stderr)


class Drivers:
    """Starts a driver for each run and waits for it."""

    def __init__(self, runs_dir: Path, command: Callable[[Path], Sequence[str]]) -> None:
        """Run drivers under ``runs_dir``.

        Args:
            command: Starts the driver of a job file.
        """
        self._runs_dir = runs_dir
        self._command = command
        self._alive: dict[str, subprocess.Popen[bytes]] = {}
        self._asked: set[str] = set()
        """Drivers that were asked to stop; asked twice they would end without saving."""
        self._asking = Lock()
        self.is_stopped = False
        self._environment = dict(os.environ)
        self._lost: dict[str, str] = {}
        """Runs that are stopped early, and why."""

    def run(self, jobs: Sequence[Job], at_once: int, look: Look, ray_address: str) -> dict[str, Outcome]:
        """How each run ended, by its name.

        Args:
            ray_address: Of the Ray that all use; without one each would start its own.
        """
        # The token of a Ray of this process' own is in the environment, too.
        self._environment = {**os.environ, "RAY_ADDRESS": ray_address}
        # One run must not have the nodes drained that others prepare data on.
        self._environment.pop(NODES_GONE, None)
        ends = dict.fromkeys((job.name for job in jobs), Outcome("waiting"))
        left = {job.name: job for job in jobs}
        try:
            while self._alive or (left and not self.is_stopped):
                for name in self._stop_early(look()):
                    if left.pop(name, None) is not None:
                        ends[name] = Outcome(STOPPED_EARLY, self._lost[name])
                while left and len(self._alive) < at_once and not self.is_stopped:
                    self._start(left.pop(next(iter(left))))
                time.sleep(POLL_SECONDS)
                for name, driver in list(self._alive.items()):
                    if driver.poll() is not None:
                        del self._alive[name]
                        ends[name] = self._ended(name, driver.returncode)
        finally:
            self.kill()
            for driver in self._alive.values():
                driver.wait()
        return ends

    def stop(self, signal_name: str) -> None:
        """Ask all drivers to save and stop."""
        self.is_stopped = True
        for name in list(self._alive):
            self._ask(name)

    def kill(self) -> None:
        """End all drivers at once."""
        for driver in list(self._alive.values()):
            driver.kill()

    def _ask(self, name: str) -> None:
        """Ask a driver to save and stop, once."""
        with self._asking:
            driver = self._alive.get(name)
            if driver is not None and name not in self._asked:
                self._asked.add(name)
                driver.terminate()

    def _stop_early(self, lost: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Stop the drivers of the runs that lost; those that had not lost before."""
        new = [name for name in lost if name not in self._lost]
        for name in new:
            self._lost[name] = verdict_text(lost[name])
            print(f"[{name}] {STOPPED_EARLY}: {self._lost[name]}", file=sys.stderr)
            self._ask(name)
        return new

    def _start(self, job: Job) -> None:
        layout = RunLayout(self._runs_dir / job.name)
        layout.root.mkdir(parents=True, exist_ok=True)
        write_submitted(job, layout)
        with self._output(job.name).open("ab") as output:
            # In a session of its own: Ctrl-C reaches it once, from here.
            self._alive[job.name] = subprocess.Popen(
                self._command(layout.submitted_job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        if self.is_stopped:
            # Asked to while this one was being started.
            self._ask(job.name)
        print(f"[{job.name}] started; its output is {self._output(job.name)}", file=sys.stderr)

    def _ended(self, name: str, code: int) -> Outcome:
        if name in self._lost and code in (STOPPED, TERMINATED):
            print(f"[{name}] saved", file=sys.stderr)
            return Outcome(STOPPED_EARLY, self._lost[name])
        state = {0: "finished", STOPPED: "stopped"}.get(code, "failed")
        if name in self._asked and code == TERMINATED:
            state = "stopped"
        print(f"[{name}] {state}", file=sys.stderr)
        if state == "failed":
            lines = self._output(name).read_text("utf-8", errors="replace").rstrip().splitlines()
            print("\n".join(f"[{name}]   {line}" for line in lines[-SHOWN_LINES:]), file=sys.stderr)
        return Outcome(state)

    def _output(self, name: str) -> Path:
        return self._runs_dir / name / "driver.log"
