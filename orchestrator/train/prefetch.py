"""Micro-batches of the next steps, made by a background thread while the current one trains.

What is read is a pure function of the step, so reading ahead changes nothing: steps that were read and never
trained are simply read again by the next start.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from orchestrator.contracts import Batch

# One step waits while another one is made; more would only hold memory, since the order is known.
STEPS_AHEAD = 2


class Prefetcher:
    """Gives each step's micro-batches in order; the thread ends with the block."""

    def __init__(
        self, read: Callable[[int], Sequence[Batch]], steps: range, *, pin_memory: bool = False
    ) -> None:
        """Start reading.

        Args:
            read: Micro-batches of one step, in host memory; called by one other thread.
            steps: The steps to read, in order.
            pin_memory: Put tensors into page-locked memory, from which a copy to a GPU overlaps compute.
        """
        self._read = read
        self._steps = steps
        self._pin_memory = pin_memory
        self._ready: queue.Queue[Sequence[Batch] | BaseException] = queue.Queue(STEPS_AHEAD)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Read until the block's end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread, whatever it has read."""
        self._is_closed.set()
        while self._thread.is_alive():
            # It may be waiting for room.
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[tuple[int, Sequence[Batch]]]:
        """Each step with its micro-batches; waits for those that are not made yet.

        Raises:
            BaseException: What ``read`` raised, when its step's turn comes.
        """
        for step in self._steps:
            batches = self._ready.get()
            if isinstance(batches, BaseException):
                raise batches
            yield step, batches

    def _work(self) -> None:
        for step in self._steps:
            if self._is_closed.is_set():
                return
            try:
                self._ready.put([self._pinned(batch) for batch in self._read(step)])
            except BaseException as error:
                self._ready.put(error)
                return

    def _pinned(self, batch: Batch) -> Batch:
        if not self._pin_memory:
            return batch
        return {name: tensor.pin_memory() for name, tensor in batch.items()}
