"""A run directory as its driver holds it: locked, described, and never bent to another job.

What a started run may not change is the trajectory of its stages (``spec/fingerprint.py``); starting over
renames the old folder and deletes nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from launchers.counting import planned_steps
from launchers.display import Display
from launchers.pins import look_up_pins
from launchers.runs import read_result
from launchers.starting_over import refuse_missing_sources, refuse_remote_steps
from launchers.submission_record import refuse_cancelled
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import list_steps
from orchestrator.counts import counted
from orchestrator.errors import LaunchError, OrchestratorError, PlanError
from orchestrator.spec.fingerprint import difference, limits_lowered, trajectory_keys
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import dump_resolved, load_resolved
from orchestrator.spec.plan import batch_complaint, plan_batch
from orchestrator.tracking.events import append_event, replace_text

# Whoever looks whether a lock is held (runs.is_locked) holds it for a moment.
NUM_TRIES, TRY_SECONDS = 4, 0.05


@contextmanager
def opened_run(
    job: Job, layout: RunLayout, display: Display, *, fresh: bool = False, redo: str | None = None
) -> Iterator[tuple[Job, str]]:
    """Hold the run directory, written for this job; gives the job, hub entries pinned, and the run's id.

    Args:
        fresh: Rename what is there and start in an empty directory.
        redo: The same for one stage, whose other stages stay as they are.

    Raises:
        PlanError: It cannot be made, or holds a run of another job, or there is no stage ``redo``.
    """
    if fresh or redo is not None:
        anew = [job.stage(redo)] if redo is not None else job.stages
        refuse_missing_sources(job, anew)
        refuse_remote_steps(job, anew)
    if fresh and layout.root.exists():
        with only_driver(layout):
            display.note(job.name, f"starts over; its old folder is {set_aside(layout.root)}")
    make_directory(layout)
    with only_driver(layout):
        # A request of an earlier start is not meant for this one; what comes from now on is.
        layout.stop_request.unlink(missing_ok=True)
        refuse_cancelled(layout)
        job, notes = look_up_pins(job, layout.pins)
        for note in notes:
            display.note(job.name, note)
        refuse_changed(job, layout, started_over=redo)
        if redo is not None and (old := set_aside(layout.stage(redo).root)) is not None:
            display.note(redo, f"starts over; its old folder is {old}")
            append_event(layout.events, "stage_set_aside", stage=redo, folder=str(old))
        for name, note in bent_schedules(job, layout).items():
            display.note(name, note)
        yield job, write_run(job, layout)


def make_directory(layout: RunLayout) -> None:
    """Make the run directory, unless it is there.

    Raises:
        PlanError: It cannot be made.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(
            f"the run directory {layout.root} cannot be made: {error.strerror}. Name a folder that can be"
            " written with --runs-dir"
        ) from error


class StopWish:
    """A person's wish that a run saves and stops, from the first moment of its driver."""

    def __init__(self, layout: RunLayout) -> None:
        """Nobody wants ``layout``'s run to stop."""
        self._request = layout.stop_request
        self._wanted_by: str | None = None
        self._is_open = False

    def is_set(self) -> bool:
        """Whether somebody wants it to stop."""
        return self._wanted_by is not None

    def set(self, by: str, *, after_seconds: float = 0.0) -> None:
        """Want it to stop; workers read it from the run directory.

        Args:
            after_seconds: Until then they may learn it from somebody else.
        """
        self._wanted_by = by
        if after_seconds:
            timer = Timer(after_seconds, self._write)
            timer.daemon = True
            timer.start()
        else:
            self._write()

    def _write(self) -> None:
        if self._is_open and self._wanted_by is not None:
            self._request.write_text(self._wanted_by, encoding="utf-8")

    def open(self) -> None:
        """The driver holds the run directory: what was wanted before is written there.

        Before that the directory may be another driver's, which nobody asked to stop.
        """
        self._is_open = True
        self._write()

    def close(self) -> None:
        """The run has ended; a request would be read by its next start."""
        self._is_open = False
        self._request.unlink(missing_ok=True)


@contextmanager
def only_driver(layout: RunLayout) -> Iterator[None]:
    """Hold the run's lock.

    Raises:
        LaunchError: Another driver holds it.
    """
    root = shlex.quote(str(layout.root))
    advice = f"follow it with 'orchestrator logs {root} -f', or stop it with 'orchestrator cancel {root}'"
    with held(layout.driver_lock, lambda owner: f"{layout.root}: already being run by {owner}; {advice}"):
        yield


