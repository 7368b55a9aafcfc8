"""``submission.json``: where a run was last submitted to, and whether that submission was cancelled."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from launchers.base import PlaceState, RemoteLauncher, is_named, make_launcher
from launchers.runs import ENDS
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.tracking.events import append_event, read_events, replace_text

# Whose jobs nobody starts again when their driver has ended: what is over there stays so.
NEVER_RESTARTING = ("ray",)
# By which a driver knows the submission that it is started for: a place may start what was cancelled.
JOB_ID_VARIABLE = "ORCHESTRATOR_JOB_ID"


class CancelledError(LaunchError):
    """What this driver was started for is no longer wanted; all work is saved."""

    exit_code = 75


@dataclass(frozen=True)
class Submission:
    """One submission of a run: to which launcher, with which options, under which id."""

    launcher: str
    job_id: str
    options: Mapping[str, Any]
    time: str
    is_cancelled: bool = False
    """Somebody wants it to end."""
    layout: RunLayout | None = None
    """Where it was read; nothing that is written."""

    @classmethod
    def of_now(cls, launcher: str, job_id: str, options: Mapping[str, Any]) -> Submission:
        """A submission that was made just now."""
        return cls(launcher, job_id, options, datetime.now(UTC).isoformat(timespec="milliseconds"))

    def write(self, layout: RunLayout) -> None:
        """Remember it in the run directory."""
        written = {key: value for key, value in asdict(self).items() if key != "layout"}
        replace_text(layout.submission, json.dumps(written, indent=1))

    def place(self) -> RemoteLauncher | None:
        """The launcher whose queue holds it, if that has one."""
        # Here and not above: 'status' of runs that nobody submitted needs no job's types.
        from orchestrator.spec.job import Resources

        launcher = make_launcher(self.launcher, self.options, Resources())
        return launcher if isinstance(launcher, RemoteLauncher) else None

    def state(self) -> PlaceState | None:
        """How it stands in its queue; ``None``: it is over, or its place has no queue.

        Raises:
            LaunchError: The place cannot be asked, and the run's own events do not tell.
        """
        place = self.place()
        try:
            return self.found_in(place.queue()) if place else None
        except LaunchError:
            ends = ENDS if self.launcher in NEVER_RESTARTING else ("run_finished",)
            if self.layout and last_mark(self.layout, self) in ends:
                return None
            raise

    def found_in(self, jobs: Mapping[str, PlaceState]) -> PlaceState | None:
        """How it stands among the jobs of its place; ``None``: it is over.

        A place that was started anew gives an id again: one that another run has there is not its own.
        """
        found = jobs.get(self.job_id)
        if (
            found
            and found.run_dir is not None
            and self.layout
            and not is_named(self.layout.root, found.run_dir)
        ):
            return None
        if found is None or found.phase != "queued" or not self.is_cancelled:
            return found
        return replace(found, detail=f"{found.detail}, cancelled: it ends when its turn comes")


def read_submission(layout: RunLayout) -> Submission | None:
    """The latest submission of a run; ``None`` where it was started by hand."""
    try:
        record = json.loads(layout.submission.read_text(encoding="utf-8"))
        return Submission(**{**record, "layout": layout})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LaunchError(
            f"{layout.submission} is damaged ({error}); delete it to forget the submission"
        ) from error


def refuse_cancelled(layout: RunLayout) -> None:
    """End a driver whose submission somebody has cancelled since; its place has started it all the same.

    Raises:
        CancelledError: It was cancelled.
    """
    job_id = os.environ.get(JOB_ID_VARIABLE)
    try:
        submission = read_submission(layout) if job_id else None
    except LaunchError:
        # Nobody has said so.
        return
    if submission is None or not submission.is_cancelled or submission.job_id != job_id:
        return
    marks = [str(event.get("event")) for event in read_events(layout.events)]
    last = next((mark for mark in reversed(marks) if mark.startswith("run_")), None)
    if last is not None and last not in ENDS:
        # Its driver was lost.
        append_event(layout.events, "run_stopped")
    raise CancelledError(f"{layout.root.name} was cancelled before its driver started: nothing is run")


@contextmanager
def held_record(layout: RunLayout) -> Iterator[None]:
    """Hold the lock under which a run is submitted."""
    with layout.submission_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def last_mark(layout: RunLayout, submission: Submission) -> str | None:
    """The last that a driver has noted of the run itself since the submission."""
    marks = [event for event in events_since(layout, submission) if event.startswith("run_")]
    return marks[-1] if marks else None


def events_since(layout: RunLayout, submission: Submission) -> list[str]:
    """What drivers of a run have noted since a submission."""
    events = read_events(layout.events)
    return [str(event.get("event")) for event in events if str(event.get("time", "")) >= submission.time]
