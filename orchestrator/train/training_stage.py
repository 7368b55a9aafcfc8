"""A training stage on one rank: join the parts, train, write the weights.

1. build what needs no communication (``building.py``) and hand the model to the strategy;
2. restore the newest verified checkpoint, if there is one;
3. train (``loop.py``), then evaluate;
4. write ``weights/`` and, last, ``result.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.saving import Saver
from orchestrator.checkpoint.steps import step_name
from orchestrator.contracts import Engine, EngineSetup, Tracker
from orchestrator.errors import OrchestratorError
from orchestrator.models import find_blocks, save_weights
from orchestrator.registry import resolve
from orchestrator.spec.float16 import loss_scale_of
from orchestrator.spec.job import Job, TrainStage
from orchestrator.tracking.accounting import GoodputMeter
from orchestrator.tracking.events import append_event
from orchestrator.train.agreement import AgreedError, together
from orchestrator.train.anomalies import AnomalyWatch
from orchestrator.train.best import Weights, best_of
from orchestrator.train.building import Parts, build_parts
from orchestrator.train.evaluate import evaluate_datasets
from orchestrator.train.ledger import Ledger, committed_steps
from orchestrator.train.loop import Loop, Outcome
from orchestrator.train.loss_scale import LossScaler
from orchestrator.train.optim import make_optimizer
from orchestrator.train.ownership import Ownership, only_writer
from orchestrator.train.phases import Phase, PhaseClock
from orchestrator.train.rehearsed import clock_for
from orchestrator.train.results import is_logged, last_training_metrics, replace_folder, write_result
from orchestrator.train.saves import agreed, make_manager, make_saver
from orchestrator.train.state import StageState, Start, identity, open_ledger, restore
from orchestrator.train.stop import PreemptionNotice, StopRequest
from orchestrator.train.trackers import start_trackers
from orchestrator.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


def run_training_stage(
    job: Job,
    stage: TrainStage,
    layout: RunLayout,
    *,
    rank: int,
    device: torch.device,
    notice: PreemptionNotice | None,
) -> Outcome:
    """Train one stage from its newest verified checkpoint to its end; collective."""
    stage_layout = layout.stage(stage.name)
    with only_writer(stage_layout, rank) as owner:
        parts = together("building the stage", partial(build_parts, job, stage, layout))
        try:
            engine = _build_engine(job, stage, parts, rank=rank, device=device)
            manager = make_manager(job, stage, layout)
            start = restore(engine, manager, identity(job, stage, parts))
            saver = make_saver(job, stage, layout, engine, device, owner.check)
        except OrchestratorError as error:
            # Strategies and checkpoints refuse on all ranks alike, and a restart would meet the same.
            raise AgreedError(error) from error
        clock = clock_for(layout, stage.name, rank, start.step)
        run = _Run(job, stage, layout, parts, engine, manager, saver, clock, rank, device, notice, owner)
        hang_seconds, stacks = job.resources.hang_timeout_seconds, stage_layout.stacks(rank)
        with Watchdog(clock, hang_seconds, stacks, run.record_hang):
            return run.train(start)


def _build_engine(job: Job, stage: TrainStage, parts: Parts, *, rank: int, device: torch.device) -> Engine:
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
        reproducibility=job.reproducibility,
        loss_scale=loss_scale_of(stage),
    )
    engine: Engine = resolve("strategy", stage.strategy.name)(parts.model, stage.strategy, setup)
    return engine


@dataclass(frozen=True)
class _Run:
    """One start of a training stage on one rank."""

    job: Job
    stage: TrainStage
    layout: RunLayout
    parts: Parts
    engine: Engine
    manager: CheckpointManager
    saver: Saver
    clock: PhaseClock
    rank: int
    device: torch.device
    notice: PreemptionNotice | None
    owner: Ownership

    @property
    def stage_layout(self) -> StageLayout:
        """Paths of the stage."""
        return self.layout.stage(self.stage.name)

    def train(self, start: Start) -> Outcome:
        """Loop, final evaluation, weights, result."""
        trackers = start_trackers(
            self.job,
            self.stage,
            self.stage_layout,
            self.parts.inputs,
            start_step=start.step,
            rank=self.rank,
        )
        ledger = together("opening the ledger", partial(self._open_ledger, start))
        if self.rank == 0:
            self._record("training_started", step=start.step, max_steps=self.parts.max_steps)
        ended: Literal["finished", "stopped", "failed"] = "failed"
        try:
            outcome, evaluated = self._loop(trackers, ledger, start).run(start.step)
            self._wait_for_save()
            if outcome == "finished":
                self._finish(trackers, evaluated)
            if ledger is not None:
                self.clock.enter("weights")
                self._record("training_ended", step=ledger.committed, seconds=self.clock.take())
            ended = "finished" if outcome == "finished" else "stopped"
        except AgreedError:
            # All ranks are here, and what was said to be saved is to be saved.
            self._wait_for_save()
            raise
        finally:
            self.clock.enter("save_wait")
            self.saver.close()
            for tracker in trackers:
                tracker.finish(ended)
        return outcome

    def _open_ledger(self, start: Start) -> Ledger | None:
        """Rank 0's."""
        if self.rank != 0:
            return None
        recorded = max(committed_steps(self.stage_layout.ledger), default=0)
        is_told = any(step_name(recorded) in name for name in self.manager.damaged)
        if start.step < recorded and not (start.step and is_told):
            self._record("checkpoints_gone", recorded=recorded, step=start.step)
        return open_ledger(self.stage_layout, self.job, self.parts, start)

    def _wait_for_save(self) -> None:
        """Until the last save is committed; collective."""
        self.clock.enter("save_wait")
        with agreed():
            self.saver.wait()

    def _loop(self, trackers: list[Tracker], ledger: Ledger | None, start: Start) -> Loop:
        """The loop over this run's parts; collective."""
        section = loss_scale_of(self.stage)
        scaler = None if section is None else LossScaler(section, start.loss_scale)
        watch = AnomalyWatch(self.stage.anomalies, start.recent_losses, start.in_a_row, scaler=scaler)
        job, stage, parts = self.job, self.stage, self.parts
        state = StageState(
            job, stage, parts, self.engine, self.manager, self.saver, watch, ledger, self.clock, self._record
        )
        if self.stage.may_roll_back and start.step == 0:
            state.save(0, {})
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
            save=state.save,
            roll_back=state.roll_back,
            before_update=self.saver.hold_back,
            watch=watch,
            clock=self.clock,
            record=self._record,
            goodput=GoodputMeter(self.layout.events).read if self.rank == 0 else dict,
            stop=StopRequest(self.layout.stop_request, lambda: self.saver.has_failed, self.notice),
        )

    def _record(self, event: str, **fields: Any) -> None:
        """Append an event of this stage."""
        append_event(self.layout.events, event, stage=self.stage.name, **fields)

    def record_hang(self, phase: Phase, seconds: float) -> None:
        """Append the event of a unit of work that did not end."""
        stacks = self.stage_layout.stacks(self.rank)
        self._record("hang", rank=self.rank, phase=phase, seconds=round(seconds, 1), stacks=str(stacks))

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

    def _finish(self, trackers: list[Tracker], evaluated: Mapping[str, float]) -> None:
        """Final evaluation where the loop made none, ``weights/``, and last ``result.json``; collective."""
        self.clock.enter("evaluation")
        metrics = evaluated or self._evaluate()
        self.clock.enter("weights")
        weights = self.engine.full_weights()

        def write() -> None:
            if weights is None:
                return
            self.owner.check()
            step = self.parts.max_steps
            chosen = self._choose(Weights(step, metrics, weights))
            write_weights = partial(save_weights, self.parts.model, chosen.tensors, self.parts.tokenizer)
            replace_folder(self.stage_layout.weights, write_weights)
            all_metrics = {**last_training_metrics(self.stage_layout), **chosen.metrics}
            write_result(
                self.stage_layout,
                self.parts.inputs,
                step=step,
                metrics=all_metrics,
                weights_step=chosen.step,
            )
            # The loop has logged its own, here or in a start that died since; others are of other rows.
            for tracker in trackers if metrics and not is_logged(self.stage_layout, step, metrics) else ():
                tracker.log(step, metrics)

        together("writing the weights", write)

    def _choose(self, last: Weights) -> Weights:
        """The weights that the job wants of this stage."""
        if self.stage.checkpoint.weights == "last":
            return last
        chosen = best_of(self.stage, self.stage_layout, self.manager, last)
        self._record("weights_chosen", step=chosen.step, last_step=last.step)
        return chosen
