"""One run of a rehearsal: the job's copy, started by ``orchestrator run`` as a person would start it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from launchers.ray_stage import remove_ray_records
from launchers.run_directory import only_driver
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import MAX_NAME_LENGTH, Job
from orchestrator.spec.load import dump_resolved
from orchestrator.tracking.events import read_events
from orchestrator.train.rehearsed import EVENT, WAITING

POLL_SECONDS = 0.1
# Of a driver's output, where its last message is.
LAST_LINES = 3
# Of a long name, so that jobs whose names begin alike have folders of their own.
DIGEST_LENGTH = 8


class OverdueError(Exception):
    """A start of a run was not over in time, and was ended."""


class RehearsedRun:
    """A run that is started as often as it takes."""

    def __init__(self, job: Job, purpose: str, runs_dir: Path, seconds: float | None = None) -> None:
        """A run of ``job`` beside its own, named after ``purpose``.

        Args:
            seconds: How long each start may take; ``None``: for ever.
        """
        self.job = job.model_copy(update={"name": run_name(job.name, purpose)})
        self.layout = RunLayout(runs_dir.resolve() / self.job.name)
        self._seconds = seconds

    def changed(self, changes: Mapping[str, Any]) -> RehearsedRun:
        """The same run, with other workers or another strategy from its next start on."""
        job = self.job
        if "num_workers" in changes:
            resources = job.resources.with_workers(changes["num_workers"])
            job = job.model_copy(update={"resources": resources})
        if "strategy" in changes:
            last = job.stages[-1].model_copy(update={"strategy": changes["strategy"]})
            job = job.model_copy(update={"stages": (*job.stages[:-1], last)})
        run = RehearsedRun(job, "", self.layout.root.parent, self._seconds)
        run.job, run.layout = job, self.layout
        return run

    def remove(self) -> None:
        """Remove the run's folder, which is of this rehearsal or one before.

        Raises:
            LaunchError: It is in use: a rehearsal that was killed could not end its driver.
        """
        if not self.layout.root.exists():
            return
        with only_driver(self.layout):
            pass
        shutil.rmtree(self.layout.root, ignore_errors=True)

    def open(self) -> RunLayout:
        """The run directory, made."""
        self.layout.root.mkdir(parents=True, exist_ok=True)
        return self.layout

    @property
    def _output(self) -> Path:
        return self.layout.root / "rehearsal.log"

    def _start(self) -> subprocess.Popen[bytes]:
        """A driver in a session of its own, so that signals of a terminal reach this command alone."""
        job_file = self.open().root / "rehearsal.yaml"
        # It is read as a job file again: what looks like an environment variable there is text by now.
        job_file.write_text(dump_resolved(self.job).replace("${", "$${"), encoding="utf-8")
        command = [sys.executable, "-m", "launchers.cli", "run", str(job_file)]
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [*command, "--runs-dir", str(self.layout.root.parent)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self) -> int:
        """Run to its end; the exit code.

        Raises:
            OverdueError: It took too long. So do the other ways to run.
        """
        return self._watch(lambda process: None)

    def run_until_killed(self) -> bool:
        """Run until its workers have met their fault; then kill the driver and all that it started here.

        Returns:
            Whether they met it; otherwise the run has ended by itself.
        """

        def kill(process: subprocess.Popen[bytes]) -> None:
            if self._has_come_to(EVENT):
                kill_tree(process.pid)

        self._watch(kill)
        return self._has_come_to(EVENT)

    def _has_come_to(self, name: str) -> bool:
        return any(event["event"] == name for event in read_events(self.layout.events))

    def run_until_stopped(self) -> int:
        """Run, and send SIGTERM once its workers wait for it; the exit code."""
        sent = False

        def stop(process: subprocess.Popen[bytes]) -> None:
            nonlocal sent
            if not sent and self._has_come_to(WAITING):
                sent = True
                process.send_signal(signal.SIGTERM)

        return self._watch(stop)

    def _watch(self, look: Callable[[subprocess.Popen[bytes]], None]) -> int:
        """Start the driver and look again and again until it ends; nothing of it is left behind."""
        process, began = self._start(), time.monotonic()
        try:
            while process.poll() is None:
                if self._seconds is not None and time.monotonic() - began > self._seconds:
                    raise OverdueError(f"{self._seconds:.0f} s")
                look(process)
                time.sleep(POLL_SECONDS)
            return process.returncode
        except KeyboardInterrupt:
            print(f"Stopped; what was run is in {self.layout.root}, for you to remove.", file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()
                remove_ray_records(self.layout.root)

    def last_words(self) -> str:
        """The end of what the driver printed."""
        if not self._output.exists():
            return "it printed nothing"
        lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:])


def run_name(job_name: str, purpose: str) -> str:
    """The name of a rehearsal's run; of a long job name, what there is room for and a digest of all of it."""
    ending = f".rehearsal-{purpose}"
    if len(job_name) + len(ending) <= MAX_NAME_LENGTH:
        return f"{job_name}{ending}"
    ending = f"-{sha256(job_name.encode()).hexdigest()[:DIGEST_LENGTH]}{ending}"
    return f"{job_name[: MAX_NAME_LENGTH - len(ending)]}{ending}"


def kill_tree(pid: int) -> list[psutil.Process]:
    """SIGKILL a process and all its descendants on this machine at once; returns them."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    # Stopped first, so that none of them sees another one die and starts something new.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    psutil.wait_procs(family, timeout=10)
    return family
