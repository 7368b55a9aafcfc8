"""Signals that end a process wait while it does what must not be left half-done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A person who presses Ctrl-C once more does so later; programs repeat a signal at once, to the group, too.
AGAIN_SECONDS = 1.0
STDERR = 2


@contextmanager
def deferred_signals(notice: str) -> Iterator[list[int]]:
    """Let the first of ``SIGNALS`` wait for the end of the block; a later Ctrl-C ends it at once.

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
    began = 0.0

    def restore() -> None:
        for number in ending:
            signal.signal(number, before[number])

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if not waiting:
            waiting.append(number)
            began = time.monotonic()
            say(notice)
        elif number == signal.SIGINT and time.monotonic() - began >= AGAIN_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in ending:
        signal.signal(number, on_signal)
    try:
        yield waiting
    finally:
        restore()
    if waiting:
        signal.raise_signal(waiting[0])


def say(text: str) -> None:
    """Print a line on stderr, if anybody is there: the terminal may be what has gone."""
    with suppress(OSError):
        os.write(STDERR, f"{text}\n".encode())
