"""Saving beside training, which waits for a copy of the state in host memory and for nothing else.

A save copies this rank's part into a buffer that was allocated at the start, and a thread writes it from
there. The thread talks to those of other ranks over a process group of its own: training uses the default
one meanwhile. At most one save is in flight, since there is one buffer. What goes wrong in the threads is
agreed there, and raised on every rank by the next ``save`` or ``wait``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.checkpoint.peers import my_rank, tell_all
from orchestrator.checkpoint.remote import Mirror
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.saving import StepWriter
from orchestrator.checkpoint.shard_file import HostBuffer
from orchestrator.checkpoint.shard_plan import ShardPlan, plan_shards
from orchestrator.errors import CheckpointError

logger = logging.getLogger(__name__)
# Of a start that ends in an error: a save that is nearly done is worth keeping, and one whose partners died
# ends by itself. 60 s write 12 GB at the 0.2 GB/s of a slow disk.
CLOSE_SECONDS = 60.0
# A rank waits for the slowest disk and for an upload. Whether a rank still lives is for training to find out,
# and of one that died the connection breaks at once.
PATIENCE = timedelta(days=1)


class BackgroundSaver:
    """A ``Saver`` that writes in a thread."""

    def __init__(self, writer: StepWriter, plan: ShardPlan, buffer: HostBuffer) -> None:
        """Write by ``writer``, whose group no other thread uses, from ``buffer``."""
        self._writer = writer
        self._plan = plan
        self._buffer = buffer
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        retention: Retention | None,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        mirror: Mirror | None = None,
        check_owner: Callable[[], None] | None = None,
    ) -> BackgroundSaver:
        """A saver of states like ``tensors`` on ``device``; collective.

        Raises:
            CheckpointError: On every rank: one has no memory for its copy, or the state holds no tensors.
        """
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        plan = plan_shards(tensors, group)
        buffer, problem = None, None
        try:
            buffer = HostBuffer(plan, device)
        except (MemoryError, RuntimeError) as error:
            problem = f"rank {my_rank()} has no {plan.num_bytes:,} bytes of host memory for it: {error}"
        problem = next((found for found in tell_all(problem, group) if found is not None), None)
        if buffer is None or problem is not None:
            raise CheckpointError(
                f"a copy of the state is made for every checkpoint: {problem}. Set checkpoint.asynchronous:"
                " false to save without a copy, or make room"
            )
        return cls(StepWriter(folder, retention, group, mirror, check_owner), plan, buffer)

    @property
    def has_failed(self) -> bool:
        """As ``Saver.has_failed``."""
        return self._error is not None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        committed: Callable[[], None],
    ) -> None:
        """As ``Saver.save``, but returns, and raises for the save before, once the copy has begun."""
        self.wait()
        self._buffer.fill(tensors)
        # The tensors go along: from a GPU they must be there until the copy is done.
        arguments = (step, dict(state), committed, tensors)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(
        self, step: int, state: Mapping[str, Any], committed: Callable[[], None], copied: object
    ) -> None:
        """Write and commit what the buffer holds; runs in the thread."""
        try:
            self._writer.write(step, self._plan, self._buffer.parts(), state, committed)
        except BaseException as error:
            logger.exception("the checkpoint of step %d failed", step)
            self._error = error

    def hold_back(self) -> None:
        """Let an update on a GPU wait for the copy."""
        self._buffer.hold_back()

    def wait(self) -> None:
        """As ``Saver.wait``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Give back the process group; a save that is still in flight has ``CLOSE_SECONDS`` to end."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                logger.warning("a checkpoint is still being written after %g s", CLOSE_SECONDS)
                return
        if self._writer.group is not None and self._error is None:
            dist.destroy_process_group(self._writer.group)