@contextmanager
def held(path: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """Hold a lock file, with this process named in it.

    Args:
        refusal: What to say where the process that it is given holds it.

    Raises:
        LaunchError: Another process holds it.
    """
    with path.open("a+") as lock:
        for tries_left in reversed(range(NUM_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not tries_left:
                    lock.seek(0)
                    raise LaunchError(refusal(lock.read().strip() or "another process")) from error
            time.sleep(TRY_SECONDS)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def write_run(job: Job, layout: RunLayout) -> str:
    """Write the resolved job and the environment; the run's id, made at its first start.

    Each stage's own copy of the job is written as the stage is prepared, once it is known whether it goes on.
    """
    # Here and not above: 'plan --no-model' looks at run directories, too, and this takes a tenth of its time.
    from orchestrator.nodes import describe

    replace_text(layout.job, dump_resolved(job))
    replace_text(layout.environment, json.dumps(describe(), indent=1))
    if not layout.run_id.exists():
        replace_text(layout.run_id, os.urandom(4).hex())
    run_id = layout.run_id.read_text(encoding="utf-8", errors="replace").strip()
    if not run_id.isalnum():
        raise PlanError(
            f"{layout.run_id} is damaged: it holds {run_id!r}, expected letters and digits. Delete it:"
            " trackers then take what follows for another run; or write there what they call this one"
        )
    return run_id


def set_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free ``<name>.before-<n>``; nothing is deleted."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def has_started(layout: StageLayout) -> bool:
    """Whether a training stage left anything that a changed job file would contradict."""
    return layout.result.exists() or bool(list_steps(layout.checkpoints))


def _limits_below_done(old: TrainStage, new: TrainStage, job: Job, layout: RunLayout) -> list[str]:
    """One line per changed limit, where it ends the stage before the steps that are done."""
    stage_layout = layout.stage(new.name)
    saved = [folder.step for folder in list_steps(stage_layout.checkpoints) if folder.is_complete]
    done = max([*saved, int(read_result(stage_layout).get("step") or 0)])
    if batch_complaint(new, job.resources) is None:
        allowed = planned_steps(new, plan_batch(new, job.resources), stage_layout)
        if allowed is not None and allowed >= done:
            return []
    return [f"{line} ({counted(done, 'step')} done)" for line in limits_lowered(old, new)]


def _begun_with(layout: StageLayout, name: str) -> tuple[Job, TrainStage]:
    """The job that a training stage was last started with, and the stage there.

    Raises:
        PlanError: Its file is gone or damaged.
    """
    try:
        job = load_resolved(layout.job)
        stage = job.stage(name)
    except OrchestratorError as error:
        newest = next(iter(reversed(list_steps(layout.checkpoints))), None)
        copy = f", which also stands in {newest.path / 'state.json'} under 'job_file'" if newest else ""
        raise PlanError(
            f"{error}\nIt is the job that stage '{name}' was started with{copy}: put it back to go on, or"
            f" start the stage over with --redo {name}"
        ) from error
    assert isinstance(stage, TrainStage)
    return job, stage


def bent_schedules(job: Job, layout: RunLayout) -> dict[str, str]:
    """By begun stage whose limits are others now, what that does to its learning rate."""
    notes = {}
    for stage in job.stages:
        stage_layout = layout.stage(stage.name)
        if not isinstance(stage, TrainStage) or not has_started(stage_layout):
            continue
        _, old = _begun_with(stage_layout, stage.name)
        lines = difference({"limits": old.limits.model_dump()}, {"limits": stage.limits.model_dump()})
        if lines and stage.schedule.name != "constant":
            notes[stage.name] = (
                f"{', '.join(lines)}: where it goes on, the learning rate is that of the new limit's"
                f" {stage.schedule.name} schedule"
            )
    return notes


def refuse_changed(job: Job, layout: RunLayout, *, started_over: str | None = None) -> None:
    """Refuse a job whose training-relevant keys changed since a stage began.

    Args:
        started_over: A stage that may change.

    Raises:
        PlanError: With every difference.
    """
    changes: list[str] = []
    for stage in job.stages:
        stage_layout = layout.stage(stage.name)
        if not isinstance(stage, TrainStage) or not has_started(stage_layout) or stage.name == started_over:
            continue
        before, old = _begun_with(stage_layout, stage.name)
        keys = trajectory_keys(old, before), trajectory_keys(stage, job)
        changes += [line for line in difference(*keys) if line not in changes]
        changes += _limits_below_done(old, stage, job, layout)
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise PlanError(
            f"{layout.root}: the job file changed since this run began:\n{listed}\n"
            "Set these back to go on, give the job another name,"
            " or start over: one stage with --redo STAGE, all with --fresh (old folders are kept, renamed)."
        )
