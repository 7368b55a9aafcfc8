"""``orchestrator status``: one run, the runs of a sweep, or all runs."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers import runs, submitted
from launchers.cli_print import metrics_text, number_text, print_json, print_table
from launchers.stage_news import damage_text
from orchestrator.checkpoint.layout import RunLayout

# Of a run's time.
SHOWN_SHARE = 0.005


def status(options: Namespace) -> int:
    """Show how far a run is, or all runs."""
    if options.run is None:
        found = _statuses(runs.list_runs(options.runs_dir))
        if options.json:
            print_json({"runs": found})
        elif found:
            _print_runs(f"Runs in {options.runs_dir}", found)
        else:
            print(f"no runs in {options.runs_dir}")
        return 0
    swept_dirs = runs.sweep_runs(options.run, options.runs_dir)
    try:
        run_dir = runs.find_run(options.run, options.runs_dir)
    except runs.UnknownRunError:
        if not swept_dirs:
            raise
        # A sweep that was typed by hand has no run directory; its runs have theirs.
        name, swept = Path(options.run).name, _statuses(swept_dirs)
        if options.json:
            print_json({"name": name, "runs": swept})
        else:
            _print_runs(f"runs of the sweep {name}", swept)
        return 0
    run, *swept = _statuses([run_dir, *swept_dirs])
    if run["job"]:
        submitted.explain_ending(run_dir, run)
    is_sweep = bool(swept) and not run["stages"]
    if options.json:
        print_json({**run, "runs": swept} if is_sweep else run)
        return 0
    _print_run(run_dir, run)
    if is_sweep:
        _print_runs("its runs", swept)
    return 0


def _print_run(run_dir: Path, run: dict[str, Any]) -> None:
    """A table of its stages, where its time went, and what a person has to know."""
    rows = [
        (
            stage["name"],
            stage["state"],
            _step(stage),
            "-" if stage["saved_step"] is None else number_text(stage["saved_step"]),
            metrics_text(stage["metrics"]),
        )
        for stage in run["stages"]
    ]
    if rows:
        print_table(f"{run['name']}: {run['state']}", ("stage", "state", "step", "saved", "metrics"), rows)
    else:
        print(f"{run['name']}: {run['state']}")
    if run["job"] and run["job"]["state"]:
        print(f"{run['job']['launcher']} job {run['job']['job_id']}: {run['job']['state']}")
    if run["seconds"]:
        print(_time_text(run["seconds"]))
    for stage in run["stages"]:
        for damage in stage["damaged"]:
            print(f"[{stage['name']}] {damage_text(damage)}")
    if run["reason"]:
        print(f"its sweep stopped it early: {run['reason']}")
        parts = ("orchestrator", "run", RunLayout(run_dir).submitted_job, "--runs-dir", run_dir.parent)
        print(f"  {shlex.join(map(str, parts))}    (goes on with it)")
    if run["problem"]:
        print(run["problem"])


def _print_runs(title: str, found: Sequence[dict[str, Any]]) -> None:
    """A line for each run."""
    lines = [(run["name"], run["state"], _latest(run)) for run in found]
    print_table(title, ("run", "state", "stage"), lines)


def _statuses(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """What run directories say, and what the queues say of those that were submitted."""
    found = {run_dir: runs.run_status(run_dir) for run_dir in run_dirs}
    submitted.join_places(found)
    return list(found.values())


def _time_text(seconds: dict[str, float]) -> str:
    """``time: 1:02:03, compute 91%, save 2%``; kinds under half a percent are left out."""
    total = seconds["total"]
    minutes, rest = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    shares = ((kind, spent / total) for kind, spent in seconds.items() if kind not in ("total", "goodput"))
    parts = [f"{kind} {share:.0%}" for kind, share in shares if share >= SHOWN_SHARE]
    return ", ".join([f"time: {hours}:{minutes:02}:{rest:02}", *parts])


def _step(stage: dict[str, Any]) -> str:
    return "-" if stage["step"] is None else number_text(stage["step"])


def _latest(run: dict[str, Any]) -> str:
    """The last stage that began, and its step if it has any."""
    begun = [stage for stage in run["stages"] if stage["state"] != "waiting"]
    if not begun:
        return "-"
    name = str(begun[-1]["name"])
    return name if begun[-1]["step"] is None else f"{name} (step {_step(begun[-1])})"
