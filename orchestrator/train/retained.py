"""Which checkpoints a stage's job keeps, and whether its evaluation can say which is the best."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.checkpoint.retention import Best, Retention
from orchestrator.errors import PlanError
from orchestrator.spec.job import TrainStage
from orchestrator.train.agreement import AgreedError


def retention_of(stage: TrainStage) -> Retention:
    """Which checkpoints the job keeps."""
    kept, best = stage.checkpoint, stage.checkpoint.keep_best
    return Retention(kept.keep_last, kept.keep_every_steps, Best(best.metric, best.mode) if best else None)


def check_best(stage: TrainStage, evaluated: Mapping[str, float]) -> None:
    """Refuse to compare checkpoints by a metric that the evaluation does not have.

    Raises:
        AgreedError: On every rank, naming the metrics that it has.
    """
    best = stage.checkpoint.keep_best
    if best is not None and evaluated and best.metric not in evaluated:
        raise AgreedError(
            PlanError(
                f"stage '{stage.name}': checkpoint.keep_best.metric is '{best.metric}', expected a metric of"
                f" its evaluation: {', '.join(sorted(evaluated))}. Correct it and run the same command again"
            )
        )
