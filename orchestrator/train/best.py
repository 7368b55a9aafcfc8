"""Weights of a stage's best evaluation, where the job wants these and not the last step's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import METRICS, best_first
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.errors import CheckpointError
from orchestrator.spec.job import TrainStage
from orchestrator.train.saves import retention_of


@dataclass(frozen=True)
class Weights:
    """What ``weights/`` is going to hold."""

    step: int
    metrics: Mapping[str, float]
    """Of the evaluation at this step."""
    tensors: Mapping[str, Tensor]
    """All parameters by name, float32, on the CPU."""


def best_of(stage: TrainStage, layout: StageLayout, manager: CheckpointManager, last: Weights) -> Weights:
    """The best weights that are there: those of a checkpoint, or the ``last`` where none is better.

    A checkpoint that is damaged is set aside, and the next best taken. In one process alone.
    """
    best = retention_of(stage).best
    assert best is not None

    def state_of(step: int) -> Mapping[str, Any]:
        if step == last.step:
            return {METRICS: last.metrics}
        return manager.read_state(layout.checkpoints / step_name(step))

    complete = {found.step for found in list_steps(layout.checkpoints) if found.is_complete}
    for step in sorted(complete - {last.step}):
        try:
            state_of(step)
        except CheckpointError:
            # Set aside and told: it may have been the best.
            manager.sound_weights(step)
            complete.discard(step)
    for step, _ in best_first(sorted(complete | {last.step}), best, state_of):
        if step == last.step:
            return last
        metrics, tensors = state_of(step)[METRICS], manager.sound_weights(step)
        if tensors is not None:
            return Weights(step, metrics, tensors)
    return last
