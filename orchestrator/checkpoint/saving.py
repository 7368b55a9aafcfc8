"""Committing one step, in an order such that a process may die on any line.

1. rank 0 makes the folder, clearing what an interrupted save of the same step left;
2. all ranks write their shards through to the disk, with digests;
3. the ranks exchange digests, or what went wrong;
4. rank 0 writes the index, ``state.json``, ``manifest.json`` and, last, ``COMPLETE``;
5. only then it removes old steps, their ``COMPLETE`` first, and tells the caller;
6. it copies the step to remote storage, where the job names one (``remote.py``).
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.finite import NotFiniteError
from orchestrator.checkpoint.peers import from_first, my_rank, tell_all
from orchestrator.checkpoint.remote import Mirror
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.shard_file import live_parts, write_shard
from orchestrator.checkpoint.shard_plan import ShardPlan, plan_shards
from orchestrator.checkpoint.steps import COMPLETE, InTheWayError, list_steps, make_empty, step_name
from orchestrator.errors import CheckpointError, ReplacedError, TrainingError

logger = logging.getLogger(__name__)


class Saver(Protocol):
    """Saves the steps of one stage; every method but ``has_failed`` and ``hold_back`` is collective."""

    @property
    def has_failed(self) -> bool:
        """Whether a save of which nobody has heard yet went wrong, as far as this rank knows."""

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        committed: Callable[[], None],
    ) -> None:
        """Commit ``tensors`` (an engine's neutral state) and ``state`` (JSON) as ``step``.

        A step that is complete already is left as it is: a trajectory reaches it only once.

        Args:
            committed: Called on rank 0 once the step is complete.

        Raises:
            CheckpointError: On every rank, if any could not write; nothing incomplete is left behind.
            TrainingError: On every rank, if the part of any holds NaN or infinity.
        """

    def hold_back(self) -> None:
        """Called before anything changes the tensors that were given to ``save``."""

    def wait(self) -> None:
        """Until the step that was given to ``save`` is committed.

        Raises:
            CheckpointError: As ``save``.
        """

    def close(self) -> None:
        """Save no more."""


class DirectSaver:
    """Saves while the caller waits, without a copy of the state."""

    has_failed = False

    def __init__(
        self,
        folder: Path,
        retention: Retention | None,
        mirror: Mirror | None = None,
        check_owner: Callable[[], None] | None = None,
    ) -> None:
        """Save into ``folder``, which the first save creates; without ``retention`` nothing is removed."""
        self._writer = StepWriter(folder, retention, mirror=mirror, check_owner=check_owner)
        self._plan: ShardPlan | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        committed: Callable[[], None],
    ) -> None:
        """As ``Saver.save``."""
        if self._plan is None:
            self._plan = plan_shards(tensors)
        self._writer.write(step, self._plan, live_parts(self._plan, tensors), state, committed)

    def hold_back(self) -> None:
        """Nothing is in flight after a save."""

    def wait(self) -> None:
        """Nothing is in flight after a save."""

    def close(self) -> None:
        """There is nothing to give back."""


@dataclass(frozen=True)
class _Problem:
    """What went wrong on a rank, as all ranks hear of it."""

    message: str
    is_of_state: bool
    """The state itself is not fit to be saved."""
    is_replaced: bool
    """Others write the folder by now."""
    is_in_the_way: bool
    """Something else has the name of the step."""
    free_bytes: int | None
    """Of the disk, if it or somebody's part of it is full."""

    @classmethod
    def of(cls, error: Exception, folder: Path) -> _Problem:
        """What this rank met as it saved into ``folder``."""
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return cls(
            f"rank {my_rank()}: {error}",
            isinstance(error, NotFiniteError),
            isinstance(error, ReplacedError),
            isinstance(error, InTheWayError),
            _free_bytes(folder) if is_full else None,
        )


@dataclass(frozen=True)
class StepWriter:
    """Writes steps into one folder; collective over ``group``."""

    folder: Path
    retention: Retention | None
    group: dist.ProcessGroup | None = None
    """Of all ranks, for a thread of its own; ``None``: the one that training uses."""
    mirror: Mirror | None = None
    """Where rank 0 copies complete steps to."""
    check_owner: Callable[[], None] | None = None
    """Called on rank 0 before it changes anything; raises ``ReplacedError`` where others write by now."""

    def write(
        self,
        step: int,
        plan: ShardPlan,
        parts: Iterable[memoryview],
        state: Mapping[str, Any],
        committed: Callable[[], None],
    ) -> None:
        """Write and commit one step, as ``Saver.save``.

        Args:
            parts: The bytes of this rank's shard file.
        """
        path = self.folder / step_name(step)
        if from_first((path / COMPLETE).is_file(), self.group):
            logger.info("%s is complete already", path)
        else:
            self._write_new(path, plan, parts, state)
        self._finish(path, step, committed)
        if self.mirror is not None:
            if my_rank() == 0:
                self.mirror.push(self.folder)
            # All ranks wait for it here, and not in a collective of training, whose patience is limited.
            from_first(None, self.group)

    def _write_new(
        self, path: Path, plan: ShardPlan, parts: Iterable[memoryview], state: Mapping[str, Any]
    ) -> None:
        """Write and commit a step that is not there yet."""
        problem = self._try_on_first(lambda: make_empty(path))
        files: dict[str, seal.FileDigest] = {}
        if problem is None:
            files, problem = self._write_shards(path, plan, parts)
        if problem is None:
            problem = self._try_on_first(lambda: _commit(path, files, plan, state))
        if problem is not None:
            self._give_up(path, plan.state_bytes, problem)

    def _try_on_first(self, action: Callable[[], None]) -> _Problem | None:
        """Run ``action`` on rank 0; what went wrong, on every rank."""
        problem = None
        if my_rank() == 0:
            try:
                if self.check_owner is not None:
                    self.check_owner()
                action()
            except Exception as error:
                # Whatever it is: the other ranks wait to hear of it.
                logger.exception("rank 0 could not save")
                problem = _Problem.of(error, self.folder)
        return from_first(problem, self.group)

    def _write_shards(
        self, path: Path, plan: ShardPlan, parts: Iterable[memoryview]
    ) -> tuple[dict[str, seal.FileDigest], _Problem | None]:
        """Write this rank's file; the files of all ranks, or what went wrong on any."""
        digest, problem = None, None
        try:
            digest = write_shard(path / plan.file, parts)
        except Exception as error:
            logger.exception("%s could not be written", path / plan.file)
            problem = _Problem.of(error, self.folder)
        reports = tell_all((plan.file, digest, problem), self.group)
        files = {name: digest for name, digest, _ in reports if digest is not None}
        return files, next((problem for _, _, problem in reports if problem is not None), None)

    def _give_up(self, path: Path, needed_bytes: int, problem: _Problem) -> None:
        """Remove what was written and raise on every rank."""
        if not (problem.is_in_the_way or problem.is_replaced):
            # Unless others write by now, or nobody can tell: the folder may be theirs.
            replaced = self._try_on_first(lambda: shutil.rmtree(path, ignore_errors=True))
            problem = replaced if replaced is not None and replaced.is_replaced else problem
        if problem.is_replaced:
            raise ReplacedError(f"{path}: not saved: {problem.message}")
        if problem.is_in_the_way:
            raise CheckpointError(f"{path}: not saved: {problem.message}, and run the same command again")
        if problem.is_of_state:
            raise TrainingError(
                f"{path}: not saved: {problem.message}. The newest checkpoint is from before. Start over with"
                " --fresh and a lower learning rate, or a lower max_grad_norm"
            )
        advice = (
            f"It needs {needed_bytes:,} bytes, {problem.free_bytes:,} are free there; make room, or lower"
            " checkpoint.keep_last"
            if problem.free_bytes is not None
            else "Mend that and run the same command again"
        )
        raise CheckpointError(
            f"{path}: could not be saved: {problem.message}. {advice}. Earlier checkpoints are untouched"
        )

    def _remove_old(self, newest_step: int) -> None:
        """Remove complete steps that nothing keeps, and interrupted ones that are older."""
        if self.retention is None:
            return
        steps = list_steps(self.folder)
        complete = {found.step: found.path for found in steps if found.is_complete}
        old = self.retention.removable(list(complete), lambda step: seal.read_state(complete[step]))
        interrupted = [s.path for s in steps if not s.is_complete and s.step < newest_step]
        kept = [path for path in interrupted if seal.has_lost_complete(path)]
        for path in [complete[step] for step in old] + interrupted:
            try:
                if path not in kept:
                    seal.remove(path)
            except OSError as error:
                logger.warning("%s: could not be removed: %s", path, error)

    def _finish(self, path: Path, step: int, committed: Callable[[], None]) -> None:
        """On rank 0 remove old steps, and tell the caller that this one is complete.

        Raises:
            CheckpointError: On every rank, if that could not be written down.
        """

        def finish() -> None:
            self._remove_old(step)
            committed()

        problem = self._try_on_first(finish)
        if problem is not None and problem.is_replaced:
            raise ReplacedError(f"{path}: not recorded: {problem.message}")
        if problem is not None:
            raise CheckpointError(
                f"{path} is complete, but could not be recorded: {problem.message}; make room and run the"
                " same command again"
            )


def _commit(
    path: Path, files: Mapping[str, seal.FileDigest], plan: ShardPlan, state: Mapping[str, Any]
) -> None:
    """Write the index and the state, and seal the folder."""
    assert plan.index is not None
    written = {
        seal.METADATA: seal.write_bytes(path / seal.METADATA, plan.index),
        seal.STATE: seal.write_json(path / seal.STATE, dict(state)),
    }
    seal.seal(path, {**files, **written})


def _free_bytes(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
