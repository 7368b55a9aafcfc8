"""A signal that waits ends the process after the block, and a second one at once."""

from __future__ import annotations

import signal

import pytest

from launchers.deferral import deferred_signals


def test_a_signal_waits_for_the_end_of_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_signals("in a moment") as waiting:
        assert waiting == []
        signal.raise_signal(signal.SIGINT)
        reached.append(list(waiting))
    assert reached == [[signal.SIGINT]]
    assert capsys.readouterr().err == "in a moment\n"


def test_a_second_one_ends_the_block() -> None:
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


def test_what_is_ignored_stays_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_signals("in a moment") as waiting:
            signal.raise_signal(signal.SIGHUP)
        assert (waiting, capsys.readouterr().err) == ([], "")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
