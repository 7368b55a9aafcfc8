"""What a run directory says about its run; reads files alone, and none of torch, Ray or the network.

A run's state is its last event, except that a start without an end is ``running`` only while the
driver still holds its lock, and ``interrupted`` otherwise.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launchers.stage_news import DAMAGED, WAITING
from launchers.verdicts import COMPARED, STOPPED_EARLY, lost_by, verdict_text
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import newest_step
from orchestrator.errors import LaunchError
from orchestrator.tracking.accounting import account
from orchestrator.tracking.events import read_events

ENDS = {"run_finished": "finished", "run_stopped": "stopped", "run_failed": "failed"}
SETTING_UP = {"stage_preparing": "preparing", "stage_starting": "starting", WAITING: "waiting for room"}
"""States of a stage that has no workers yet, by the event with which they begin."""
# Longer than any line of metrics, so that the last whole line is always in it.
TAIL_BYTES = 2**16
NUM_NAMED = 10


class UnknownRunError(LaunchError):
    """No such run, or nothing of it to show."""

    exit_code = 2


def find_run(run: str, runs_dir: Path) -> Path:
    """The directory of a run, given as a name under ``runs_dir`` or as a path.

    Raises:
        UnknownRunError: There is none; the message lists the runs of a sweep of this name, or the nearest
            names.
    """
    is_name = os.sep not in run and run not in ("", ".", "..")
    if is_name and _is_run(runs_dir / run):
        return runs_dir / run
    if _is_run(Path(run)):
        return Path(run)
    if swept := sweep_runs(run, runs_dir):
        names = [path.name for path in swept]
        known = ", ".join(names[:NUM_NAMED]) + (f" to {names[-1]}" if len(names) > NUM_NAMED else "")
        raise UnknownRunError(f"'{run}' is a sweep; give one of its runs instead: {known}")
    if not is_name:
        raise UnknownRunError(f"'{run}' is not a run directory: it has no job.yaml or events.jsonl")
    import difflib

    names = [path.name for path in list_runs(runs_dir)]
    near = difflib.get_close_matches(run, names, n=3)
    if near:
        hint = "Did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    else:
        hint = f"It has {', '.join(names[:NUM_NAMED])}." if names else "It has no runs yet."
    raise UnknownRunError(f"no run is called '{run}' under '{runs_dir}'. {hint}")


def runs_dir_flag(runs_dir: Path) -> str:
    """`` --runs-dir FOLDER`` for a command that is to find the runs there; empty where it would anyway."""
    is_default = "ORCHESTRATOR_RUNS_DIR" not in os.environ and runs_dir.resolve() == Path("runs").resolve()
    return "" if is_default else f" --runs-dir {shlex.quote(str(runs_dir))}"


def list_runs(runs_dir: Path) -> list[Path]:
    """Directories of the runs under ``runs_dir``, by name."""
    if not runs_dir.is_dir():
        return []
    return sorted(path for path in runs_dir.iterdir() if path.name[0] != "." and _is_run(path))


def sweep_runs(sweep: str, runs_dir: Path) -> list[Path]:
    """Directories of the runs of a sweep, given as ``find_run`` takes a run; none: there is no such sweep.

    Runs begin in order, and each was written a job file: a run that is called ``gpt-2`` is none of ``gpt``.
    """
    path = Path(sweep) if os.sep in sweep else runs_dir / sweep
    if sweep in ("", ".", "..") or not os.path.isdir(path.parent):
        return []
    numbered = {}
    for found in path.parent.glob(f"{glob.escape(path.name)}-*"):
        number = found.name.removeprefix(f"{path.name}-")
        if number.isdecimal() and RunLayout(found).submitted_job.is_file():
            numbered[int(number)] = found
    return [numbered[number] for number in sorted(numbered)] if 0 in numbered else []


def find_all(run: str, runs_dir: Path) -> list[Path]:
    """The directory of a run, or those of a sweep's runs; ``UnknownRunError`` where there is neither.

    Of a sweep without the runs that have not begun, unless none has.
    """
    swept = sweep_runs(run, runs_dir)
    swept = [path for path in swept if RunLayout(path).job.is_file()] or swept
    try:
        run_dir = find_run(run, runs_dir)
    except UnknownRunError:
        if not swept:
            raise
        return swept
    # One that was submitted as one job has a directory of its own, and no stages.
    return swept if swept and not _stage_kinds(RunLayout(run_dir), []) else [run_dir]


def run_status(run_dir: Path) -> dict[str, Any]:
    """``{name, state, problem, reason, seconds, stages: [...]}`` of one run.

    A stage is ``{name, state, step, saved_step, metrics, damaged}``: ``step`` is the last that was logged or
    saved, whichever is later, and ``None`` of a stage that does not train; ``saved_step`` that of the newest
    checkpoint, ``damaged`` the checkpoints that were set aside, ``{step, problem, kept_as}``, while they are
    there. ``problem`` is why a failed run failed,
    ``reason`` why one of a sweep was stopped early, and else ``None``; ``seconds`` is where its time went.
    """
    layout = RunLayout(run_dir)
    recorded = list(read_events(layout.events))
    state, lost = run_state(layout, recorded), lost_by(recorded)
    # A sweep writes its comparisons beside what the driver and its workers do.
    events = [event for event in recorded if event["event"] != COMPARED]
    stages = []
    for name, kind in _stage_kinds(layout, events).items():
        stage = layout.stage(name)
        (step, metrics), saved_step = _progress(stage), newest_step(stage.checkpoints)
        steps = [found for found in (step, saved_step) if found is not None and kind == "train"]
        stages.append(
            {
                "name": name,
                "state": _stage_state(stage, events, state),
                "step": max(steps, default=None),
                "saved_step": saved_step,
                "metrics": metrics,
                "damaged": _damaged(layout, events, name),
            }
        )
    problem = str(events[-1].get("message")) if state == "failed" else None
    name = run_dir.resolve().name
    return {
        "name": name,
        "state": state,
        "problem": problem,
        "reason": verdict_text(lost) if lost is not None and state == STOPPED_EARLY else None,
        "seconds": account(events, last_written=None if state == "running" else _last_sign(layout, events)),
        "stages": stages,
    }


def _last_sign(layout: RunLayout, events: list[dict[str, Any]]) -> str | None:
    """When the workers of a run that was killed last wrote something; None of workers that are at work."""
    started = [str(event["stage"]) for event in events if event["event"] == "stage_started"]
    if not started or is_locked(layout.stage(started[-1]).worker_lock):
        return None
    return layout.stage(started[-1]).last_written()


def run_state(layout: RunLayout, events: list[dict[str, Any]]) -> str:
    """``waiting``, ``running``, ``interrupted``, ``stopped``, ``stopped early``, ``failed``, ``finished``."""
    marks = [event["event"] for event in events if str(event.get("event")).startswith("run_")]
    if not marks:
        return "running" if is_locked(layout.driver_lock) else "waiting"
    if marks[-1] not in ENDS and is_locked(layout.driver_lock):
        return "running"
    state = ENDS.get(marks[-1], "interrupted")
    is_unfinished = state in ("stopped", "interrupted")
    return STOPPED_EARLY if is_unfinished and lost_by(events) is not None else state


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file ``path``; never makes the file."""
    import fcntl

    try:
        with path.open("rb") as lock:
            # Shared, because a lock for writing needs a writable file on NFS.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def request_stop(run_dir: Path) -> None:
    """Ask a running run to save its work and stop.

    Raises:
        UnknownRunError: It is not running.
    """
    layout = RunLayout(run_dir)
    if not is_locked(layout.driver_lock):
        state = run_status(run_dir)["state"]
        raise UnknownRunError(f"{run_dir} is not running: its state is '{state}'")
    layout.stop_request.write_text("cancel", encoding="utf-8")


