"""The local launcher: ``orchestrator run`` in the background of this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError

# Python comes from a slow shared file system, perhaps.
START_SECONDS, LOOK_SECONDS, END_SECONDS = 60, 0.05, 10
SHOWN_LINES = 10


class LocalLauncher:
    """Starts the driver as a process of its own session, output in ``driver.log`` of the run directory."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Takes no options."""

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The driver's command line."""
        command = [sys.executable, "-m", "launchers.cli", "run", str(job_file)]
        return [*command, "--runs-dir", str(run_dir.parent)]

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Start the driver, and wait until it holds the run's lock; the job id is its process id.

        Before that a second submission would be taken as well, and a request to stop would find nobody.

        Raises:
            LaunchError: It ended without the lock, or takes too long, and was ended.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        output = run_dir / "driver.log"
        with output.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                self.render(job_file, run_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            problem = _wait_for(process, RunLayout(run_dir).driver_lock)
        except BaseException:
            process.terminate()
            raise
        if problem is not None:
            raise LaunchError(f"{run_dir} is not run: {problem}; {_last_lines(output, begin)}")
        return str(process.pid)


def _wait_for(process: subprocess.Popen[bytes], lock: Path) -> str | None:
    """Wait until a driver holds its run's lock; why it does not, if it is over."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        # Asked first: it may take the lock and end between the two.
        code = process.poll()
        if _has_taken(process.pid, lock):
            return None
        if code is not None:
            return f"its driver, process {process.pid}, ended with exit code {code} before it began"
        if time.monotonic() > deadline:
            _end(process)
            return (
                f"its driver, process {process.pid}, did not begin within {START_SECONDS} s and was ended; is"
                " the machine overloaded, or the file system slow? Submit it again once that is over"
            )
        time.sleep(LOOK_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a driver that has not begun: at once, or where it does not answer to that, by force."""
    process.terminate()
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _has_taken(process_id: int, lock: Path) -> bool:
    """Whether a driver has taken its run's lock; read from what it writes there.

    To try the lock would keep out a driver that tries it at the same moment.
    """
    try:
        return lock.read_text(encoding="utf-8", errors="replace").startswith(f"process {process_id} on ")
    except FileNotFoundError:
        return False


def _last_lines(output: Path, begin: int) -> str:
    """What a driver has printed at last, and where the rest is."""
    lines = output.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    if not lines:
        return f"it printed nothing to {output}"
    return "\n".join([f"the last that it printed to {output}:", *lines[-SHOWN_LINES:]])
