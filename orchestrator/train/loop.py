"""The training loop: when things happen.

One optimizer step:

1. take this rank's micro-batches of the step's global rows, read ahead by ``prefetch.py``;
2. agree on the global number of targets, and on whether to stop, in one collective;
3. forward and backward each micro-batch, its random numbers seeded by step and global micro-batch index;
4. undo the scale that float16 has put on the loss (``loss_scale.py``), and judge the step's loss and gradient
   norm, the same on all ranks (``anomalies.py``);
5. clip and update with the learning rate of the step, or leave the step out;
6. log, evaluate, save where their intervals say so.

What the loss is belongs to the objective, how gradients move to the engine, which rows to the plan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.contracts import Batch, Engine, Objective, Tracker
from orchestrator.data.stream import MixtureReader
from orchestrator.errors import TrainingError
from orchestrator.spec.job import TrainStage
from orchestrator.spec.plan import BatchPlan, global_micro_index, micro_batch_rows
from orchestrator.train.agreement import AgreedError
from orchestrator.train.anomalies import Anomaly, AnomalyWatch
from orchestrator.train.loss_scale import Overflow
from orchestrator.train.meter import Meter, over_ranks, ranks_without_finite_loss, source_metrics
from orchestrator.train.optim import learning_rate
from orchestrator.train.phases import PhaseClock
from orchestrator.train.prefetch import Prefetcher
from orchestrator.train.randomness import derive_generator, derive_seed
from orchestrator.train.stop import StopRequest

logger = logging.getLogger(__name__)
Outcome = Literal["finished", "stopped", "preempted"]
"""``preempted``: some of the nodes go, and the others can go on."""


class Ended(NamedTuple):
    """How a loop ended."""

    outcome: Outcome
    evaluated: Mapping[str, float]
    """Metrics of the last step's weights; empty where nothing was evaluated, or no step was left to take."""


