"""The faults that a rehearsal knows: what each does to a run, and what it changes in the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launchers.rehearsed_run import RehearsedRun
from orchestrator.checkpoint.steps import list_steps
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import workers_complaint
from orchestrator.spec.promise import agreement, promise
from orchestrator.spec.references import check
from orchestrator.spec.strategies import DDPStrategy, FSDP2Strategy, Strategy, ZeROStrategy
from orchestrator.spec.training import Plugin
from orchestrator.train.phases import Phase
from orchestrator.train.rehearsed import FaultKind, RehearsedFault

# Of a rehearsal: steps between two checkpoints, and before a fault, half-way between two.
SAVE_EVERY = 4
FAULT_STEP = 6
# Before a checkpoint is damaged: there is an older one to fall back to.
DAMAGE_STEP = SAVE_EVERY + FAULT_STEP
STOPPED = 75
# Bits are flipped in the middle of a file, where tensors are.
FLIPPED_BIT = 0x10

ZERO_STAGES: Mapping[str, tuple[Literal[0, 1, 2, 3], ...]] = {
    "float32": (2, 1, 3, 0),
    "bfloat16": (2, 3),
    "float16": (2, 1, 3),
}
"""By dtype; the usual one first."""

Changes = Mapping[str, Any]
"""What the run goes on with, by key: ``num_workers`` or ``strategy``."""


class NotPossibleError(Exception):
    """A job cannot meet this fault; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    summary: str
    meet: Callable[[RehearsedRun, Job, Changes], int]
    """Has a run meet it and go on to its end; the exit code of the last start. The job has as many workers as
    there are, and its last stage is the one to meet it."""
    changes: Callable[[Job], Changes] = lambda job: {}
    """What the run goes on with in place of the job's own."""
    max_steps_lost: int = SAVE_EVERY
    """More of them are a defect."""


def _inside(
    kind: FaultKind, *, phase: Phase = "compute", all_ranks: bool = False, step: int = FAULT_STEP
) -> Any:
    """A fault that workers bring upon themselves, and that the same driver deals with."""

    def meet(run: RehearsedRun, job: Job, changes: Changes) -> int:
        rank = None if all_ranks else job.resources.num_workers - 1
        _plan(run, job, kind, phase=phase, rank=rank, step=step)
        return run.run()

    return meet


def _plan(
    run: RehearsedRun, job: Job, kind: FaultKind, *, phase: Phase, rank: int | None, step: int = FAULT_STEP
) -> None:
    RehearsedFault(kind, rank, job.stages[-1].name, step, phase).write(run.open())


def _watched(job: Job) -> Changes:
    """Nothing is changed, and somebody watches."""
    if job.resources.hang_timeout_seconds is None:
        raise NotPossibleError(
            "resources.hang_timeout_seconds is null, so that hanging workers are waited for"
        )
    return {}


def _kill_all(run: RehearsedRun, job: Job, changes: Changes) -> int:
    """Every worker and the driver die; then the same command."""
    _plan(run, job, "kill", phase="compute", rank=None)
    run.run_until_killed()
    return run.run()


def _corrupt(run: RehearsedRun, job: Job, changes: Changes) -> int:
    """As ``_kill_all``, but after two saves, and a bit of the newer checkpoint is flipped in between."""
    _plan(run, job, "kill", phase="data", rank=None, step=DAMAGE_STEP)
    if not run.run_until_killed():
        return run.run()
    found = list_steps(run.layout.stage(job.stages[-1].name).checkpoints)
    newest = [step for step in found if step.is_complete][-1]
    shard = max(newest.path.iterdir(), key=lambda path: path.stat().st_size)
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ FLIPPED_BIT]))
    return run.run()


def _stop_and_go_on(run: RehearsedRun, job: Job, changes: Changes) -> int:
    """SIGTERM, as a scheduler sends it; then the same command, perhaps with something changed."""
    # All ranks: one that waits for another in a collective would look as if it hung.
    _plan(run, job, "wait", phase="compute", rank=None)
    exit_code = run.run_until_stopped()
    if exit_code != STOPPED:
        return exit_code
    return run.changed(changes).run()


