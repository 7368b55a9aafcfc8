"""Which checkpoints of a stage are what was written, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.steps import COMPLETE, StepFolder, newest_step
from orchestrator.train.ledger import committed_steps


@dataclass(frozen=True)
class CheckpointProof:
    """One checkpoint: what is wrong with it, if anything."""

    step: int
    problem: str | None


def prove_checkpoints(layout: StageLayout, steps: Sequence[StepFolder]) -> Iterator[CheckpointProof]:
    """Verify checkpoints byte by byte; a save or a removal that goes on, or was interrupted, leaves none.

    Args:
        steps: Those of the stage, listed before its ledger is read.
    """
    for found in steps:
        has_lost_complete = seal.has_lost_complete(found.path)
        if not (found.is_complete or has_lost_complete):
            continue
        problem = seal.verify(found.path)
        # Without its COMPLETE by now, a run in progress has removed it for a newer one.
        if problem is None or has_lost_complete or (found.path / COMPLETE).exists():
            yield CheckpointProof(found.step, problem)
    yield from _emptied(layout, steps)


def _emptied(layout: StageLayout, steps: Sequence[StepFolder]) -> Iterator[CheckpointProof]:
    """Folders of steps that the ledger has and no newer checkpoint made superfluous, with nothing in them.

    The ledger is read after ``steps`` were listed, and folders are looked at once more after it: a save that
    was going on is complete by then, and a removal has left a newer checkpoint.
    """
    committed = set(committed_steps(layout.ledger))
    newest = newest_step(layout.checkpoints) or 0
    for found in steps:
        if found.is_complete or found.step not in committed or found.step <= newest:
            continue
        if found.path.is_dir() and seal.is_unsealed(found.path):
            yield CheckpointProof(found.step, seal.EMPTIED)