@dataclass(frozen=True)
class Loop:
    """The parts of one stage's training, as the composition root joined them."""

    stage: TrainStage
    seed: int
    rank: int
    device: torch.device
    batch_plan: BatchPlan
    max_steps: int
    engine: Engine
    objective: Objective
    reader: MixtureReader
    trackers: Sequence[Tracker]
    """Empty on every rank but 0."""
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[int, Mapping[str, float]], None]
    """Commits the state after the given number of steps, with the metrics of an evaluation at that step."""
    roll_back: Callable[[], int]
    """Restores the newest checkpoint; returns its step."""
    watch: AnomalyWatch
    clock: PhaseClock
    record: Callable[..., None]
    """Takes down an event and its fields; called by rank 0 alone."""
    goodput: Callable[[], Mapping[str, float]]
    """Metrics of where the run's time went; empty where nothing is new."""
    before_update: Callable[[], None]
    """Called before weights and optimizer state change."""
    stop: StopRequest

    def run(self, start_step: int) -> Ended:
        """Train from ``start_step`` completed steps to ``max_steps``, or until all ranks agree to stop."""
        steps, on_gpu = range(start_step, self.max_steps), self.device.type == "cuda"
        with Prefetcher(self._read, steps, pin_memory=on_gpu) as prefetched:
            return self._train(start_step, prefetched)

    def _train(self, start_step: int, prefetched: Prefetcher) -> Ended:
        """Take the steps whose micro-batches ``prefetched`` gives."""
        evaluated: Mapping[str, float] = {}
        meter = Meter(self.objective.terms, self.device)
        self.engine.model.train()
        saved_step = start_step
        began = time.perf_counter()
        self.clock.enter("data")
        for step, read in prefetched:
            self.clock.enter("compute" if step > start_step else "first_step")
            data_wait_seconds = time.perf_counter() - began
            batches = [self._to_device(batch) for batch in read]
            counts, ending = self._agree(batches)
            if ending is not None:
                if saved_step < step:
                    self._save(step, evaluated)
                return Ended(ending, {})
            lr = learning_rate(self.stage.schedule, self.stage.optimizer.lr, step, self.max_steps)
            meter.add(tokens=self.batch_plan.tokens_per_step, data_wait_seconds=data_wait_seconds)
            with self._naming(step):
                losses = self._accumulate(step, batches, counts)
                loss, grad_norm = over_ranks(losses), self._gradient_norm()
                problem = self.watch.judge(float(loss.sum()), grad_norm)
                if problem is None:
                    self.before_update()
                    self.engine.step(lr, grad_norm)
            completed, rolled_back = step + 1, False
            if problem is None:
                self.watch.accept(float(loss.sum()))
                meter.add_loss(loss)
            elif isinstance(problem, Overflow):
                self._back_off(step, problem)
                meter.add_overflow()
            else:
                rolled_back = self._leave_out(step, problem, losses, saved=saved_step == step)
            if self._is_due(self.stage.logging.every_steps, completed):
                self._log(completed, meter, lr, grad_norm)
            paused = time.perf_counter()
            evaluated = self._evaluate(completed) if self._evaluation_is_due(completed) else {}
            if rolled_back or self._is_due(self.stage.checkpoint.every_steps, completed):
                self._save(completed, evaluated)
                saved_step = completed
            self.clock.enter("data")
            began = time.perf_counter()
            meter.exclude(began - paused)
        return Ended("finished", evaluated)

    def _is_due(self, every_steps: int, completed: int) -> bool:
        """Whether an interval ends at this step; the last step ends every interval."""
        return completed % every_steps == 0 or completed == self.max_steps

    def _evaluation_is_due(self, completed: int) -> bool:
        """Whether to evaluate after this step; the last one always: its checkpoint says how good it is."""
        if self.stage.evaluation is None:
            return False
        every_steps = self.stage.evaluation.every_steps
        return completed == self.max_steps or (every_steps is not None and completed % every_steps == 0)

    @contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Add the step and its rows to an error: a restart reads the same ones again."""
        try:
            yield
        except Exception as error:
            size = self.batch_plan.global_batch_size
            rows = f"rows {step * size} to {(step + 1) * size - 1}"
            error.add_note(f"in step {step + 1}, which reads {rows} of the stage's order")
            raise

    def _read(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one step, in host memory."""
        batches = []
        with self._naming(step):
            for accum_index in range(self.batch_plan.grad_accum_steps):
                rows = micro_batch_rows(self.batch_plan, step, accum_index, self.rank)
                micro = global_micro_index(self.batch_plan, accum_index, self.rank)
                rng = derive_generator(self.seed, "collate", step, micro)
                read = self.reader.read_global(rows)
                batches.append(self.objective.collate(read, rng))
        return batches

    def _to_device(self, batch: Batch) -> Batch:
        """The batch where the model is; from page-locked memory the copy overlaps compute."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _agree(self, batches: Sequence[Batch]) -> tuple[Tensor, Outcome | None]:
        """Targets of each term over all ranks, int64 ``(T,)``, and how the stage ends before this step."""
        counts = torch.stack([self.objective.num_targets(batch) for batch in batches]).sum(dim=0)
        notice = self.stop.notice
        asks = notice is not None and notice.is_due()
        message = torch.cat([counts, counts.new_tensor([int(self.stop.is_set()), int(asks)])])
        if self.batch_plan.world_size > 1:
            dist.all_reduce(message)
        ending: Outcome | None = "stopped" if message[-2] > 0 else None
        if notice is not None and message[-1] > 0:
            leaving = notice.read()
            if leaving != "none" and self.rank == 0:
                self.record("notice_seen", leaving=leaving)
            if leaving != "none" and ending is None:
                ending = "stopped" if leaving == "all" else "preempted"
        # A step in which nothing was masked has no loss; dividing by 1 keeps it at 0.
        return message[:-2].clamp(min=1), ending

    def _accumulate(self, step: int, batches: Sequence[Batch], counts: Tensor) -> Tensor:
        """Forward and backward of all micro-batches.

        Returns:
            Each micro-batch's part of each term's mean over the step's targets, float64 ``(A, T)``.
        """
        parts = []
        scale = 1.0 if self.watch.scaler is None else self.watch.scaler.scale
        for accum_index, batch in enumerate(batches):
            micro = global_micro_index(self.batch_plan, accum_index, self.rank)
            torch.manual_seed(derive_seed(self.seed, "forward", step, micro))
            last = accum_index == len(batches) - 1
            with self.engine.micro_step(last=last):
                sums = self.objective.loss_sums(self.engine.model, batch)
                self.engine.backward((sums / counts).sum() * scale)
            parts.append(sums.detach().double())
        return torch.stack(parts) / counts

    def _gradient_norm(self) -> float:
        """The global norm of the gradients of the loss itself; collective."""
        if self.watch.scaler is not None:
            self.engine.unscale(self.watch.scaler.scale)
        return self.engine.gradient_norm()

    def _back_off(self, step: int, overflow: Overflow) -> None:
        """Leave out a step whose gradients float16 could not hold, and scale the next one by less."""
        size = self.batch_plan.global_batch_size
        where = {"step": step + 1, "rows": [step * size, (step + 1) * size]}
        if self.rank == 0:
            self.record("overflow", **where, **asdict(overflow))
        logger.info("gradients overflowed float16, left out: %s %s", where, overflow)
        self.engine.skip_step()
        self.watch.back_off(step, overflow)

    def _leave_out(self, step: int, anomaly: Anomaly, losses: Tensor, *, saved: bool) -> bool:
        """Do what the job says about a step that is wrong, in place of its update; collective.

        Args:
            losses: This rank's micro-batches' part of the loss, float64 ``(A, T)``.
            saved: The state before the step is in a checkpoint.

        Returns:
            Whether the state went back, and is to be saved under its new step.

        Raises:
            AgreedError: On every rank: the job says to stop.
        """
        ranks = ranks_without_finite_loss(losses)
        size = self.batch_plan.global_batch_size
        where = {"step": step + 1, "rows": [step * size, (step + 1) * size], "ranks": ranks}
        if self.rank == 0:
            self.record("anomaly", what=anomaly.what, action=anomaly.action, **where)
        logger.warning("%s; %s: %s", anomaly.what, anomaly.action, where)
        self.engine.skip_step()
        if anomaly.action == "skip":
            self.watch.leave_out(step, step + 1)
            return False
        if anomaly.action == "rollback":
            self.clock.enter("save")
            self.watch.leave_out(self.roll_back(), step + 1)
            return True
        if not saved:
            self._save(step, {})
        raise AgreedError(TrainingError(self._stopped(step, anomaly, ranks)))

    def _stopped(self, step: int, anomaly: Anomaly, ranks: Sequence[int]) -> str:
        """What a person must know to go on."""
        size = self.batch_plan.global_batch_size
        of_ranks = f", with no finite loss on rank {', '.join(map(str, ranks))}" if ranks else ""
        rows = f"rows {step * size} to {(step + 1) * size - 1}"
        return (
            f"stage '{self.stage.name}', step {step + 1}: {anomaly.what}{of_ranks}; the step changed nothing,"
            f" what came before it is saved. It read {rows} of the stage's order. Set anomalies.nonfinite or"
            " anomalies.loss_spike.action to 'skip' or 'rollback' to pass over them, or start the stage over"
            f" with --redo {self.stage.name} and a lower learning rate"
        )

    def _log(self, completed: int, meter: Meter, lr: float, grad_norm: float) -> None:
        """Give the trackers the metrics of the steps since the last time."""
        metrics = meter.read()
        metrics |= {"train/lr": lr, "train/grad_norm": grad_norm}
        if self.watch.scaler is not None:
            metrics["train/loss_scale"] = self.watch.scaler.scale
        metrics["train/tokens"] = completed * self.batch_plan.tokens_per_step
        rows = completed * self.batch_plan.global_batch_size
        metrics["train/epoch"] = rows / self.reader.num_rows
        metrics |= {**source_metrics(self.reader.mixture, rows), **self.goodput()}
        logger.info("step %d/%d %s", completed, self.max_steps, metrics)
        for tracker in self.trackers:
            tracker.log(completed, metrics)

    def _save(self, completed: int, evaluated: Mapping[str, float]) -> None:
        """Commit the state after the given number of steps."""
        self.clock.enter("save")
        self.save(completed, evaluated)

    def _evaluate(self, completed: int) -> dict[str, float]:
        """Evaluate, and give the trackers and the caller the metrics."""
        self.clock.enter("evaluation")
        metrics = self.evaluate()
        self.engine.model.train()
        logger.info("step %d evaluation %s", completed, metrics)
        for tracker in self.trackers:
            tracker.log(completed, metrics)
        return metrics
