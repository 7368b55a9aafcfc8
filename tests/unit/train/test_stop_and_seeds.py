"""Requests to stop, and seeds that depend on nothing but what they are for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.train.randomness import derive_generator, derive_seed
from orchestrator.train.stop import STOP_SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_asks_to_stop_and_a_second_one_is_harmless(number: int, tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    assert not request.is_set()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert request.is_set()


def test_a_request_file_asks_to_stop(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop")
    (tmp_path / "stop").touch()
    assert request.is_set()


def test_another_reason_to_end_asks_to_stop(tmp_path: Path) -> None:
    failed: list[str] = []
    request = StopRequest(tmp_path / "stop", lambda: bool(failed))
    assert not request.is_set()
    failed.append("save")
    assert request.is_set()


def test_seeds_differ_by_purpose_and_counters_and_never_by_call(tmp_path: Path) -> None:
    seeds = {
        derive_seed(seed, purpose, step, micro)
        for seed in (0, 1)
        for purpose in ("forward", "collate")
        for step in range(20)
        for micro in range(4)
    }
    assert len(seeds) == 2 * 2 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(7, "forward", 1, 23) != derive_seed(7, "forward", 12, 3)
    first, again = (derive_generator(7, "collate", 3, 1).random(4).tolist() for _ in range(2))
    assert first == again
