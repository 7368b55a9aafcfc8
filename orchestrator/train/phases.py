"""What a worker is doing, and how long: for the watchdog, and for the account of a run's time."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

Phase = Literal["data", "first_step", "compute", "evaluation", "save", "save_wait", "weights"]
"""``save_wait``: until an earlier save, or the copy of it elsewhere, is done."""
UNPREDICTABLE: tuple[Phase, ...] = ("save_wait",)
"""How long these took before says nothing about the next one."""


class Current(NamedTuple):
    """The unit of work at hand."""

    number: int
    """Units before it."""
    phase: Phase


class PhaseClock:
    """Time by kind of work. One thread calls ``enter`` and ``take``; others may read the rest."""

    def __init__(self) -> None:
        """Nothing is being done yet."""
        self.current: Current | None = None
        self.slowest: dict[Phase, float] = {}
        """Seconds of the longest unit of each kind."""
        self._began = time.monotonic()
        self._seconds: dict[Phase, float] = {}

    def enter(self, phase: Phase) -> None:
        """One unit of work has ended, and one of the kind ``phase`` begins."""
        now = time.monotonic()
        number = 0
        if self.current is not None:
            number, ended = self.current.number + 1, self.current.phase
            seconds = now - self._began
            self._seconds[ended] = self._seconds.get(ended, 0.0) + seconds
            if ended not in UNPREDICTABLE:
                self.slowest[ended] = max(seconds, self.slowest.get(ended, 0.0))
        self.current, self._began = Current(number, phase), now

    def take(self) -> dict[str, float]:
        """Seconds of each kind since the last call, without the unit at hand."""
        taken, self._seconds = self._seconds, {}
        return {phase: round(seconds, 3) for phase, seconds in taken.items()}