def _other_num_workers(job: Job) -> Changes:
    """The next lower number of workers that all stages can have."""
    now = job.resources.num_workers
    if now == 1:
        raise NotPossibleError("there is one worker, and no lower number")
    why = ""
    for workers in range(now - 1, 0, -1):
        resources = job.resources.with_workers(workers)
        stages = [stage for stage in job.stages if isinstance(stage, TrainStage)]
        complaints = [found for stage in stages if (found := workers_complaint(job, stage, resources))]
        if not complaints:
            return {"num_workers": workers}
        why = why or " ".join(complaints[0].split())
    raise NotPossibleError(f"no lower number than {now} workers fits; {now - 1}: {why}")


def _other_strategy(job: Job) -> Changes:
    """The strategy that is promised to be nearest to the job's own."""
    stage = job.stages[-1]
    assert isinstance(stage, TrainStage)
    now = job.resources.num_workers
    found = [
        (promised, other)
        for other in _other_strategies(job, stage)
        if (promised := agreement(stage, other, (now, now), job.reproducibility)) is not None
        and not list(check(_with_strategy(job, other)))
    ]
    if not found:
        raise NotPossibleError(
            f"no other strategy that runs here is promised to be so near to {stage.strategy.name} that a"
            f" defect would show: {promise(stage, job.resources, job.reproducibility)}"
        )
    return {"strategy": min(found, key=lambda pair: pair[0])[1]}


def _other_strategies(job: Job, stage: TrainStage) -> Iterator[Strategy]:
    """Others with the same dtype and options, the ones that differ most first."""
    own = stage.strategy
    if isinstance(own, Plugin):
        return
    dtype = own.param_dtype
    shared: dict[str, Any] = {
        "param_dtype": dtype,
        "activation_checkpointing": own.activation_checkpointing,
        "compile": own.compile,
    }
    if not isinstance(own, FSDP2Strategy):
        yield FSDP2Strategy(name="fsdp2", **shared)
    # DeepSpeed computes in float16 on few CPUs.
    if dtype != "float16" or isinstance(own, ZeROStrategy) or job.resources.gpus_per_worker > 0:
        for zero_stage in ZERO_STAGES[dtype]:
            if not isinstance(own, ZeROStrategy) or own.stage != zero_stage:
                yield ZeROStrategy(name="zero", stage=zero_stage, **shared)
    if not isinstance(own, DDPStrategy):
        yield DDPStrategy(name="ddp", **shared)


def _with_strategy(job: Job, strategy: Strategy) -> Job:
    last = job.stages[-1].model_copy(update={"strategy": strategy})
    return job.model_copy(update={"stages": (*job.stages[:-1], last)})


FAULTS: Mapping[str, Fault] = {
    "kill-rank": Fault("one worker is killed in a step", _inside("kill")),
    "kill-save": Fault(
        "all workers are killed in a save",
        _inside("kill", phase="save", all_ranks=True, step=2 * SAVE_EVERY),
    ),
    "kill-all": Fault("all workers and the driver are killed", _kill_all),
    "preempt": Fault("the scheduler sends SIGTERM", _stop_and_go_on, max_steps_lost=0),
    "corrupt": Fault(
        "all are killed, and a bit of the newer of two checkpoints flips",
        _corrupt,
        max_steps_lost=2 * SAVE_EVERY,
    ),
    "hang": Fault("one worker is frozen", _inside("freeze"), _watched),
    "hang-data": Fault("one worker waits for its data for ever", _inside("hang", phase="data"), _watched),
    "resize": Fault("stopped, and gone on with fewer workers", _stop_and_go_on, _other_num_workers, 0),
    "switch-strategy": Fault(
        "stopped, and gone on with another strategy", _stop_and_go_on, _other_strategy, 0
    ),
}


def chosen_faults(names: str | None) -> list[str]:
    """Faults by their names, with commas between them; all where none is given.

    Raises:
        PlanError: There is no such fault.
    """
    chosen = list(FAULTS) if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in FAULTS:
            known = "\n".join(f"  {known}: {fault.summary}" for known, fault in FAULTS.items())
            raise PlanError(f"--faults: there is no fault '{name}', expected some of\n{known}")
    return chosen
