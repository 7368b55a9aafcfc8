"""The lock of a run's submission: of two at the same time the second sees the first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from launchers.run_directory import make_directory
from launchers.runs import is_locked, runs_dir_flag
from launchers.submission_record import read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError


@contextmanager
def only_submission(layout: RunLayout) -> Iterator[None]:
    """Hold the run's submission, so that of two at the same time the second sees the first.

    One that fails leaves no lock that it made, and no run directory that holds nothing else.

    Raises:
        LaunchError: The run is being run, queued or submitted already.
        PlanError: The run directory cannot be made.
    """
    with _submission_lock(layout) as is_made:
        try:
            _refuse_second(layout)
            yield
        except BaseException:
            if is_made:
                layout.submission_lock.unlink(missing_ok=True)
                with suppress(OSError):
                    layout.root.rmdir()
            raise


@contextmanager
def _submission_lock(layout: RunLayout) -> Iterator[bool]:
    """Hold the lock file that lies in the run directory; whether it was made for this."""
    while True:
        make_directory(layout)
        path = layout.submission_lock
        is_made = not path.exists()
        try:
            lock = path.open("a")
        except FileNotFoundError:
            # One that was refused has just removed the directory that it had made.
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A lock that was removed while this one waited for it keeps nobody else out.
            if _is_open(path, lock):
                yield is_made
                return


def _is_open(path: Path, file: TextIOWrapper) -> bool:
    """Whether ``file`` is what lies at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _refuse_second(layout: RunLayout) -> None:
    run = f"{layout.root.name}{runs_dir_flag(layout.root.parent)}"
    advice = (
        f"follow it with 'orchestrator status {run}' and 'orchestrator logs {run} -f',"
        f" or stop it with 'orchestrator cancel {run}'"
    )
    if is_locked(layout.driver_lock):
        raise LaunchError(f"{layout.root} is being run already; {advice}")
    submission = read_submission(layout)
    if submission is None:
        return
    try:
        state = submission.state()
    except LaunchError as error:
        raise LaunchError(
            f"{layout.root} was submitted as {submission.launcher} job {submission.job_id}, and whether that"
            f" is over cannot be seen: {error}. If you know that it is, delete {layout.submission}"
        ) from error
    if state is not None:
        if submission.is_cancelled and state.phase == "queued":
            advice = f"submit it once 'orchestrator status {run}' says 'cancelled', or under another name"
        raise LaunchError(
            f"{layout.root} is {state.phase} already as {submission.launcher} job {submission.job_id}"
            f" ({state.detail}); {advice}"
        )
