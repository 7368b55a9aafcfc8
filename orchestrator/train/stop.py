"""When a stage should save and stop early: a signal, a request file in the run directory, a failed save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

# SIGTERM: schedulers and shells; SIGUSR1, SIGUSR2: what batch systems send ahead of a time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that somebody asked this worker to stop; all ranks must agree before anyone acts on it."""

    def __init__(self, request_file: Path, must_stop: Callable[[], bool] = bool) -> None:
        """Listen to ``STOP_SIGNALS`` where this is the main thread, and watch ``request_file``.

        Args:
            must_stop: Whether this process has another reason to end.
        """
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
