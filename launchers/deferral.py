"""Signals that end a process wait while it does what must not be left half-done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals(notice: str) -> Iterator[list[int]]:
    """Let the first of ``SIGNALS`` wait for the end of the block; a second one does what it always does.

    Where the block fails, its error is what ends the process.

    Args:
        notice: Said on stderr when the signal comes.

    Yields:
        The signal that waits, once there is one.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        # Python lets the main thread alone set handlers, and interrupts no other.
        yield waiting
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What is ignored, as by nohup, stays so.
    ending = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in ending:
            signal.signal(number, before[number])

    def on_signal(number: int, frame: FrameType | None) -> None:
        restore()
        waiting.append(number)
        print(notice, file=sys.stderr)

    for number in ending:
        signal.signal(number, on_signal)
    try:
        yield waiting
    finally:
        restore()
    if waiting:
        signal.raise_signal(waiting[0])
