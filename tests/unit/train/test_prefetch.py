"""Reading ahead gives each step its own micro-batches, and leaves no thread behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from orchestrator.contracts import Batch
from orchestrator.train.prefetch import STEPS_AHEAD, Prefetcher


def read(step: int) -> list[Batch]:
    """Two micro-batches that hold their step."""
    return [{"input_ids": torch.tensor([step, micro])} for micro in range(2)]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_every_step_gets_its_own_micro_batches_in_order() -> None:
    with Prefetcher(read, range(3, 40)) as prefetched:
        found = [(step, [batch["input_ids"].tolist() for batch in batches]) for step, batches in prefetched]
    assert found == [(step, [[step, 0], [step, 1]]) for step in range(3, 40)]
    assert prefetch_threads() == []


def test_steps_are_read_ahead_and_no_further_than_asked() -> None:
    started: list[int] = []

    def record(step: int) -> list[Batch]:
        started.append(step)
        return read(step)

    with Prefetcher(record, range(100)) as prefetched:
        iterator = iter(prefetched)
        next(iterator)
        deadline = time.monotonic() + 30
        # One that was taken, those that wait, and the one that waits for room.
        while len(started) < STEPS_AHEAD + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        assert started == list(range(STEPS_AHEAD + 2))
    assert prefetch_threads() == []


def test_an_error_comes_at_its_steps_turn() -> None:
    def fail(step: int) -> list[Batch]:
        if step == 2:
            raise OSError("the disk is gone")
        return read(step)

    seen = []
    with pytest.raises(OSError, match="the disk is gone"), Prefetcher(fail, range(5)) as prefetched:
        for step, _ in prefetched:
            seen.append(step)
    assert seen == [0, 1]
    assert prefetch_threads() == []


def test_a_stage_without_steps_ends_at_once() -> None:
    with Prefetcher(read, range(0)) as prefetched:
        assert list(prefetched) == []
