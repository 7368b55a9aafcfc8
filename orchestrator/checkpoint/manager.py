"""Saving, choosing and loading the checkpoints of a stage.

Saving, in this order, so that a process may die on any line:

1. rank 0 makes the folder, clearing what an interrupted save of the same step left;
2. all ranks write their shards through to the disk, with digests; rank 0 the index;
3. the ranks exchange digests, or what went wrong;
4. rank 0 writes ``state.json``, ``manifest.json`` and, last, ``COMPLETE``;
5. only then it removes old steps, their ``COMPLETE`` first.

Loading takes the newest complete step whose digests all hold; a damaged one is renamed and kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.peers import from_first, my_rank, tell_all
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.steps import COMPLETE, StepFolder, list_steps, step_name
from orchestrator.checkpoint.storage import (
    ShardReader,
    ShardWriter,
    StoredTensor,
    count_bytes,
    read_index,
    read_tensors,
)
from orchestrator.errors import CheckpointError

logger = logging.getLogger(__name__)
# A message names this many of the tensors that do not fit; the rest is usually more of the same.
NUM_NAMED = 3


class CheckpointManager:
    """The checkpoints in one folder. ``save``, ``newest`` and ``load`` are collective."""

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        """Look after ``folder``, which ``save`` creates; without ``retention`` nothing is removed."""
        self._folder = folder
        self._retention = retention
        self._verified: Path | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Commit ``tensors`` (an engine's neutral state) and ``state`` (JSON) as ``step``.

        A step that is complete already is left as it is: a trajectory reaches it only once.

        Raises:
            CheckpointError: On every rank, if any could not write; nothing incomplete is left behind.
        """
        path = self._folder / step_name(step)
        if from_first((path / COMPLETE).is_file()):
            logger.info("%s is complete already", path)
            return
        files: dict[str, seal.FileDigest] = {}
        problem = self._try_on_first(lambda: self._prepare(path))
        if problem is None:
            files, problem = _write_tensors(path, tensors)
        if problem is None:
            problem = self._try_on_first(lambda: _commit(path, files, state))
        if problem is not None:
            self._give_up(path, count_bytes(tensors), problem)
        if my_rank() == 0:
            self._remove_old(step)

    def _try_on_first(self, action: Callable[[], None]) -> str | None:
        """Run ``action`` on rank 0; what went wrong, on every rank."""
        problem = None
        if my_rank() == 0:
            try:
                action()
            except (OSError, TypeError, ValueError) as error:
                problem = f"rank 0: {error}"
        return from_first(problem)

    def _prepare(self, path: Path) -> None:
        """An empty folder for the step."""
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)

    def _give_up(self, path: Path, needed_bytes: int, problem: str) -> None:
        """Remove what was written and raise on every rank."""
        free_bytes = 0
        if my_rank() == 0:
            free_bytes = _free_bytes(self._folder)
            shutil.rmtree(path, ignore_errors=True)
        free_bytes = from_first(free_bytes)
        raise CheckpointError(
            f"{path}: could not be saved: {problem}. It needs {needed_bytes:,} bytes, {free_bytes:,} are free"
            " there; make room, or lower checkpoint.keep_last. Earlier checkpoints are untouched"
        )

    def _remove_old(self, newest_step: int) -> None:
        """Remove complete steps that nothing keeps, and interrupted ones that are older."""
        if self._retention is None:
            return
        steps = list_steps(self._folder)
        old = self._retention.removable([found for found in steps if found.is_complete])
        interrupted = [s for s in steps if not s.is_complete and s.step < newest_step]
        for found in old + interrupted:
            try:
                (found.path / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(found.path)
            except OSError as error:
                logger.warning("%s: could not be removed: %s", found.path, error)

    def newest(self) -> Path | None:
        """The newest complete checkpoint that verifies; rank 0 decides.

        A damaged one is renamed to ``quarantine-step-...`` and the next older taken.

        Raises:
            CheckpointError: On every rank: a damaged one could not be renamed.
        """
        found: Path | None = None
        problem: str | None = None
        if my_rank() == 0:
            try:
                found = self._newest_verified()
            except OSError as error:
                problem = str(error)
        found, problem = from_first((found, problem))
        if problem is not None:
            raise CheckpointError(
                f"{self._folder}: a damaged checkpoint could not be set aside: {problem}. Move it out of the"
                " folder, or make the folder writable"
            )
        self._verified = found
        return found

    def _newest_verified(self) -> Path | None:
        """As ``newest``, in one process."""
        for found in reversed(list_steps(self._folder)):
            if not found.is_complete:
                continue
            problem = seal.verify(found.path)
            if problem is None:
                return found.path
            _set_aside(found, problem)
        return None

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Fill ``tensors`` in place from the checkpoint in ``path``; its state.

        Raises:
            CheckpointError: On every rank: it does not verify, or holds other names, shapes or dtypes.
        """
        problem = from_first(self._check(path) if my_rank() == 0 else None)
        if problem is not None:
            raise CheckpointError(f"{path}: {problem}; resume from another checkpoint")
        misfits = find_misfits(read_index(path), tensors)
        if any(tell_all(bool(misfits))):
            raise CheckpointError(
                f"{path}: does not fit the model and optimizer: {len(misfits)} tensors differ on this rank: "
                + "; ".join(misfits[:NUM_NAMED])
                + ". Resume with the model and optimizer it was written with"
            )
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            with _one_process_is_fine():
                load(tensors, storage_reader=ShardReader(path), planner=planner)
        except CheckpointException as error:
            raise CheckpointError(f"{path}: could not be read: {_describe(error)}") from error
        return self.read_state(path)

    @staticmethod
    def read_state(path: Path) -> dict[str, Any]:
        """What ``save`` was given beside the tensors."""
        return seal.read_json(path / seal.STATE)

    def _check(self, path: Path) -> str | None:
        """What is wrong with ``path``, unless ``newest`` has just checked it."""
        return None if path == self._verified else seal.verify(path)

    @staticmethod
    def read_weights(path: Path) -> dict[str, Tensor]:
        """All parameters by name, float32, in this process alone.

        Raises:
            CheckpointError: The checkpoint does not verify.
        """
        problem = seal.verify(path)
        if problem is not None:
            raise CheckpointError(f"{path}: {problem}; name another checkpoint")
        return read_tensors(path, prefix="model.")

    @staticmethod
    def verify(path: Path) -> str | None:
        """What is wrong with a checkpoint; ``None``: it is what was written."""
        return seal.verify(path)


def _write_tensors(
    path: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, seal.FileDigest], str | None]:
    """Write this rank's part; the files of all ranks, or what went wrong on any."""
    writer = ShardWriter(path, my_rank())
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    problem = None
    try:
        with _one_process_is_fine():
            save(dict(tensors), storage_writer=writer, planner=planner)
    except CheckpointException as error:
        # DCP has told every rank already; the exchange below is for what only this rank saw.
        problem = _describe(error)
    reports = tell_all((writer.files, problem))
    files = {name: digest for found, _ in reports for name, digest in found.items()}
    return files, next((problem for _, problem in reports if problem is not None), None)


def _commit(path: Path, files: dict[str, seal.FileDigest], state: Mapping[str, Any]) -> None:
    """Write the state and seal the folder."""
    digest = seal.write_json(path / seal.STATE, dict(state))
    seal.seal(path, {**files, seal.STATE: digest})


def _set_aside(found: StepFolder, problem: str) -> None:
    """Rename a damaged checkpoint to a name that nothing else has."""
    target = found.path.with_name(f"quarantine-{found.path.name}")
    count = 1
    while target.exists():
        count += 1
        target = found.path.with_name(f"quarantine-{found.path.name}-{count}")
    os.rename(found.path, target)
    logger.warning("%s is damaged (%s); set aside as %s", found.path, problem, target.name)


def find_misfits(index: Mapping[str, StoredTensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Differences between a checkpoint and the tensors to fill, one line each."""
    misfits = [f"'{name}' is not in it" for name in sorted(tensors.keys() - index.keys())]
    misfits += [f"'{name}' is only in it" for name in sorted(index.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & index.keys()):
        found, expected = index[name], tensors[name]
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            misfits.append(
                f"'{name}' is {found.dtype} {list(found.shape)} in it, expected {expected.dtype}"
                f" {list(expected.shape)}"
            )
    return misfits


def _describe(error: CheckpointException) -> str:
    """The first rank's own error, without its traceback."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {cause}"


def _free_bytes(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without DCP's warning that there is no process group: one process is meant then."""
    if dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
        yield
