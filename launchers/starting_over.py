"""What keeps a run or a stage from starting over, found before its old folder is renamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.checkpoint.remote import RemoteSteps, stage_url
from orchestrator.errors import DataError, PlanError, SourceMissingError
from orchestrator.spec.datasets import HubDataset, SavedDataset
from orchestrator.spec.job import ExportStage, Job, Stage, TrainStage


def refuse_remote_steps(job: Job, stages: Sequence[Stage]) -> None:
    """Refuse to start ``stages`` over where the start would go on from remote storage.

    Raises:
        PlanError: It holds checkpoints of a stage of this run.
    """
    for stage in stages:
        if not isinstance(stage, TrainStage) or stage.checkpoint.remote is None:
            continue
        url = stage_url(stage.checkpoint.remote, job.name, stage.name)
        remote = RemoteSteps(url)
        steps, damaged = remote.complete_steps(), remote.damaged()
        if steps or damaged:
            held = (
                f"{url} holds checkpoints up to step {steps[-1]}, and a start would go on from them"
                if steps
                else f"{', '.join(damaged)}: damaged checkpoints of the stage, which a start would count"
            )
            raise PlanError(
                f"to start over: {held}. Move them away, or give the job another name than '{job.name}' or"
                " another checkpoint.remote"
            )


def refuse_missing_sources(job: Job, stages: Sequence[Stage]) -> None:
    """Refuse to start ``stages`` over without what they read: only a stage that stays does without.

    Raises:
        PlanError: A file or folder is not there.
    """
    # Here and not above: its imports take a tenth of the time of 'plan --no-model'.
    from orchestrator.data.files import find_files
    from orchestrator.train.kept import source_names

    names = [
        name for stage in stages if not isinstance(stage, ExportStage) for name in source_names(job, stage)
    ]
    for name in dict.fromkeys(names):
        dataset = job.datasets[name]
        try:
            if isinstance(dataset, SavedDataset) and not any(Path(dataset.path).glob("*")):
                raise SourceMissingError(f"datasets.{name}: path: there is nothing in {dataset.path}.")
            if not isinstance(dataset, SavedDataset | HubDataset):
                find_files(name, dataset)
        except DataError as error:
            raise PlanError(f"to start over: {error} Nothing has been moved.") from error
