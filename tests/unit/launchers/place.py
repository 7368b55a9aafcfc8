"""A place with a queue, as a launcher of the user's own; tests set what it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launchers.base import PlaceState, RefusedJobError
from orchestrator.errors import LaunchError

NAME = f"{__name__}:Place"


class Place:
    """Takes jobs and keeps them in its queue, or refuses them after a while."""

    refuses = False
    is_down = False
    hopeless: ClassVar[str | None] = None
    keeps = False
    """A job that waits does so until it would start, cancelled or not."""
    times_asked = 0
    jobs: ClassVar[dict[str, PlaceState]] = {}
    printed: ClassVar[dict[str, str]] = {}
    endings: ClassVar[dict[str, str]] = {}

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take no options."""

    @classmethod
    def reset(cls) -> None:
        """Forget what other tests have set."""
        cls.refuses, cls.is_down, cls.keeps, cls.times_asked = False, False, False, 0
        cls.jobs, cls.printed, cls.endings, cls.hopeless = {}, {}, {}, None

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """Nothing that could be typed."""
        return ["true"]

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Queue it under the run's name."""
        assert job_file.is_file()
        if self.refuses:
            time.sleep(0.2)
            raise RefusedJobError("no such partition")
        self.jobs[run_dir.name] = PlaceState("queued", "PENDING")
        return run_dir.name

    def queue(self) -> Mapping[str, PlaceState]:
        """The jobs."""
        type(self).times_asked += 1
        if self.is_down:
            raise LaunchError("the place does not answer")
        return self.jobs

    def withdraw_hopeless(self, job_id: str) -> str | None:
        """Forget it where a test says so."""
        self.queue()
        if self.hopeless is not None:
            self.jobs.pop(job_id)
        return self.hopeless

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What a test has had it print."""
        return self.printed.get(job_id)

    def ending(self, job_id: str, run_dir: Path) -> str | None:
        """What a test has had it end with."""
        return self.endings.get(job_id)

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """Forget a job."""
        if self.keeps and self.jobs[job_id].phase == "queued":
            return
        self.jobs.pop(job_id, None)


class ArrayPlace(Place):
    """The same, which takes the runs of a sweep as jobs of their own."""

    def render_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """Nothing that could be typed."""
        return ["true"]

    def submit_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """Queue them all."""
        return [self.submit(path, path.parent) for path in job_files]
