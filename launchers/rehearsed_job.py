"""The short copy of a job that a rehearsal runs: one training stage and what it builds on, all cut short."""

from __future__ import annotations

from typing import Any

from launchers.rehearsed_faults import SAVE_EVERY
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.messages import which_stage
from orchestrator.spec.plan import fit_schedule, input_stage

STEPS = 3 * SAVE_EVERY


def shortened(job: Job, stage_name: str | None) -> Job:
    """A copy of a job with one training stage, cut short, and what that builds on.

    Raises:
        PlanError: There is no such training stage.
    """
    names = [stage.name for stage in job.stages if isinstance(stage, TrainStage)]
    name = names[0] if stage_name is None else stage_name
    if name not in names:
        hint = which_stage(name, names, plural="Its training stages")
        raise PlanError(f"job '{job.name}' has no training stage '{name}'.{hint}")
    chain = [job.stage(name)]
    while (before := input_stage(chain[0])) is not None:
        chain.insert(0, job.stage(before))
    stages = [_cut(stage, 1) for stage in chain[:-1]] + [_cut(chain[-1], STEPS)]
    document = job.model_dump(mode="json", by_alias=True)
    resources = {**document["resources"], "max_failures": max(1, job.resources.max_failures)}
    return Job.model_validate({**document, "stages": stages, "resources": resources, "tracking": {}})


def _cut(stage: Any, steps: int) -> dict[str, Any]:
    """A stage's section, cut to some steps and without evaluations."""
    assert isinstance(stage, TrainStage)
    changes = {
        "limits": {"max_steps": steps},
        # The steps are there, however few rows there are.
        "data": stage.data.model_copy(update={"on_exhausted": "repeat"}).model_dump(mode="json"),
        "schedule": fit_schedule(stage.schedule, steps).model_dump(mode="json"),
        "evaluation": None,
        # Waited for: a fault finds the checkpoint before it complete, however short the steps are.
        "checkpoint": {"every_steps": SAVE_EVERY, "keep_last": STEPS, "asynchronous": False},
        "logging": {"every_steps": 1},
    }
    return {**stage.model_dump(mode="json", by_alias=True), **changes}
