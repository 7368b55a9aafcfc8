"""The faults that a rehearsal knows: what each does to a run, and what it changes in the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launchers.rehearsed_run import RehearsedRun
from orchestrator.checkpoint.steps import list_steps
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import workers_complaint
from orchestrator.spec.training import DDPStrategy, FSDP2Strategy, Plugin, ZeROStrategy
from orchestrator.train.phases import Phase
from orchestrator.train.rehearsed import FaultKind, RehearsedFault

# Of a rehearsal: steps between two checkpoints, and before a fault, half-way between two.
SAVE_EVERY = 4
FAULT_STEP = 6
STOPPED = 75
# Bits are flipped in the middle of a file, where tensors are.
FLIPPED_BIT = 0x10

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


def _inside(kind: FaultKind, *, phase: Phase = "compute", all_ranks: bool = False) -> Any:
    """A fault that workers bring upon themselves, and that the same driver deals with."""

    def meet(run: RehearsedRun, job: Job, changes: Changes) -> int:
        _plan(run, job, kind, phase=phase, rank=None if all_ranks else job.resources.num_workers - 1)
        return run.run()

    return meet


def _plan(run: RehearsedRun, job: Job, kind: FaultKind, *, phase: Phase, rank: int | None) -> None:
    step = 2 * SAVE_EVERY if phase == "save" else FAULT_STEP
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
    """As ``_kill_all``, and a bit of the newest checkpoint is flipped in between."""
    _plan(run, job, "kill", phase="data", rank=None)
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
    exit_code = run.run_until_stopped(job.stages[-1].name, FAULT_STEP)
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
    """A strategy of another kind, with the dtypes of the job's own."""
    stage = job.stages[-1]
    assert isinstance(stage, TrainStage)
    strategy = stage.strategy
    if isinstance(strategy, Plugin):
        raise NotPossibleError("the strategy is your own")
    dtype = strategy.param_dtype
    may_be_zero = isinstance(strategy, FSDP2Strategy) and stage.optimizer.name != "adafactor"
    # In float16 ddp may leave out other steps than the others, and DeepSpeed computes in it on few CPUs.
    runs_zero = may_be_zero and job.resources.gpus_per_worker > 0
    if dtype == "float16" and not (isinstance(strategy, ZeROStrategy) or runs_zero):
        raise NotPossibleError("in float16 no other strategy is sure to run here and decide alike")
    if may_be_zero:
        return {"strategy": ZeROStrategy(name="zero", stage=2, param_dtype=dtype)}
    if isinstance(strategy, FSDP2Strategy):
        return {"strategy": DDPStrategy(name="ddp", param_dtype=dtype)}
    return {"strategy": FSDP2Strategy(name="fsdp2", param_dtype=dtype)}


FAULTS: Mapping[str, Fault] = {
    "kill-rank": Fault("one worker is killed in a step", _inside("kill")),
    "kill-save": Fault("all workers are killed in a save", _inside("kill", phase="save", all_ranks=True)),
    "kill-all": Fault("all workers and the driver are killed", _kill_all),
    "preempt": Fault("the scheduler sends SIGTERM", _stop_and_go_on, max_steps_lost=0),
    "corrupt": Fault(
        "all are killed, and a bit of the newest checkpoint flips", _corrupt, max_steps_lost=2 * SAVE_EVERY
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
