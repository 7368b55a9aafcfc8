"""What became of a submitted job: the record in its run directory, joined with what its place says.

The run directory knows a run from the moment its driver starts. Before that, and where the driver never
started, the place is asked: SLURM's queue, a Ray cluster's list of jobs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from launchers.base import PlaceState, RemoteLauncher, RestartingLauncher
from launchers.run_logs import has_stage_log
from launchers.runs import ENDS, is_locked, request_stop, runs_dir_flag
from launchers.submission_record import (
    Submission,
    events_since,
    held_record,
    last_mark,
    read_submission,
)
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError, OrchestratorError

Status = dict[str, Any]
# Each look asks the place, which other users ask as well.
POLL_SECONDS = 2
# Of what a driver printed that never began its run: a refusal is that long.
SHOWN_LINES = 8
# Looks at a job that was cancelled while it waited: a place may first have to start what ends it.
NUM_LOOKS, LOOK_SECONDS = 10, 1
# In the places' own words for a job that somebody has ended.
CANCELLED = ("CANCELLED", "STOPPED")
NOTED = "The run is noted as cancelled, and its driver ends at once where it starts from now on"
# What of its options tells a place's queues apart; of one that is not listed, any option may.
QUEUE_OPTIONS: Mapping[str, Sequence[str]] = {"slurm": (), "ray": ("address",), "kuberay": ("namespace",)}


def join_places(statuses: Mapping[Path, Status]) -> None:
    """Add to each status, by run directory, what its place says; each place is asked once.

    ``job`` becomes ``{launcher, job_id, state}``; ``state`` becomes ``queued`` or ``starting`` where the
    driver has not started. A place that cannot be asked is told on stderr, and ``job`` is ``None`` there.
    """
    asked: dict[str, Mapping[str, PlaceState] | OrchestratorError] = {}
    unknown: dict[str, list[str]] = {}
    for run_dir, status in statuses.items():
        status["job"] = None
        try:
            submission = read_submission(RunLayout(run_dir))
            place = submission.place() if submission else None
        except OrchestratorError as error:
            _warn(str(status["name"]), error)
            continue
        if submission is None or place is None:
            continue
        queue = _queue_name(submission)
        if queue not in asked:
            # One that does not answer takes minutes to say so.
            asked[queue] = _jobs_of(place)
        jobs = asked[queue]
        if isinstance(jobs, OrchestratorError):
            unknown.setdefault(queue, []).append(str(status["name"]))
            continue
        found = submission.found_in(jobs)
        status["job"] = {"launcher": submission.launcher, "job_id": submission.job_id, "state": None}
        if found:
            status["job"]["state"] = found.detail
            status["state"] = _joined_state(status["state"], found, _has_begun(run_dir, submission))
        elif submission.is_cancelled and not _has_begun(run_dir, submission):
            status["state"] = "cancelled"
    for queue, names in unknown.items():
        _warn(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", asked[queue])


def _queue_name(submission: Submission) -> str:
    """The same for all submissions whose jobs are in one queue."""
    options = submission.options
    names = QUEUE_OPTIONS.get(submission.launcher, options)
    return json.dumps([submission.launcher, {name: options.get(name) for name in names}], sort_keys=True)


def _jobs_of(place: RemoteLauncher) -> Mapping[str, PlaceState] | OrchestratorError:
    """The jobs of a place, or why it cannot be asked."""
    try:
        return place.queue()
    except OrchestratorError as error:
        return error


def _warn(name: str, problem: object) -> None:
    print(f"orchestrator: warning: {name}: {problem}", file=sys.stderr)


def explain_ending(run_dir: Path, status: Status) -> None:
    """Say of a submitted run whose driver never started how its job ended.

    A place that does not tell is told of on stderr, and the rest is as it was.
    """
    submission = read_submission(RunLayout(run_dir))
    if not status["job"] or status["job"]["state"] or submission is None or _has_begun(run_dir, submission):
        return
    place = submission.place()
    try:
        ending = place.ending(submission.job_id, run_dir) if place else None
    except OrchestratorError as error:
        _warn(str(status["name"]), error)
        return
    status["job"]["state"] = ending
    is_cancelled = submission.is_cancelled or (ending is not None and ending.startswith(CANCELLED))
    status["state"] = "cancelled" if is_cancelled else "failed"
    status["problem"] = (
        f"{submission.launcher} job {submission.job_id} ended before its driver began the run"
        f" ({ending or 'its place no longer knows how'}); {_output_text(run_dir)}"
    )


def _output_text(run_dir: Path) -> str:
    """Where to see what a driver that never started has printed."""
    try:
        lines = (driver_output(run_dir) or "").strip().splitlines()
    except LaunchError as error:
        return f"what it printed cannot be seen: {error}"
    if not lines:
        return "it has left no output"
    if has_stage_log(run_dir):
        # 'logs' shows that of the workers that an earlier submission had.
        return "\n".join(["the last that it printed:", *lines[-SHOWN_LINES:]])
    return f"'orchestrator logs {run_dir.resolve().name}{runs_dir_flag(run_dir.parent)}' shows its output"


def _joined_state(state: str, found: PlaceState, has_begun: bool) -> str:
    if found.phase == "queued":
        return "queued"
    if not has_begun:
        return "starting"
    # The lock of a driver on another machine cannot be seen on every shared file system.
    return "running" if state == "interrupted" else state


def _has_begun(run_dir: Path, submission: Submission) -> bool:
    """Whether a driver has written an event since the submission."""
    return bool(events_since(RunLayout(run_dir), submission))


def stop_run(run_dir: Path) -> str:
    """Ask a run to save and stop, or take its job out of the queue; what was done.

    Returns:
        ``stopping``, ``cancelled``, or ``cancelling``: its job waits on, and will not run.

    Raises:
        LaunchError: It is not running, or its place refused.
    """
    layout = RunLayout(run_dir)
    if is_locked(layout.driver_lock):
        request_stop(run_dir)
        _keep_ended(layout)
        return "stopping"
    submission = read_submission(layout)
    place = submission.place() if submission else None
    try:
        state = submission.state() if submission else None
    except LaunchError as error:
        assert submission is not None
        _note_cancelled(layout, submission)
        error.args = (_with_note(error, submission),)
        raise
    if submission is None or place is None or state is None:
        if submission and submission.is_cancelled and not _has_begun(run_dir, submission):
            return "cancelled"
        request_stop(run_dir)
        return "stopping"
    # In the run directory first, where a driver looks that is started in spite of it.
    _note_cancelled(layout, submission)
    if state.phase == "queued":
        _cancel(place, submission, only_queued=True)
        state = submission.found_in(place.queue())
        if state is None:
            return "cancelled"
    # What waits still has no driver, whatever an earlier one has noted: a place takes a while to forget it.
    if state.phase != "queued" and _is_driven(layout, submission):
        if isinstance(place, RestartingLauncher):
            place.end_restarts(submission.job_id)
        layout.stop_request.write_text("cancel", encoding="utf-8")
        return "stopping"
    _cancel(place, submission, only_queued=False)
    return "cancelled" if _leaves_queue(place, submission) else "cancelling"


def _keep_ended(layout: RunLayout) -> None:
    """Have no place start a run once its driver has ended; what a place says is a warning at most.

    The driver may be one that was started by hand while the submission waits.
    """
    try:
        submission = read_submission(layout)
        if submission is None:
            return
        _note_cancelled(layout, submission)
        place = submission.place()
        if isinstance(place, RestartingLauncher):
            place.end_restarts(submission.job_id)
        elif place is not None and (state := submission.state()) and state.phase == "queued":
            place.cancel(submission.job_id, only_queued=True)
            if submission.state() is None:
                job = f"{submission.launcher} job {submission.job_id}"
                print(f"{layout.root.name}: {job}, which waited, is cancelled, too", file=sys.stderr)
    except OrchestratorError as error:
        _warn(layout.root.name, error)


def _note_cancelled(layout: RunLayout, submission: Submission) -> None:
    """Note that somebody wants a submission to end, unless another one was made since."""
    try:
        with held_record(layout):
            latest = read_submission(layout)
            if latest and latest.job_id == submission.job_id and not latest.is_cancelled:
                replace(latest, is_cancelled=True).write(layout)
    except OSError as error:
        _warn(layout.root.name, f"it cannot be noted as cancelled ({error}); its place is asked alone")


def _with_note(error: LaunchError, submission: Submission) -> str:
    """What a place says, and what holds in spite of it."""
    latest = read_submission(submission.layout) if submission.layout else None
    return f"{error}\n{NOTED}" if latest and latest.is_cancelled else str(error)


def _cancel(place: RemoteLauncher, submission: Submission, *, only_queued: bool) -> None:
    """Have its place cancel a submission.

    Raises:
        LaunchError: It did not, and has the job still.
    """
    try:
        place.cancel(submission.job_id, only_queued=only_queued)
    except LaunchError as error:
        with suppress(LaunchError):
            if submission.found_in(place.queue()) is None:
                # Somebody else has cancelled it meanwhile.
                return
        raise LaunchError(_with_note(error, submission)) from error


def _leaves_queue(place: RemoteLauncher, submission: Submission) -> bool:
    """Whether a job that was cancelled is over, or runs to its end, soon."""
    for number in range(NUM_LOOKS):
        time.sleep(LOOK_SECONDS if number else 0)
        try:
            state = submission.found_in(place.queue())
        except LaunchError:
            # It was asked to end it; what has become of that is for another look.
            continue
        if state is None or state.phase != "queued":
            return True
    return False


def _is_driven(layout: RunLayout, submission: Submission) -> bool:
    """Whether a driver has started since the submission and not ended: one whose lock cannot be seen here."""
    mark = last_mark(layout, submission)
    return mark is not None and mark not in ENDS


def driver_output(run_dir: Path) -> str | None:
    """What a submitted run's driver has printed; ``None`` where nobody keeps that or nothing is there yet."""
    submission = read_submission(RunLayout(run_dir))
    place = submission.place() if submission else None
    return place.output(submission.job_id, run_dir) if submission and place else None


def follow_output(run_dir: Path, write: Callable[[bytes], object]) -> bool:
    """Pass on what the driver prints, until a stage of the run has a log of its own or the job is over.

    Returns:
        Whether it has printed anything.

    Args:
        write: Receives the bytes.
    """
    submission = read_submission(RunLayout(run_dir))
    shown = 0
    while submission:
        # Asked before reading, so that what was printed before the end is still read.
        is_over = submission.state() is None
        text = driver_output(run_dir) or ""
        write(text[shown:].encode())
        shown = len(text)
        if is_over or has_stage_log(run_dir):
            break
        time.sleep(POLL_SECONDS)
    return shown > 0