def _is_run(path: Path) -> bool:
    layout = RunLayout(path)
    try:
        return any(path.is_file() for path in (layout.job, layout.events, layout.submission))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def stage_names(layout: RunLayout, events: list[dict[str, Any]]) -> list[str]:
    """Names in the order of the job, started or submitted; from the events where it cannot be read."""
    return list(_stage_kinds(layout, events))


def _stage_kinds(layout: RunLayout, events: list[dict[str, Any]]) -> dict[str, str]:
    """The same names, each with the stage's kind; ``train`` where the job cannot be read."""
    from orchestrator.errors import SpecError
    from orchestrator.spec.yaml12 import parse

    try:
        path = layout.job if layout.job.is_file() else layout.submitted_job
        job = parse(path.read_text(encoding="utf-8"), str(path), quoted=str, problems=[])
        if job.get("sweep"):
            # Its runs have stages.
            return {}
        return {str(stage["name"]): str(stage.get("kind", "train")) for stage in job["stages"]}
    except (OSError, UnicodeDecodeError, SpecError, KeyError, TypeError, AttributeError):
        return {str(event["stage"]): "train" for event in events if "stage" in event}


def _stage_state(stage: StageLayout, events: list[dict[str, Any]], run_state: str) -> str:
    if stage.result.is_file():
        return "finished"
    marks = [str(event.get("event")) for event in events if event.get("stage") == stage.root.name]
    is_last = bool(events) and events[-1].get("stage") == stage.root.name
    if run_state == "running" and is_last and marks[-1] in SETTING_UP:
        return SETTING_UP[marks[-1]]
    marks = [m for m in marks if m.startswith("stage_") and m not in ("stage_set_aside", *SETTING_UP)]
    if not marks:
        return "waiting"
    if marks[-1] == "stage_started":
        return run_state
    if marks[-1] == "stage_finished":
        # Its result was set aside, and it has not started over yet.
        return "waiting"
    return marks[-1].removeprefix("stage_")


def _damaged(layout: RunLayout, events: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """Checkpoints of a stage that were set aside and are still there; nobody asks remote storage for its."""
    return [
        {key: event[key] for key in ("step", "problem", "kept_as")}
        for event in events
        if event.get("event") == DAMAGED
        and event.get("stage") == stage
        and ("://" in str(event["kept_as"]) or (layout.root / str(event["kept_as"])).exists())
    ]


def read_result(stage: StageLayout) -> dict[str, Any]:
    """``result.json`` of a finished stage; empty where it is absent or damaged."""
    try:
        result = json.loads(stage.result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _progress(stage: StageLayout) -> tuple[int | None, dict[str, float]]:
    """The last step and the latest value of each metric."""
    result = read_result(stage)
    if result:
        return result.get("step"), dict(result.get("metrics", {}))
    metrics: dict[str, float] = {}
    for record in _tail_records(stage.metrics):
        metrics.update(record)
    step = metrics.pop("step", None)
    return (None if step is None else int(step)), metrics


def _tail_records(path: Path) -> Iterator[dict[str, Any]]:
    """The last records of a JSON-lines file; torn lines are left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
