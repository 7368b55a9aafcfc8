"""The run directory of a sweep that was submitted as one job: how it stands, and whether it is to stop.

A sweep that is typed by hand has none; its runs have theirs.
"""

from __future__ import annotations

from collections.abc import Callable

from launchers.run_directory import only_driver
from launchers.submission_record import refuse_cancelled
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event

ENDS = {0: "run_finished", 75: "run_stopped"}
"""Events by the exit code of the sweep."""


class SweepRecord:
    """Events like those of a run, in the folder that ``submit`` made for the sweep."""

    def __init__(self, layout: RunLayout) -> None:
        """Look whether there is such a folder."""
        self._layout = layout
        self._is_submitted = layout.submitted_job.exists()

    def wants_stop(self) -> bool:
        """Whether somebody asked the sweep to stop."""
        return self._is_submitted and self._layout.stop_request.exists()

    def run(self, work: Callable[[], int]) -> int:
        """Do ``work``, which returns an exit code, and record that.

        Raises:
            LaunchError: Another driver runs this sweep.
        """
        if not self._is_submitted:
            return work()
        with only_driver(self._layout):
            # A request of an earlier start is not meant for this one; what comes from now on is.
            self._layout.stop_request.unlink(missing_ok=True)
            refuse_cancelled(self._layout)
            append_event(self._layout.events, "run_started")
            try:
                code = work()
            except Exception as error:
                append_event(self._layout.events, "run_failed", message=str(error))
                raise
            failure = {} if code in ENDS else {"message": "a run of the sweep has failed"}
            append_event(self._layout.events, ENDS.get(code, "run_failed"), **failure)
            return code
