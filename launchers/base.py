"""What a launcher promises: it only decides where ``orchestrator run`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """A place where a job can run. Built with ``launcher.options`` of the job file."""

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The command that would be submitted; changes nothing."""

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Start ``orchestrator run`` there without waiting for it; returns the place's own job id.

        Raises:
            LaunchError: The place refused the job.
        """
