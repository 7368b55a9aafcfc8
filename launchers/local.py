"""The local launcher: ``orchestrator run`` in the background of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LocalLauncher:
    """Starts the driver as a process of its own session, output in ``driver.log`` of the run directory."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Takes no options."""

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The driver's command line."""
        command = [sys.executable, "-m", "launchers.cli", "run", str(job_file)]
        return [*command, "--runs-dir", str(run_dir.parent)]

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Start the driver; the job id is its process id."""
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / "driver.log").open("ab") as log:
            process = subprocess.Popen(
                self.render(job_file, run_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return str(process.pid)
