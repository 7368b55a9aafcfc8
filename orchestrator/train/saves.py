"""How a stage's job wants its checkpoints: in the background or not, which are kept, what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from orchestrator.checkpoint.background import BackgroundSaver
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager, Damage
from orchestrator.checkpoint.remote import Mirror, RemoteSteps, stage_url
from orchestrator.checkpoint.retention import Best, Retention
from orchestrator.checkpoint.saving import DirectSaver, Saver
from orchestrator.contracts import Engine
from orchestrator.errors import CheckpointError, PlanError, TrainingError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.metrics import best_mode
from orchestrator.tracking.events import append_event
from orchestrator.train.agreement import AgreedError
from orchestrator.train.ledger import committed_steps


def make_manager(job: Job, stage: TrainStage, layout: RunLayout) -> CheckpointManager:
    """What finds the checkpoint to start from; a damaged one becomes an event."""
    return CheckpointManager(
        layout.stage(stage.name).checkpoints,
        on_damage=partial(record_damage, layout, stage.name),
        remote=_remote(job, stage),
        committed=partial(committed_steps, layout.stage(stage.name).ledger),
    )


def make_saver(
    job: Job,
    stage: TrainStage,
    layout: RunLayout,
    engine: Engine,
    device: torch.device,
    check_owner: Callable[[], None],
) -> Saver:
    """The saver that the job asks for; collective.

    Args:
        check_owner: Called on rank 0 before anything is changed; raises where others write the stage by now.

    Raises:
        CheckpointError: On every rank: there is no memory for a copy of the state.
    """
    folder, retention = layout.stage(stage.name).checkpoints, retention_of(stage)
    remote, mirror = _remote(job, stage), None
    if remote is not None:
        mirror = Mirror(remote, retention, partial(_record_failed_upload, layout, stage.name))
    if not stage.checkpoint.asynchronous:
        return DirectSaver(folder, retention, mirror, check_owner)
    state = engine.neutral_state()
    return BackgroundSaver.start(folder, retention, state, device, mirror, check_owner)


def _remote(job: Job, stage: TrainStage) -> RemoteSteps | None:
    """Where the job keeps a second copy."""
    url = stage.checkpoint.remote
    return None if url is None else RemoteSteps(stage_url(url, job.name, stage.name))


def _record_failed_upload(layout: RunLayout, stage: str, problem: str) -> None:
    """Append an event about checkpoints that are not in remote storage yet."""
    append_event(layout.events, "checkpoint_not_uploaded", stage=stage, problem=problem)


@contextmanager
def agreed() -> Iterator[None]:
    """Savers raise on all ranks alike, and a restart would meet the same disk."""
    try:
        yield
    except (CheckpointError, TrainingError) as error:
        raise AgreedError(error) from error


def record_damage(layout: RunLayout, stage: str, damage: Damage) -> None:
    """Append an event about a checkpoint that was set aside."""
    append_event(
        layout.events,
        "checkpoint_damaged",
        stage=stage,
        step=damage.step,
        problem=damage.problem,
        kept_as=damage.kept_as.removeprefix(f"{layout.root}/"),
    )


def retention_of(stage: TrainStage) -> Retention:
    """Which checkpoints the job keeps."""
    kept, best = stage.checkpoint, stage.checkpoint.keep_best
    return Retention(
        kept.keep_last, kept.keep_every_steps, Best(best.metric, best_mode(stage)) if best else None
    )


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
