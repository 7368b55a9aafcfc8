"""Stages on Ray Train: place their workers, restart them after a fault, bring back how they ended.

One group of workers runs all stages of a run one after the other: processes that have started, found their
nodes and imported their libraries need not do so again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.failures import death_among
from launchers.importing import large_imports
from launchers.ray_session import is_own_ray, is_taken_away
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError, OrchestratorError
from orchestrator.spec.job import Job, Resources
from orchestrator.spec.plan import fitting_workers
from orchestrator.tracking.events import read_events

if TYPE_CHECKING:
    from orchestrator.train.stop import Leaving

# Ray Train's own controller is restarted at most this often; its default is without end.
CONTROLLER_FAILURES = 3
# Between two looks at whether the cluster has room for more workers; growing costs a restart.
RESIZE_INTERVAL_SECONDS = 30.0
# Of an error of Ray.
SHOWN_CHARACTERS = 600
# A collective that waits longer than this has lost a partner.
COLLECTIVE_TIMEOUT_SECONDS = 1800
# A process that does not answer Ray for so long is frozen as a whole, with the watchdog inside it; Ray's
# default is ten minutes.
FROZEN_SECONDS = 30.0


def train_function(config: dict[str, Any]) -> str:
    """What every Ray Train worker runs: for each stage the same ``run_stage`` as under torchrun."""
    with large_imports():
        from orchestrator.train.agreement import AgreedError
        from orchestrator.train.stop import PreemptionNotice
        from orchestrator.train.worker import run_stages

    try:
        return run_stages(Path(config["run_dir"]), config["stages"], PreemptionNotice(_leaving))
    except AgreedError as error:
        # Every rank ends here together, and a restart would meet the same error.
        return f"refused: {error}"


def _leaving() -> Leaving:
    """Which nodes of this group Ray is about to take away; collective over its workers."""
    from ray.train import get_context, get_preemption_info

    info = get_preemption_info()
    if info is None:
        return "none"
    return "all" if len(info.preempted_ranks) == get_context().get_world_size() else "some"


def run_stages_on_ray(job: Job, stage_names: Sequence[str], layout: RunLayout, controller: Any) -> str:
    """Run stages to their end, or to that of the first that does not finish.

    Args:
        controller: What ``start_controller`` started already, or None.

    Returns:
        ``finished``, ``stopped``, or ``refused: `` and why.

    Raises:
        LaunchError: The workers failed more often than ``max_failures``, which counts anew after a stage.
    """
    waiting, restarts, has_moved = list(stage_names), job.resources.max_failures, False
    while True:
        num_events = sum(1 for _ in read_events(layout.events))
        try:
            outcome = _run_on_ray(job, waiting, layout.root, controller, max_failures=restarts)
            if outcome != "preempted":
                return outcome
            if layout.stop_request.exists() or is_taken_away(job.resources):
                return "stopped"
            has_moved = True
            # Everything is saved, and Ray places nothing more on nodes that it takes away.
            waiting = [name for name in waiting if not layout.stage(name).result.exists()]
        except LaunchError:
            # Only then: a Ray that has ended itself cannot be asked, and its own error is the one to tell.
            if has_moved and is_taken_away(job.resources):
                # What the first notice was answered with is on the disk.
                return "stopped"
            unfinished = [name for name in waiting if not layout.stage(name).result.exists()]
            if unfinished in ([], waiting):
                raise
            restarts = job.resources.max_failures - _num_starts(layout, num_events, unfinished[0])
            if restarts < 0:
                raise
            waiting = unfinished
        # It was for one group of workers.
        controller = None


def _num_starts(layout: RunLayout, num_events: int, stage: str) -> int:
    """How often workers have begun a stage since there were ``num_events`` events."""
    events = list(read_events(layout.events))[num_events:]
    return sum(event["event"] == "stage_started" and event["stage"] == stage for event in events)


def _run_on_ray(
    job: Job, stage_names: list[str], run_dir: Path, controller: Any, *, max_failures: int
) -> str:
    """One group of workers, restarted at most ``max_failures`` times."""
    # Here and not above: it imports Ray Train.
    with large_imports():
        from launchers.trainer import NotStartedError, StageTrainer, deaths
    from ray.train import ControllerError, FailureConfig, RunConfig, WorkerGroupError
    from ray.train.torch import TorchConfig

    resources = job.resources
    uses_gpu = resources.gpus_per_worker > 0
    if resources.hang_timeout_seconds is not None:
        seconds = max(FROZEN_SECONDS, 2 * resources.hang_timeout_seconds)
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(seconds))
    # Ray's own record of the run is not a source of truth here, so it gets a new folder at every start.
    remove_ray_records(run_dir)
    storage = Path(tempfile.mkdtemp(prefix="ray-", dir=run_dir))
    trainer = StageTrainer(
        train_function,
        train_loop_config={"run_dir": str(run_dir), "stages": stage_names},
        controller=controller,
        fitting=fitting_workers(job),
        is_own_ray=is_own_ray(),
        scaling_config=_scaling(resources),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if uses_gpu else "gloo",
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS,
        ),
    )
    try:
        return str(trainer.fit().return_value)
    except OrchestratorError:
        raise
    except Exception as error:  # TrainingFailedError and its relatives
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, NotStartedError):
            # It was to stop before there was room, or workers ended before they could answer a notice.
            return "stopped"
        if isinstance(error, WorkerGroupError):
            failures = error.worker_failures
            if (died := death_among(failures, deaths(failures))) is not None:
                raise died from error
        raise LaunchError(_in_short(error)) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def remove_ray_records(run_dir: Path) -> None:
    """Remove what a driver that was killed could not remove; none may be at work there."""
    for left_behind in run_dir.glob("ray-*"):
        shutil.rmtree(left_behind, ignore_errors=True)


def _in_short(error: Exception) -> str:
    """The beginning of what Ray says; statistics of its stores and lists of processes follow it."""
    text = " ".join(str(error).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


def _scaling(resources: Resources) -> Any:
    """What each worker gets, and how many there are."""
    from ray.train import ScalingConfig

    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=(resources.min_workers, resources.num_workers)
        if resources.is_elastic
        else resources.num_workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_SECONDS,
    )
