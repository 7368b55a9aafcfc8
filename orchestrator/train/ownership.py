"""Which group of workers may write a stage, also where a lock does not keep others out.

Rank 0 holds ``worker.lock`` while it trains and writes into it who it is. Locks of some file systems hold
within one machine only, or end while their owner is paused. So who the owner is, is read again before all
that counts: a checkpoint's commit, its record in the ledger, the removal of old ones, the weights. Who
finds another's name there was replaced, and changes nothing more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import LaunchError, ReplacedError

# An older group of workers that is being killed releases its lock within the time a step takes.
LOCK_WAIT_SECONDS = 60.0


class Ownership:
    """The right to write a stage; rank 0 has it, and others, who write by its leave, are not asked."""

    def __init__(self, path: Path | None, owner: str) -> None:
        """``owner`` is what ``path`` holds as long as the right does; no path: not rank 0."""
        self._path = path
        self._owner = owner

    def check(self) -> None:
        """Return if it is still this process that may write.

        Raises:
            ReplacedError: Another has taken over, or the lock's file is gone.
        """
        if self._path is None:
            return
        try:
            found = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            found = "nobody: the file was removed"
        if found != self._owner:
            raise ReplacedError(
                f"{self._path}: taken over by {found}; this was {self._owner}, which must have been paused."
                " What it did since is left out; the other goes on"
            )


@contextmanager
def only_writer(layout: StageLayout, rank: int) -> Iterator[Ownership]:
    """Hold the stage's lock on rank 0: workers of an earlier start may still be on their way out.

    Raises:
        LaunchError: The lock is still held after ``LOCK_WAIT_SECONDS``.
    """
    if rank != 0:
        yield Ownership(None, "")
        return
    layout.root.mkdir(parents=True, exist_ok=True)
    with layout.worker_lock.open("a+", encoding="utf-8", errors="replace") as lock:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise LaunchError(
                        f"{layout.worker_lock}: still held after {LOCK_WAIT_SECONDS:g} s by"
                        f" {lock.read().strip() or 'a process that has not said who it is'}, a worker of"
                        " another start that trains this stage; stop that start, or wait for it to end"
                    ) from error
                time.sleep(0.2)
        # Process ids come again; this does not.
        owner = f"process {os.getpid()} on {socket.gethostname()} ({os.urandom(8).hex()})"
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
        os.fsync(lock.fileno())
        yield Ownership(layout.worker_lock, owner)
