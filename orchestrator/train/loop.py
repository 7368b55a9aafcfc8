"""The training loop: when things happen.

One optimizer step:

1. take this rank's micro-batches of the step's global rows, read ahead by ``prefetch.py``;
2. agree on the global number of targets, and on whether to stop, in one collective;
3. forward and backward each micro-batch, its random numbers seeded by step and global micro-batch index;
4. clip and update with the learning rate of the step;
5. log, evaluate, save where their intervals say so.

What the loss is belongs to the objective, how gradients move to the engine, which rows to the plan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.contracts import Batch, Engine, Objective, Tracker
from orchestrator.data.stream import MixtureReader
from orchestrator.spec.job import TrainStage
from orchestrator.spec.plan import BatchPlan, global_micro_index, micro_batch_rows
from orchestrator.train.meter import Meter, source_metrics
from orchestrator.train.optim import learning_rate
from orchestrator.train.prefetch import Prefetcher
from orchestrator.train.randomness import derive_generator, derive_seed
from orchestrator.train.stop import StopRequest

logger = logging.getLogger(__name__)
Outcome = Literal["finished", "stopped"]


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
    stop: StopRequest

    def run(self, start_step: int) -> Outcome:
        """Train from ``start_step`` completed steps to ``max_steps``, or until all ranks agree to stop."""
        steps, on_gpu = range(start_step, self.max_steps), self.device.type == "cuda"
        with Prefetcher(self._read, steps, pin_memory=on_gpu) as prefetched:
            return self._train(start_step, prefetched)

    def _train(self, start_step: int, prefetched: Prefetcher) -> Outcome:
        """Take the steps whose micro-batches ``prefetched`` gives."""
        meter = Meter(self.objective.terms, self.device)
        self.engine.model.train()
        saved_step = start_step
        began = time.perf_counter()
        for step, read in prefetched:
            data_wait_seconds = time.perf_counter() - began
            batches = [self._to_device(batch) for batch in read]
            counts, stop = self._agree(batches)
            if stop:
                if saved_step < step:
                    self.save(step, {})
                return "stopped"
            lr = learning_rate(self.stage.schedule, self.stage.optimizer.lr, step, self.max_steps)
            loss = self._accumulate(step, batches, counts)
            grad_norm = self.engine.step(lr)
            tokens = self.batch_plan.tokens_per_step
            meter.add(loss=loss, tokens=tokens, data_wait_seconds=data_wait_seconds)
            completed = step + 1
            if self._is_due(self.stage.logging.every_steps, completed):
                self._log(completed, meter, lr, grad_norm)
            paused = time.perf_counter()
            evaluated = self._evaluate(completed) if self._evaluation_is_due(completed) else {}
            if self._is_due(self.stage.checkpoint.every_steps, completed):
                self.save(completed, evaluated)
                saved_step = completed
            began = time.perf_counter()
            meter.exclude(began - paused)
        return "finished"

    def _is_due(self, every_steps: int, completed: int) -> bool:
        """Whether an interval ends at this step; the last step ends every interval."""
        return completed % every_steps == 0 or completed == self.max_steps

    def _evaluation_is_due(self, completed: int) -> bool:
        """Whether to evaluate after this step; the last evaluation is the worker's, on the final weights."""
        every_steps = self.stage.evaluation.every_steps if self.stage.evaluation else None
        return every_steps is not None and completed % every_steps == 0 and completed < self.max_steps

    def _read(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one step, in host memory."""
        batches = []
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

    def _agree(self, batches: Sequence[Batch]) -> tuple[Tensor, bool]:
        """Targets of each term over all ranks, int64 ``(T,)``, and whether anyone wants to stop."""
        counts = torch.stack([self.objective.num_targets(batch) for batch in batches]).sum(dim=0)
        message = torch.cat([counts, counts.new_tensor([int(self.stop.is_set())])])
        if self.batch_plan.world_size > 1:
            dist.all_reduce(message)
        # A step in which nothing was masked has no loss; dividing by 1 keeps it at 0.
        return message[:-1].clamp(min=1), bool(message[-1] > 0)

    def _accumulate(self, step: int, batches: Sequence[Batch], counts: Tensor) -> Tensor:
        """Forward and backward of all micro-batches.

        Returns:
            This rank's part of each term's mean over the step's targets, float64 ``(T,)``.
        """
        total = torch.zeros(len(counts), dtype=torch.float64, device=self.device)
        for accum_index, batch in enumerate(batches):
            micro = global_micro_index(self.batch_plan, accum_index, self.rank)
            torch.manual_seed(derive_seed(self.seed, "forward", step, micro))
            last = accum_index == len(batches) - 1
            with self.engine.micro_step(last=last):
                sums = self.objective.loss_sums(self.engine.model, batch)
                self.engine.backward((sums / counts).sum())
            total += sums.detach().double()
        return total / counts

    def _log(self, completed: int, meter: Meter, lr: float, grad_norm: float) -> None:
        """Give the trackers the metrics of the steps since the last time."""
        metrics = meter.read()
        metrics |= {"train/lr": lr, "train/grad_norm": grad_norm}
        metrics["train/tokens"] = completed * self.batch_plan.tokens_per_step
        rows = completed * self.batch_plan.global_batch_size
        metrics["train/epoch"] = rows / self.reader.num_rows
        metrics |= source_metrics(self.reader.mixture, rows)
        logger.info("step %d/%d %s", completed, self.max_steps, metrics)
        for tracker in self.trackers:
            tracker.log(completed, metrics)

    def _evaluate(self, completed: int) -> dict[str, float]:
        """Evaluate, and give the trackers and the caller the metrics."""
        metrics = self.evaluate()
        self.engine.model.train()
        logger.info("step %d evaluation %s", completed, metrics)
        for tracker in self.trackers:
            tracker.log(completed, metrics)
        return metrics
