"""Choosing and loading the checkpoints of a stage; ``saving.py`` has how they are written.

Loading takes the newest complete step whose digests all hold; a damaged one is renamed and kept, and whoever
made the manager is told.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.peers import from_first, my_rank, tell_all
from orchestrator.checkpoint.remote import RemoteSteps, fetch_newer
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.saving import DirectSaver
from orchestrator.checkpoint.steps import QUARANTINE, StepFolder, list_steps
from orchestrator.checkpoint.storage import ShardReader, StoredTensor, read_index, read_tensors
from orchestrator.errors import CheckpointError

logger = logging.getLogger(__name__)
# A message names this many of the tensors that do not fit; the rest is usually more of the same.
NUM_NAMED = 3


@dataclass(frozen=True)
class Damage:
    """A checkpoint that is not what was written."""

    step: int
    problem: str
    kept_as: str
    """Where it is: a path, or a URL."""


class CheckpointManager:
    """The checkpoints in one folder. ``save``, ``newest`` and ``load`` are collective."""

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        *,
        on_damage: Callable[[Damage], None] | None = None,
        remote: RemoteSteps | None = None,
        committed: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """Look after ``folder``, which ``save`` creates; without ``retention`` nothing is removed.

        Args:
            on_damage: Called on rank 0 for each checkpoint that is damaged.
            remote: Where newer steps than those of ``folder`` may be.
            committed: Steps that were complete once, as somebody else has recorded.
        """
        self._folder = folder
        self._retention = retention
        self._on_damage = on_damage
        self._remote = remote
        self._committed = committed
        self._verified: Path | None = None
        self._damaged: list[str] = []

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Commit ``tensors`` (an engine's neutral state) and ``state`` (JSON) as ``step``; see ``Saver``."""
        DirectSaver(self._folder, self._retention).save(step, tensors, state, lambda: None)

    def newest(self) -> Path | None:
        """The newest complete checkpoint that verifies, fetched first where it is remote; rank 0 decides.

        A damaged one is renamed to ``quarantine-step-...`` and the next older taken. So is one that was
        complete and has lost its ``COMPLETE``, or everything; a save that was interrupted is passed over.

        Raises:
            CheckpointError: On every rank: a damaged one could not be renamed, or the remote not be read.
        """
        found: Path | None = None
        problem: str | None = None
        damaged: list[str] = []
        if my_rank() == 0:
            try:
                found = self._newest_here()
                damaged = [
                    str(path) for path in sorted(self._folder.glob(f"{QUARANTINE}step-*"), reverse=True)
                ]
                if self._remote is not None:
                    fetched, damaged_there = self._fetch_newer(self._remote, found)
                    found, damaged = fetched or found, damaged + damaged_there
            except CheckpointError as error:
                problem = str(error)
            except OSError as error:
                problem = (
                    f"{self._folder}: a damaged checkpoint could not be set aside: {error}. Move it out of"
                    " the folder, or make the folder writable"
                )
        found, self._damaged, problem = from_first((found, damaged, problem))
        if problem is not None:
            raise CheckpointError(problem)
        self._verified = found
        return found

    @property
    def damaged(self) -> list[str]:
        """Damaged checkpoints that the last ``newest`` knew of: paths, then URLs, each newest first."""
        return list(self._damaged)

    def _newest_here(self) -> Path | None:
        """As ``newest``, in one process and one folder."""
        committed = self._committed()
        for found in reversed(list_steps(self._folder)):
            problem = None
            if not found.is_complete and not seal.has_lost_complete(found.path):
                if found.step not in committed or not seal.is_unsealed(found.path):
                    continue
                problem = seal.EMPTIED
            problem = problem or seal.verify(found.path)
            if problem is None:
                return found.path
            self._tell(_set_aside(found, problem))
        return None

    def _fetch_newer(self, remote: RemoteSteps, here: Path | None) -> tuple[Path | None, list[str]]:
        """The newest good remote step, in the folder now, ``None``: none is newer; URLs of damaged ones.

        Raises:
            CheckpointError: Nobody can say what is there.
        """
        try:
            found, met = fetch_newer(remote, self._folder, here)
            damaged = remote.damaged()
        except Exception as error:
            raise CheckpointError(
                f"{remote.url} may hold newer checkpoints, and could not be read: {type(error).__name__}:"
                f" {error}. Mend that, or leave checkpoint.remote out to go on from what is here"
            ) from error
        for step, problem, kept_as in met:
            self._tell(Damage(step, problem, kept_as))
        left = [kept_as for _, _, kept_as in met if kept_as not in damaged]
        return found, left + damaged

    def _tell(self, damage: Damage) -> None:
        """Tell whoever wants to know."""
        if self._on_damage is not None:
            self._on_damage(damage)

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
        return self._state_of(path)

    def _state_of(self, path: Path) -> dict[str, Any]:
        """As ``read_state``, read by rank 0.

        Raises:
            CheckpointError: On every rank: it is damaged.
        """
        state: dict[str, Any] = {}
        problem = None
        if my_rank() == 0:
            try:
                state = self.read_state(path)
            except CheckpointError as error:
                problem = str(error)
        state, problem = from_first((state, problem))
        if problem is not None:
            raise CheckpointError(problem)
        return state

    @staticmethod
    def read_state(path: Path) -> dict[str, Any]:
        """What ``save`` was given beside the tensors."""
        return seal.read_state(path)

    def _check(self, path: Path) -> str | None:
        """What is wrong with ``path``, unless ``newest`` has just checked it."""
        return None if path == self._verified else seal.verify(path)

    def sound_weights(self, step: int) -> dict[str, Tensor] | None:
        """As ``read_weights`` of a step that is there; ``None``: it is damaged, and set aside like others."""
        found = next(found for found in list_steps(self._folder) if found.step == step)
        problem = seal.verify(found.path)
        if problem is None:
            return read_tensors(found.path, prefix="model.")
        self._tell(_set_aside(found, problem))
        return None

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


def _set_aside(found: StepFolder, problem: str) -> Damage:
    """Rename a damaged checkpoint to a name that nothing else has."""
    target = found.path.with_name(f"{QUARANTINE}{found.path.name}")
    count = 1
    while target.exists():
        count += 1
        target = found.path.with_name(f"{QUARANTINE}{found.path.name}-{count}")
    os.rename(found.path, target)
    logger.warning("%s is damaged (%s); set aside as %s", found.path, problem, target.name)
    return Damage(found.step, problem, str(target))


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


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without DCP's warning that there is no process group: one process is meant then."""
    if dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
        yield
