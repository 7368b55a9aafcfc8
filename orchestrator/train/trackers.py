"""The trackers of a stage, started on rank 0."""

from __future__ import annotations

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.contracts import Tracker
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, Stage
from orchestrator.tracking.jsonl import JSONLTracker
from orchestrator.train.agreement import together
from orchestrator.train.inputs import StageInputs


def start_trackers(
    job: Job,
    stage: Stage,
    layout: StageLayout,
    inputs: StageInputs,
    *,
    start_step: int,
    rank: int,
) -> list[Tracker]:
    """The job's trackers on rank 0, none elsewhere; collective, so that a failure ends all ranks.

    Raises:
        AgreedError: A tracker cannot start.
    """

    def start() -> list[Tracker]:
        if rank != 0:
            return []
        config = {"job": job.model_dump(mode="json", by_alias=True), "stage": stage.name}
        trackers: list[Tracker] = [JSONLTracker(layout.metrics, resume_step=start_step)]
        if job.tracking.wandb is not None:
            wandb = resolve("tracker", "wandb")(
                job.tracking.wandb,
                run_id=inputs.run_id,
                name=f"{job.name}/{stage.name}",
                group=job.tracking.wandb.group or job.name,
                config=config,
                folder=layout.root,
            )
            trackers.append(wandb)
        for plugin in job.tracking.plugins:
            trackers.append(resolve("tracker", plugin.name)(plugin.options, layout.root, config))
        return trackers

    return together("starting trackers", start)
