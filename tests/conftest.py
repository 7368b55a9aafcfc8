"""What all tests share."""

from __future__ import annotations

import signal
import threading

import pytest
from hypothesis import settings

# No test asserts how long something takes: machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def signals_end_what_a_test_starts() -> None:
    """Processes inherit which signals are ignored: those of stopping, once a test has called ``run``.

    ``launchers.run`` leaves them so on purpose, for the end of a process of its own.
    """
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
