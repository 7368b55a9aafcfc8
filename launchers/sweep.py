"""The runs of a sweep, as many at once as there is room for, each with a driver of its own.

All share one Ray: the cluster that RAY_ADDRESS names, or one inside this machine. A run that fails ends no
other; the same command goes on with those that are not finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.cli_print import print_json, print_table
from launchers.ray_session import check_this_machine, count_runs, ray_session
from launchers.run import stoppable
from launchers.runs import read_result
from launchers.submission import write_submitted
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import Job
from orchestrator.spec.sweep import Sweep

POLL_SECONDS = 0.2
# What a driver ends with that was stopped and has saved.
STOPPED = 75
# Of what a failed driver printed.
SHOWN_LINES = 5


def run_sweep(sweep: Sweep, jobs: Sequence[Job], options: Namespace) -> int:
    """Run all jobs of a sweep to their ends and print what came of each; the command's exit code.

    Args:
        options: Of ``run``.

    Returns:
        0: all have finished; 75: the sweep was stopped; 1: a run has failed.

    Raises:
        LaunchError: There is no Ray.
        PlanError: There is no room for a single run.
    """
    for job in jobs:
        check_this_machine(job.resources)
    passed_on = [*(["--fresh"] if options.fresh else []), *(["--redo", options.redo] if options.redo else [])]
    drivers = _Drivers(options.runs_dir.resolve(), passed_on)

    def work() -> dict[str, str]:
        with ray_session():
            room = min(count_runs(job.resources, _note) for job in jobs)
            return drivers.run(jobs, min(room, sweep.at_once or room))

    states = stoppable(work, drivers.stop, drivers.kill)
    results = _results(jobs, options.runs_dir.resolve())
    if options.json:
        runs = [
            {"name": job.name, "state": states[job.name], "values": dict(point), "metrics": metrics}
            for job, point, metrics in zip(jobs, sweep.points, results, strict=True)
        ]
        print_json({"runs": runs})
    else:
        _print_results(sweep, states, results)
    if "failed" in states.values():
        return 1
    return 0 if set(states.values()) == {"finished"} else STOPPED


def _note(message: str) -> None:
    print(f"[sweep] {message}", file=sys.stderr)


def _results(jobs: Sequence[Job], runs_dir: Path) -> list[dict[str, float]]:
    """Metrics of each run by ``<stage> <metric>``: of the last stage that evaluates, else the last loss."""
    found = []
    for job in jobs:
        layout = RunLayout(runs_dir / job.name)
        metrics = {
            stage.name: read_result(layout.stage(stage.name)).get("metrics", {}) for stage in job.stages
        }
        for prefix in ("eval/", "train/loss"):
            last = next((name for name in reversed(metrics) if _of(prefix, metrics[name])), None)
            if last is not None:
                found.append({f"{last} {key}": value for key, value in _of(prefix, metrics[last]).items()})
                break
        else:
            found.append({})
    return found


def _of(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith(prefix)}


def _print_results(sweep: Sweep, states: dict[str, str], results: list[dict[str, float]]) -> None:
    """A line for each run: what it set, and what came of it."""
    keys = list(dict.fromkeys(key for point in sweep.points for key in point))
    names = list(dict.fromkeys(name for metrics in results for name in metrics))
    lines = [
        (
            name,
            state,
            *(json.dumps(point[key]) if key in point else "" for key in keys),
            *(f"{metrics[metric]:.6g}" if metric in metrics else "" for metric in names),
        )
        for (name, state), point, metrics in zip(states.items(), sweep.points, results, strict=True)
    ]
    print_table("runs of the sweep", ("run", "state", *keys, *names), lines)


class _Drivers:
    """Starts a driver for each run and waits for it."""

    def __init__(self, runs_dir: Path, options: Sequence[str]) -> None:
        self._runs_dir = runs_dir
        self._options = options
        self._alive: dict[str, subprocess.Popen[bytes]] = {}
        self._is_stopped = False

    def run(self, jobs: Sequence[Job], at_once: int) -> dict[str, str]:
        """How each run ended, by its name."""
        states = dict.fromkeys((job.name for job in jobs), "waiting")
        left = list(jobs)
        try:
            while self._alive or (left and not self._is_stopped):
                while left and len(self._alive) < at_once and not self._is_stopped:
                    self._start(left.pop(0))
                time.sleep(POLL_SECONDS)
                for name, driver in list(self._alive.items()):
                    if driver.poll() is not None:
                        del self._alive[name]
                        states[name] = self._ended(name, driver.returncode)
        finally:
            self.kill()
        return states

    def stop(self, signal_name: str) -> None:
        """Ask all drivers to save and stop."""
        self._is_stopped = True
        for driver in list(self._alive.values()):
            driver.terminate()

    def kill(self) -> None:
        """End all drivers at once."""
        for driver in list(self._alive.values()):
            driver.kill()

    def _start(self, job: Job) -> None:
        layout = RunLayout(self._runs_dir / job.name)
        layout.root.mkdir(parents=True, exist_ok=True)
        write_submitted(job, layout)
        command = [sys.executable, "-m", "launchers.cli", "run", str(layout.submitted_job)]
        with self._output(job.name).open("ab") as output:
            # In a session of its own: Ctrl-C reaches it once, from here.
            self._alive[job.name] = subprocess.Popen(
                [*command, "--runs-dir", str(self._runs_dir), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._is_stopped:
            # Asked to while this one was being started.
            self._alive[job.name].terminate()
        print(f"[{job.name}] started; its output is {self._output(job.name)}", file=sys.stderr)

    def _ended(self, name: str, code: int) -> str:
        state = {0: "finished", STOPPED: "stopped"}.get(code, "failed")
        print(f"[{name}] {state}", file=sys.stderr)
        if state == "failed":
            lines = self._output(name).read_text("utf-8", errors="replace").rstrip().splitlines()
            print("\n".join(f"[{name}]   {line}" for line in lines[-SHOWN_LINES:]), file=sys.stderr)
        return state

    def _output(self, name: str) -> Path:
        return self._runs_dir / name / "driver.log"
