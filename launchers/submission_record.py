"""``submission.json``: where a run was last submitted to, and whether that submission was cancelled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from launchers.base import PlaceState, RemoteLauncher, make_launcher
from launchers.runs import ENDS
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.tracking.events import read_events, replace_text

# Whose jobs nobody starts again when their driver has ended: what is over there stays so.
NEVER_RESTARTING = ("ray",)
# By which a driver knows the submission that it is started for, where its place may start it though it was
# cancelled.
JOB_ID_VARIABLE = "ORCHESTRATOR_JOB_ID"


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
        replace_text(layout.submission, json.dumps(asdict(replace(self, layout=None)), indent=1))

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
        """How it stands among the jobs of its place; ``None``: it is over."""
        found = jobs.get(self.job_id)
        if found is None or found.phase != "queued" or not self.is_cancelled:
            return found
        return replace(
            found, detail=f"{found.detail}, cancelled: it ends when its turn comes, without running"
        )


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


def is_cancelled(layout: RunLayout) -> bool:
    """Whether this process was started for a submission of a run that somebody has cancelled since."""
    job_id = os.environ.get(JOB_ID_VARIABLE)
    submission = read_submission(layout) if job_id else None
    return submission is not None and submission.is_cancelled and submission.job_id == job_id


def last_mark(layout: RunLayout, submission: Submission) -> str | None:
    """The last that a driver has noted of the run itself since the submission."""
    marks = [event for event in events_since(layout, submission) if event.startswith("run_")]
    return marks[-1] if marks else None


def events_since(layout: RunLayout, submission: Submission) -> list[str]:
    """What drivers of a run have noted since a submission."""
    events = read_events(layout.events)
    return [str(event.get("event")) for event in events if str(event.get("time", "")) >= submission.time]
