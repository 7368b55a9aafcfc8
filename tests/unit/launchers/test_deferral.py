"""A signal that waits ends the process after the block, and a later Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launchers import deferral
from launchers.deferral import deferred_signals


def test_a_signal_waits_for_the_end_of_the_block(capfd: pytest.CaptureFixture[str]) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_signals("in a moment") as waiting:
        assert waiting == []
        signal.raise_signal(signal.SIGINT)
        reached.append(list(waiting))
    assert reached == [[signal.SIGINT]]
    assert capfd.readouterr().err == "in a moment\n"


def test_a_later_ctrl_c_ends_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral, "AGAIN_SECONDS", 0.0)
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_signals("in a moment"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("the rest of the block")
    assert reached == []


def test_what_the_block_raises_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="refused"), deferred_signals("in a moment"):
        signal.raise_signal(signal.SIGINT)
        raise ValueError("refused")


def test_what_is_ignored_stays_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_signals("in a moment") as waiting:
            signal.raise_signal(signal.SIGHUP)
        assert (waiting, capfd.readouterr().err) == ([], "")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("again", deferral.SIGNALS)
def test_what_is_sent_twice_at_once_is_one_signal(again: signal.Signals) -> None:
    # As bash and the kernel do where a terminal is closed, and timeout to a process and its group.
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_signals("in a moment"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(again)
        reached.append("the rest of the block")
    assert reached == ["the rest of the block"]


def test_nobody_need_be_there_to_read_the_notice() -> None:
    program = (
        "import os, signal, sys\n"
        "from launchers.deferral import deferred_signals\n"
        "with deferred_signals('in a moment'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    open(sys.argv[1], 'w').write('recorded')\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    record = Path(os.devnull).parent / "fd" / "1"
    done = subprocess.run(
        [sys.executable, "-c", program, str(record)], stdout=subprocess.PIPE, stderr=writing, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "recorded")
