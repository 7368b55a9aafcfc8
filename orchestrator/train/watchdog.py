"""Notices that training has stopped moving, saves the stacks of all ranks, and ends the workers.

A rank that hangs holds up all others in the next collective, so whichever rank notices first acts for its
machine: it has every worker there write its stacks, kills them, stopped ones too, and ends itself. Ray then
starts the workers anew, from the newest checkpoint; under torchrun the stage ends.

``kill -QUIT <pid>`` makes a healthy worker write its stacks, too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.checkpoint.peers import tell_all
from orchestrator.train.phases import Phase, PhaseClock

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
# A unit of work may take this many times as long as the slowest one before it.
SLACK = 5
# What has never been done before, such as a first step with compilation, may take this long.
FIRST_SECONDS = 600.0
# Signals and stacks of a busy machine arrive within this time.
STACKS_MICROSECONDS = 1_000_000
# EX_OSERR of sysexits is taken by nobody else here.
EXIT_CODE = 71


class Watchdog:
    """Watches this process from a thread; every rank has one. Built collectively."""

    def __init__(
        self,
        clock: PhaseClock,
        timeout_seconds: float | None,
        stacks: Path,
        on_hang: Callable[[Phase, float], None],
    ) -> None:
        """Watch the units of work that ``clock`` is told of.

        Args:
            timeout_seconds: Shortest time without progress that counts as a hang; ``None``: never.
            stacks: File that the stacks are appended to.
            on_hang: Takes down what hung, and for how many seconds; called in the thread.
        """
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._on_hang = on_hang
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stacks = stacks.open("a", encoding="utf-8")
        faulthandler.register(signal.SIGQUIT, file=self._stacks, all_threads=True)
        self._peers = _open_peers()

    def __enter__(self) -> Self:
        """Watch until the block's end."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._is_closed.set()
        self._thread.join()
        faulthandler.unregister(signal.SIGQUIT)
        self._stacks.close()
        for descriptor in self._peers:
            os.close(descriptor)

    def _watch(self) -> None:
        """Count the time this process was awake for, so that a pause of all workers is no hang."""
        seen, elapsed, last = self._clock.current, 0.0, time.monotonic()
        while not self._is_closed.wait(POLL_SECONDS):
            now = time.monotonic()
            elapsed += min(now - last, 2 * POLL_SECONDS)
            last = now
            if self._clock.current != seen:
                seen, elapsed = self._clock.current, 0.0
            if seen is None or self._timeout_seconds is None:
                continue
            if elapsed > limit_seconds(self._clock.slowest.get(seen.phase), self._timeout_seconds):
                self._end(seen.phase, elapsed)

    def _end(self, phase: Phase, seconds: float) -> None:
        """Save all stacks on this machine and end its workers."""
        # A full disk must not keep a hung worker alive.
        with suppress(OSError):
            self._on_hang(phase, seconds)
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        for descriptor in self._peers:
            for number in (signal.SIGQUIT, signal.SIGCONT):
                _send(descriptor, number)
        # The call keeps the interpreter's lock: a peer that was stopped finds no partner when it runs again.
        ctypes.PyDLL(None).usleep(STACKS_MICROSECONDS)
        for descriptor in self._peers:
            _send(descriptor, signal.SIGKILL)
        os._exit(EXIT_CODE)


def limit_seconds(slowest: float | None, timeout_seconds: float) -> float:
    """How long a unit of work may take, by the slowest of its kind so far; ``None``: it is the first."""
    if slowest is None:
        return max(FIRST_SECONDS, timeout_seconds)
    return max(SLACK * slowest, timeout_seconds)


def _open_peers() -> list[int]:
    """Other workers on this machine, as descriptors, which a reused process id cannot mislead; collective."""
    me = (socket.gethostname(), os.getpid())
    return [os.pidfd_open(pid) for host, pid in tell_all(me) if host == me[0] and pid != me[1]]


def _send(descriptor: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)
