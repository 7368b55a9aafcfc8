"""When a stage should save and stop early: a signal, or a request file in the run directory."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

# SIGTERM: schedulers and shells; SIGUSR1, SIGUSR2: what batch systems send ahead of a time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that somebody asked this worker to stop; all ranks must agree before anyone acts on it."""

    def __init__(self, request_file: Path) -> None:
        """Listen to ``STOP_SIGNALS`` where this is the main thread, and watch ``request_file``."""
        self._request_file = request_file
        self._signalled = False
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second one changes nothing."""
        self._signalled = True

    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signalled or self._request_file.exists()
