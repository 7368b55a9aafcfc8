"""All batch, step and rank arithmetic: from a stage and its resources to rows, steps and an order.

Pure numbers: nothing here reads files, data or devices. A *micro-batch* is what one worker reads in
one forward pass; over all workers and accumulation steps they are numbered, and that number, not the
worker, decides which rows it holds and what randomness it sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job, Resources, Stage, TrainStage
from orchestrator.spec.optimization import Limits, Schedule, WarmupStableDecay
from orchestrator.spec.reproducibility import exact_complaint

# Absorbs the rounding of num_rows * max_epochs, so that 0.3 epochs of 10 rows are 3 rows.
ROUNDING = 1e-9


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is split over workers and time."""

    world_size: int
    micro_batch_size: int
    """Rows per worker per forward pass."""
    grad_accum_steps: int
    """Forward passes per worker per optimizer step."""
    global_batch_size: int
    """Rows per optimizer step, over all workers."""
    seq_len: int
    """Tokens per row."""

    @property
    def tokens_per_step(self) -> int:
        """Token positions per optimizer step, over all workers."""
        return self.global_batch_size * self.seq_len


def plan_batch(stage: TrainStage, resources: Resources, *, place: str = "stage") -> BatchPlan:
    """The split of ``stage``'s global batch over the workers of ``resources``.

    Args:
        place: What the message calls the stage, such as ``stages[0]``.

    Raises:
        PlanError: The global batch is not a multiple of the workers' micro-batches.
    """
    complaint = batch_complaint(stage, resources)
    if complaint:
        raise PlanError(f"{place} '{stage.name}': {complaint}")
    micro_rows = stage.micro_batch_size * resources.num_workers
    return BatchPlan(
        world_size=resources.num_workers,
        micro_batch_size=stage.micro_batch_size,
        grad_accum_steps=stage.global_batch_size // micro_rows,
        global_batch_size=stage.global_batch_size,
        seq_len=stage.data.seq_len,
    )


def batch_complaint(stage: TrainStage, resources: Resources) -> str | None:
    """Why the global batch cannot be split evenly, with the nearest that can; else ``None``."""
    rows, micro, degree = stage.global_batch_size, stage.micro_batch_size, resources.num_workers
    multiple = micro * degree
    if rows % multiple == 0:
        return None
    below = rows // multiple * multiple
    nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
    return (
        f"global_batch_size {rows} is not a multiple of micro_batch_size {micro} x dp_degree"
        f" {degree} = {multiple}.\nNearest: {nearest}.{_nearest_workers(rows, micro, degree)}"
    )


