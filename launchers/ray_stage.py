"""One stage on Ray Train: place its workers, restart them after a fault, bring back how it ended."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.errors import LaunchError, OrchestratorError
from orchestrator.spec.job import Job

# Ray Train's own controller is restarted at most this often; its default is without end.
CONTROLLER_FAILURES = 3
# A collective that waits longer than this has lost a partner.
COLLECTIVE_TIMEOUT_SECONDS = 1800


def train_function(config: dict[str, Any]) -> str:
    """What every Ray Train worker runs: the same ``run_stage`` as under torchrun."""
    from orchestrator.train.agreement import AgreedError
    from orchestrator.train.worker import run_stage

    try:
        return run_stage(Path(config["run_dir"]), config["stage"])
    except AgreedError:
        # Every rank ends here together, and a restart would meet the same error.
        return "refused"


def run_stage_on_ray(job: Job, stage_name: str, run_dir: Path, *, num_workers: int) -> str:
    """Run one stage's workers to their end: ``finished``, ``stopped`` or ``refused``.

    Raises:
        LaunchError: The workers failed more often than ``max_failures``.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = job.resources
    uses_gpu = resources.gpus_per_worker > 0
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if uses_gpu:
        per_worker["GPU"] = resources.gpus_per_worker
    # Ray's own record of the run is not a source of truth here, so it gets a new folder at every start.
    storage = Path(tempfile.mkdtemp(prefix="ray-", dir=run_dir))
    trainer = TorchTrainer(
        train_function,
        train_loop_config={"run_dir": str(run_dir), "stage": stage_name},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=uses_gpu, resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            name=stage_name,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=CONTROLLER_FAILURES
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
        raise LaunchError(f"stage '{stage_name}' failed: {error}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
