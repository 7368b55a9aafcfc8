"""When a stage should save and stop early: a signal, a request file, a failed save, or nodes that go."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal

# SIGTERM: schedulers and shells; SIGUSR1, SIGUSR2: what batch systems send ahead of a time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Nodes are taken away half a minute or more after the notice, and asking takes milliseconds of all workers.
NOTICE_INTERVAL_SECONDS = 2.0

Leaving = Literal["none", "some", "all"]
"""Which of the nodes that hold this group's workers are about to be taken away."""


class PreemptionNotice:
    """What the cluster says of nodes that it takes away, looked up now and then by all ranks together."""

    def __init__(self, ask: Callable[[], Leaving], interval_seconds: float = NOTICE_INTERVAL_SECONDS) -> None:
        """Nothing is asked yet.

        Args:
            ask: Collective; the same answer on all ranks.
            interval_seconds: Between two questions.
        """
        self._ask = ask
        self._interval_seconds = interval_seconds
        self._asked = time.monotonic()

    def is_due(self) -> bool:
        """Whether this rank would ask again; ranks must agree before they do."""
        return time.monotonic() - self._asked >= self._interval_seconds

    def read(self) -> Leaving:
        """Ask; collective."""
        self._asked = time.monotonic()
        return self._ask()


class StopRequest:
    """Remembers that somebody asked this worker to stop; all ranks must agree before anyone acts on it."""

    def __init__(
        self,
        request_file: Path,
        must_stop: Callable[[], bool] = bool,
        notice: PreemptionNotice | None = None,
    ) -> None:
        """Listen to ``STOP_SIGNALS`` where this is the main thread, and watch ``request_file``.

        Args:
            must_stop: Whether this process has another reason to end.
            notice: What the cluster says, where one runs this process.
        """
        self.notice = notice
        self._request_file = request_file
        self._must_stop = must_stop
        self._signalled = False
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second one changes nothing."""
        self._signalled = True

    def is_set(self) -> bool:
        """Whether this process was asked to stop, or has to."""
        return self._signalled or self._must_stop() or self._request_file.exists()
