"""What of a training stage outlives its workers: saved, restored, gone back to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import METRICS
from orchestrator.checkpoint.saving import Saver
from orchestrator.contracts import Engine
from orchestrator.errors import CheckpointError
from orchestrator.spec.fingerprint import difference, leaves, trajectory_keys
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import dump_resolved, parse_resolved
from orchestrator.spec.reads import trained_stage
from orchestrator.tracking.events import time_now
from orchestrator.train.agreement import AgreedError
from orchestrator.train.anomalies import AnomalyWatch
from orchestrator.train.building import Parts
from orchestrator.train.ledger import Ledger, Range
from orchestrator.train.phases import PhaseClock
from orchestrator.train.saves import agreed, check_best
from orchestrator.train.witnesses import WITNESSED

logger = logging.getLogger(__name__)
# A message names this many damaged checkpoints.
NUM_NAMED = 5
JOB_FILE = "job_file"
"""Key of a checkpoint's state: the resolved job that wrote it, as text."""


@dataclass(frozen=True)
class Start:
    """Where a start of a stage begins."""

    step: int
    """Steps completed before."""
    saved_by: int | None
    """Workers that wrote the checkpoint it goes on from; ``None``: there is none, or it does not say."""
    recent_losses: Sequence[float] = ()
    """What the watch for anomalies had seen."""
    in_a_row: int = 0
    """Anomalies just before."""
    since: int | None = None
    """The step that the ledger had recorded when it was written; ``None``: it does not say."""
    left_out: Sequence[Range] = ()
    """Steps since then that made no update."""
    loss_scale: Mapping[str, float] | None = None
    """State of the loss scaler; ``None``: there was none."""


def restore(engine: Engine, manager: CheckpointManager, identity: Mapping[str, Any]) -> Start:
    """Restore the newest verified checkpoint, if there is one.

    Raises:
        CheckpointError: Another trajectory or other data have written it, or all are damaged.
    """
    newest = manager.newest()
    if newest is None:
        damaged = manager.damaged
        # One alone is the first there was: an interval or two are lost, as by a kill before it.
        if len(damaged) > 1:
            raise CheckpointError(_none_is_good(damaged))
        return Start(0, None)
    tensors = engine.neutral_state()
    state = manager.load(newest, tensors)
    engine.neutral_state_loaded(tensors)
    # Checkpoints of earlier versions do not name their data, nor hold their job.
    lines = _other_trajectory(identity["stage"], state.get(JOB_FILE, identity[JOB_FILE]), identity[JOB_FILE])
    if lines:
        raise CheckpointError(
            f"{newest}: written by a job that differs in {'; '.join(lines)}; set it back, give the job"
            " another name or checkpoint.remote, or start over with --fresh"
        )
    plain = {key: value for key, value in identity.items() if key != JOB_FILE}
    changed = [key for key, value in plain.items() if state.get(key, value) != value]
    if changed:
        key = changed[0]
        raise CheckpointError(
            f"{newest}: written with {key} {state[key]}, the job has {identity[key]};"
            " set it back, or start over with --fresh"
        )
    logger.info("resumed from %s", newest)
    return Start(
        step=int(state["step"]),
        saved_by=state.get("world_size"),
        recent_losses=state.get("recent_losses", ()),
        in_a_row=state.get("anomalies_in_a_row", 0),
        since=state.get("recorded"),
        left_out=tuple((first, end) for first, end in state.get("left_out", [])),
        loss_scale=state.get("loss_scale"),
    )


def _none_is_good(damaged: Sequence[str]) -> str:
    """What a person is told of a stage whose checkpoints, paths and then URLs, are all damaged."""
    names = ", ".join(damaged[:NUM_NAMED]) + (", ..." if len(damaged) > NUM_NAMED else "")
    message = (
        f"no checkpoint of the stage is good, and {len(damaged)} are damaged: {names}. Mend or bring back one"
    )
    if "://" not in damaged[-1]:
        return f"{message}, or start the stage over with --redo"
    return (
        f"{message} under its name step-...; or, to start the stage over, move those of remote storage away,"
        " or give the job another name or checkpoint.remote"
    )


