"""A training stage on one rank: join the parts, train, write the weights.

1. build what needs no communication (``building.py``) and hand the model to the strategy;
2. restore the newest verified checkpoint, if there is one;
3. train (``loop.py``), then evaluate;
4. write ``weights/`` and, last, ``result.json``.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import METRICS
from orchestrator.contracts import Engine, EngineSetup, Tracker
from orchestrator.errors import CheckpointError, LaunchError, OrchestratorError
from orchestrator.models import find_blocks, save_weights
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, TrainStage
from orchestrator.tracking.events import append_event
from orchestrator.train.agreement import AgreedError, together
from orchestrator.train.building import Parts, build_parts
from orchestrator.train.evaluate import evaluate_datasets
from orchestrator.train.ledger import Ledger
from orchestrator.train.loop import Loop, Outcome
from orchestrator.train.optim import make_optimizer
from orchestrator.train.results import last_training_metrics, replace_folder, write_result
from orchestrator.train.retained import check_best, retention_of
from orchestrator.train.stop import StopRequest
from orchestrator.train.trackers import start_trackers

logger = logging.getLogger(__name__)
# An older group of workers that is being killed releases its lock within the time a step takes.
LOCK_WAIT_SECONDS = 60.0


def run_training_stage(
    job: Job, stage: TrainStage, layout: RunLayout, *, rank: int, device: torch.device
) -> Outcome:
    """Train one stage from its newest verified checkpoint to its end; collective."""
    stage_layout = layout.stage(stage.name)
    with _only_writer(stage_layout, rank):
        parts = together("building the stage", partial(build_parts, job, stage, layout))
        manager = CheckpointManager(stage_layout.checkpoints, retention_of(stage))
        try:
            engine = _build_engine(stage, parts, rank=rank, device=device)
            start = _restore(engine, manager, _identity(job, stage, parts))
        except OrchestratorError as error:
            # Strategies and checkpoints refuse on all ranks alike, and a restart would meet the same.
            raise AgreedError(error) from error
        run = _Run(job, stage, layout, parts, engine, manager, rank, device)
        return run.train(start)


@contextmanager
def _only_writer(layout: StageLayout, rank: int) -> Iterator[None]:
    """Hold the stage's lock on rank 0: workers of an earlier start may still be on their way out.

    Raises:
        LaunchError: The lock is still held after ``LOCK_WAIT_SECONDS``.
    """
    if rank != 0:
        yield
        return
    layout.root.mkdir(parents=True, exist_ok=True)
    with layout.worker_lock.open("a") as lock:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"{layout.worker_lock}: workers of another start still train this stage"
                        f" after {LOCK_WAIT_SECONDS:g} s; stop them, or wait for them to end"
                    ) from error
                time.sleep(0.2)
        yield


def _build_engine(stage: TrainStage, parts: Parts, *, rank: int, device: torch.device) -> Engine:
    """The strategy around the model; collective."""
    setup = EngineSetup(
        device=device,
        rank=rank,
        world_size=parts.batch_plan.world_size,
        micro_batch_size=stage.micro_batch_size,
        grad_accum_steps=parts.batch_plan.grad_accum_steps,
        max_grad_norm=stage.optimizer.max_grad_norm,
        make_optimizer=lambda model: make_optimizer(model, stage.optimizer),
        blocks=find_blocks(parts.model),
    )
    engine: Engine = resolve("strategy", stage.strategy.name)(parts.model, stage.strategy, setup)
    return engine


@dataclass(frozen=True)
class _Start:
    """Where a start of a stage begins."""

    step: int
    """Steps completed before."""
    saved_by: int | None
    """Workers that wrote the checkpoint it goes on from; ``None``: there is none, or it does not say."""


def _restore(engine: Engine, manager: CheckpointManager, identity: Mapping[str, Any]) -> _Start:
    """Restore the newest verified checkpoint, if there is one.

    Raises:
        CheckpointError: It was written by a job whose trajectory differs, or on other data.
    """
    newest = manager.newest()
    if newest is None:
        return _Start(0, None)
    tensors = engine.neutral_state()
    state = manager.load(newest, tensors)
    engine.neutral_state_loaded(tensors)
    # Checkpoints of earlier versions do not name their data.
    changed = [key for key, value in identity.items() if state.get(key, value) != value]
    if changed:
        key = changed[0]
        raise CheckpointError(
            f"{newest}: written with {key} {state[key]}, the job has {identity[key]};"
            " set it back, or start over with --fresh"
        )
    logger.info("resumed from %s", newest)
    return _Start(int(state["step"]), state.get("world_size"))


def _identity(job: Job, stage: TrainStage, parts: Parts) -> dict[str, Any]:
    """What a checkpoint and the job that resumes it must agree on."""
    return {
        "seed": job.seed,
        "global_batch_size": stage.global_batch_size,
        "micro_batch_size": stage.micro_batch_size,
        "stage": stage.name,
        **{f"data.{name}": digest for name, digest in parts.data_digests.items()},
    }


@dataclass(frozen=True)
class _Run:
    """One start of a training stage on one rank."""

    job: Job
    stage: TrainStage
    layout: RunLayout
    parts: Parts
    engine: Engine
    manager: CheckpointManager
    rank: int
    device: torch.device

    @property
    def stage_layout(self) -> StageLayout:
        """Paths of the stage."""
        return self.layout.stage(self.stage.name)

    def train(self, start: _Start) -> Outcome:
        """Loop, final evaluation, weights, result."""
        trackers = start_trackers(
            self.job,
            self.stage,
            self.stage_layout,
            self.parts.inputs,
            start_step=start.step,
            rank=self.rank,
        )
        ledger = None
        if self.rank == 0:
            ledger = self._open_ledger(start)
            self._record("training_started", step=start.step, max_steps=self.parts.max_steps)
        ended: Literal["finished", "stopped", "failed"] = "failed"
        try:
            outcome = self._loop(trackers, ledger).run(start.step)
            if outcome == "finished":
                self._finish(trackers)
            ended = outcome
        finally:
            for tracker in trackers:
                tracker.finish(ended)
        return outcome

    def _open_ledger(self, start: _Start) -> Ledger:
        """The ledger, to be continued from ``start``."""
        return Ledger(
            self.stage_layout.ledger,
            self.parts.batch_plan,
            start.step,
            mixture=self.parts.reader.mixture,
            data=self.parts.data_digests,
            saved_by=start.saved_by,
        )

    def _loop(self, trackers: list[Tracker], ledger: Ledger | None) -> Loop:
        """The loop over this run's parts."""
        return Loop(
            stage=self.stage,
            seed=self.job.seed,
            rank=self.rank,
            device=self.device,
            batch_plan=self.parts.batch_plan,
            max_steps=self.parts.max_steps,
            engine=self.engine,
            objective=self.parts.objective,
            reader=self.parts.reader,
            trackers=trackers,
            evaluate=self._evaluate,
            save=partial(self._save, ledger),
            stop=StopRequest(self.layout.stop_request),
        )

    def _save(self, ledger: Ledger | None, step: int, evaluated: Mapping[str, float]) -> None:
        """Commit the state after ``step`` steps, then what it consumed."""
        check_best(self.stage, evaluated)
        rows = step * self.stage.global_batch_size
        state = {
            **_identity(self.job, self.stage, self.parts),
            "job": self.job.name,
            "step": step,
            "rows": rows,
            "tokenizer": self.parts.inputs.data_digests["tokenizer"],
            "world_size": self.parts.batch_plan.world_size,
            METRICS: dict(evaluated),
        }
        try:
            self.manager.save(step, self.engine.neutral_state(), state)
        except CheckpointError as error:
            # The manager raises on all ranks alike, and a restart would meet the same disk.
            raise AgreedError(error) from error
        if ledger is not None:
            ledger.commit(step)
            self._record("checkpoint", step=step)

    def _record(self, event: str, **fields: int) -> None:
        """Append an event of this stage."""
        append_event(self.layout.events, event, stage=self.stage.name, **fields)

    def _evaluate(self) -> dict[str, float]:
        """Metrics of the validation rows; empty without an evaluation section. Collective."""
        if self.stage.evaluation is None:
            return {}
        return evaluate_datasets(
            self.engine.model,
            self.parts.objective,
            self.parts.evaluation,
            micro_batch_size=self.stage.micro_batch_size,
            max_rows=self.stage.evaluation.max_rows,
            seed=self.job.seed,
            device=self.device,
            forward_context=lambda: self.engine.micro_step(last=False),
        )

    def _finish(self, trackers: list[Tracker]) -> None:
        """Final evaluation, ``weights/``, and last ``result.json``; collective."""
        metrics = self._evaluate()
        weights = self.engine.full_weights()

        def write() -> None:
            if weights is None:
                return
            write_weights = partial(save_weights, self.parts.model, weights, self.parts.tokenizer)
            replace_folder(self.stage_layout.weights, write_weights)
            all_metrics = {**last_training_metrics(self.stage_layout), **metrics}
            step = self.parts.max_steps
            # The log line comes after: a death between costs it, a repetition would double it.
            write_result(self.stage_layout, self.parts.inputs, step=step, metrics=all_metrics)
            for tracker in trackers:
                if metrics:
                    tracker.log(step, metrics)

        together("writing the weights", write)