def _nearest_workers(rows: int, micro: int, degree: int) -> str:
    """The nearest numbers of workers that share the batch as it is."""
    fitting = [workers for workers in range(1, rows // micro + 1) if rows % (micro * workers) == 0]
    below, above = [n for n in fitting if n < degree], [n for n in fitting if n > degree]
    nearest = " or ".join(map(str, [*below[-1:], *above[:1]]))
    return f" Or num_workers: {nearest}." if nearest else ""


def fitting_workers(job: Job) -> list[int]:
    """Numbers of workers, of those the job allows, among which all its training stages can share a batch."""
    stages = [stage for stage in job.stages if isinstance(stage, TrainStage)]
    return [
        workers
        for workers in range(job.resources.min_workers, job.resources.num_workers + 1)
        if all(workers_complaint(job, stage, job.resources.with_workers(workers)) is None for stage in stages)
    ]


def fewest_workers(job: Job) -> Resources:
    """What the fewest workers need with which the job can run: of a range, that can share its batches."""
    return job.resources.with_workers(min(fitting_workers(job), default=job.resources.min_workers))


def workers_complaint(job: Job, stage: TrainStage, resources: Resources) -> str | None:
    """Why a stage cannot be shared by this number of workers; ``None``: it can."""
    copies = getattr(stage.strategy, "replicate_degree", 1)
    if resources.num_workers % copies:
        return f"replicate_degree {copies} does not divide num_workers {resources.num_workers}"
    return batch_complaint(stage, resources) or exact_complaint(job, stage, resources)


def global_micro_index(batch: BatchPlan, accum_index: int, rank: int) -> int:
    """Number of a micro-batch within its optimizer step, over all workers."""
    return accum_index * batch.world_size + rank


def micro_batch_rows(batch: BatchPlan, step: int, accum_index: int, rank: int) -> range:
    """Global numbers of the rows of one micro-batch.

    Together the micro-batches of a step are the rows ``[step, step + 1) * global_batch_size``, each
    once, whatever the number of workers.

    Args:
        step: Optimizer steps completed before this one.
    """
    micro = global_micro_index(batch, accum_index, rank)
    first = step * batch.global_batch_size + micro * batch.micro_batch_size
    return range(first, first + batch.micro_batch_size)


@dataclass(frozen=True)
class Exhaustion:
    """Where a mixture runs out of rows that were not read before."""

    source: str
    """The dataset that would be the first to begin its next pass."""
    rows: int
    """Rows of the whole mixture before that."""


def count_steps(
    limits: Limits, batch: BatchPlan, num_rows: int | None, exhaustion: Exhaustion | None = None
) -> int | None:
    """Optimizer steps of a stage; ``None`` while its rows are not counted and its limit needs them.

    Tokens round up to whole steps; epochs round down, to one step at least; where the mixture runs
    out, its last whole global batch is the last step.

    Args:
        num_rows: Rows of one pass over the mixture.
        exhaustion: Where the stage ends at the latest; absent: sources repeat.

    Raises:
        PlanError: The mixture runs out before the first step is full.
    """
    steps = _limit_steps(limits, batch, num_rows)
    if exhaustion is None or steps is None:
        return steps
    if exhaustion.rows < batch.global_batch_size:
        raise PlanError(
            f"data.on_exhausted is 'stop' and dataset '{exhaustion.source}' runs out after"
            f" {counted(exhaustion.rows, 'row')} of the mixture, fewer than one global batch of"
            f" {batch.global_batch_size}. Lower global_batch_size or the dataset's weight, or set"
            " data.on_exhausted: repeat."
        )
    return min(steps, exhaustion.rows // batch.global_batch_size)


def _limit_steps(limits: Limits, batch: BatchPlan, num_rows: int | None) -> int | None:
    """Optimizer steps that ``limits`` alone allow."""
    if limits.max_steps is not None:
        return limits.max_steps
    if limits.max_tokens is not None:
        return -(-limits.max_tokens // batch.tokens_per_step)
    if num_rows is None:
        return None
    assert limits.max_epochs is not None
    return max(1, int(num_rows * limits.max_epochs / batch.global_batch_size + ROUNDING))


def ramp_steps(schedule: Schedule) -> tuple[int, int]:
    """Steps of a schedule's warm-up and of its decay at the end; a decay without a length of its own is 0."""
    return schedule.warmup_steps, schedule.decay_steps if isinstance(schedule, WarmupStableDecay) else 0


def fit_schedule(schedule: Schedule, num_steps: int) -> Schedule:
    """``schedule`` for a stage of ``num_steps`` steps: as it is, or with ramps that leave room for the rest.

    Warm-up and decay that are too long get two thirds of the stage, in the proportion of their own
    lengths: all parts of the schedule are met, and the warm-up, which keeps a loss from jumping, is long.
    """
    warmup, decay = ramp_steps(schedule)
    length = warmup + decay
    if length <= num_steps:
        return schedule
    room = 2 * num_steps // 3
    shorter = -(-room * warmup // length)
    if not isinstance(schedule, WarmupStableDecay):
        return schedule.model_copy(update={"warmup_steps": shorter})
    # A decay has one step at least.
    return schedule.model_copy(update={"warmup_steps": shorter, "decay_steps": max(1, room - shorter)})


def input_stage(stage: Stage) -> str | None:
    """The stage whose weights this one begins with, evaluates or exports."""
    if isinstance(stage, TrainStage):
        return stage.init.stage if stage.init else None
    return stage.from_


def stage_order(job: Job) -> list[Stage]:
    """Stages such that each follows the one it reads; otherwise in the order of the file.

    Raises:
        PlanError: Stages wait for each other, or for one that does not exist.
    """
    waiting = list(job.stages)
    ordered: list[Stage] = []
    while waiting:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in waiting if input_stage(stage) in {None, *done}), None)
        if ready is None:
            needs = ", ".join(f"'{stage.name}' needs '{input_stage(stage)}'" for stage in waiting)
            raise PlanError(f"stages wait for each other: {needs}")
        ordered.append(ready)
        waiting.remove(ready)
    return ordered