def _other_trajectory(stage: str, written_by: str, resumed_by: str) -> list[str]:
    """Keys in which two resolved jobs would train a stage otherwise, one line each."""
    if written_by == resumed_by:
        return []
    old, new = (parse_resolved(text, JOB_FILE) for text in (written_by, resumed_by))
    return difference(*(_placeless(trajectory_keys(trained_stage(job, stage), job)) for job in (old, new)))


def _placeless(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values without where local files lie: another machine has them elsewhere, and digests tell."""
    return {
        path: "a local file or folder" if isinstance(value, str) and value.startswith("/") else value
        for path, value in leaves(keys)
    }


def identity(job: Job, stage: TrainStage, parts: Parts) -> dict[str, Any]:
    """What a checkpoint and the job that resumes it must agree on."""
    return {
        "seed": job.seed,
        "global_batch_size": stage.global_batch_size,
        "micro_batch_size": stage.micro_batch_size,
        "stage": stage.name,
        JOB_FILE: dump_resolved(job),
        **{f"data.{name}": digest for name, digest in parts.data_digests.items()},
    }


@dataclass(frozen=True)
class StageState:
    """Saves a stage's state and goes back to it; its methods are collective."""

    job: Job
    stage: TrainStage
    parts: Parts
    engine: Engine
    manager: CheckpointManager
    saver: Saver
    watch: AnomalyWatch
    ledger: Ledger | None
    """On rank 0 alone."""
    clock: PhaseClock
    record: Callable[..., None]
    """Takes down an event and its fields."""

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self.job, self.stage, self.parts)

    def save(self, step: int, evaluated: Mapping[str, float]) -> None:
        """Save the state after ``step`` steps and, once it is committed, record what it consumed.

        Args:
            evaluated: Metrics of an evaluation at that step.
        """
        check_best(self.stage, evaluated)
        self._wait()
        tensors = self.engine.neutral_state()
        left_out = self.watch.take_left_out()
        state = {
            **self._identity,
            "job": self.job.name,
            "step": step,
            "rows": step * self.stage.global_batch_size,
            "tokenizer": self.parts.inputs.data_digests["tokenizer"],
            "label_names": list(self.parts.inputs.label_names),
            "world_size": self.parts.batch_plan.world_size,
            "recent_losses": self.watch.recent_losses,
            "anomalies_in_a_row": self.watch.in_a_row,
            # Written by rank 0.
            "recorded": None if self.ledger is None else self.ledger.committed,
            "left_out": left_out,
            **({} if self.watch.scaler is None else {"loss_scale": self.watch.scaler.state}),
            METRICS: dict(evaluated),
        }
        # The clock is for this thread alone, and the event comes later; this save counts to what follows.
        seconds, counted_until = self.clock.take(), time_now()

        def committed() -> None:
            assert self.ledger is not None
            self.ledger.commit(step, left_out)
            self.record(
                "checkpoint",
                step=step,
                seconds=seconds,
                counted_until=counted_until,
                **{key: state[key] for key in WITNESSED},
            )

        with agreed():
            self.saver.save(step, tensors, state, committed)

    def _wait(self) -> None:
        """Until the save in flight is committed; how long that takes says nothing about a hang."""
        self.clock.enter("save_wait")
        with agreed():
            self.saver.wait()
        self.clock.enter("save")

    def roll_back(self) -> int:
        """Restore the newest checkpoint; its step."""
        self._wait()
        try:
            start = restore(self.engine, self.manager, self._identity)
            # One of step 0 was saved, and says by whom.
            if start.step == 0 and start.saved_by is None:
                raise CheckpointError(
                    f"stage '{self.stage.name}': no checkpoint to go back to is good, not even that of its"
                    " beginning: start it over with --redo"
                )
        except CheckpointError as error:
            raise AgreedError(error) from error
        self.watch.recent_losses = list(start.recent_losses)
        if self.watch.scaler is not None and start.loss_scale is not None:
            self.watch.scaler.restore(start.loss_scale)
        return start.step


def open_ledger(layout: StageLayout, job: Job, parts: Parts, start: Start) -> Ledger:
    """The stage's ledger, to be continued from ``start``."""
    return Ledger(
        layout.ledger,
        parts.batch_plan,
        start.step,
        mixture=parts.reader.mixture,
        data=parts.data_digests,
        seed=job.seed,
        saved_by=start.saved_by,
        since=start.since,
        left_out=start.left_out,
    )
