"""One rank of a stage: the composition root that joins all rooms.

``run_stage`` is called for each stage by Ray Train's workers and by
``torchrun -m orchestrator.train.worker RUN_DIR --stage NAME`` alike. It reads the run directory and
nothing else, and is the only place that reads rank variables.
"""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.weights import check_weights
from orchestrator.counts import counted
from orchestrator.errors import LaunchError, OrchestratorError, PlanError
from orchestrator.spec.job import EvaluateStage, Job, Stage, TrainStage
from orchestrator.spec.load import load_resolved
from orchestrator.spec.plan import input_stage
from orchestrator.tracking.events import append_event
from orchestrator.train.agreement import AgreedError
from orchestrator.train.evaluation_stage import run_evaluation_stage
from orchestrator.train.export_stage import run_export_stage
from orchestrator.train.loop import Outcome
from orchestrator.train.nodes import check_nodes, find_unseen
from orchestrator.train.stop import PreemptionNotice
from orchestrator.train.training_stage import run_training_stage

logger = logging.getLogger("orchestrator")
EXIT_CODES: dict[Outcome, int] = {"finished": 0, "stopped": 75, "preempted": 75}


@dataclass(frozen=True)
class Rank:
    """Where this process stands among the workers of its stage."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Rank:
        """Read what torchrun and Ray Train set; alone when nothing is set."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )


def run_stages(run_dir: Path, stage_names: Sequence[str], notice: PreemptionNotice | None = None) -> Outcome:
    """Run stages one after the other in these processes, as long as each finishes.

    Stages that have a result were finished before a restart of the processes, and are left out.
    """
    layout = RunLayout(run_dir)
    for name in stage_names:
        if layout.stage(name).result.exists():
            continue
        outcome = run_stage(run_dir, name, notice)
        if outcome != "finished":
            return outcome
        # Nothing of a stage may live on: the next one needs its memory.
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        # Rank 0 alone writes results, which the next stage looks for on every rank.
        dist.barrier()
    return "finished"


def run_stage(run_dir: Path, stage_name: str, notice: PreemptionNotice | None = None) -> Outcome:
    """Run one stage as one of its ranks; collective over all of them.

    Args:
        run_dir: Folder of the run.
        stage_name: Which stage.
        notice: Asks the cluster whether it takes nodes away.

    Raises:
        OrchestratorError: On every rank, when any rank could not set up the stage.
    """
    layout = RunLayout(run_dir)
    rank = Rank.from_environment()
    _refuse_unseen(layout, stage_name, rank)
    job = load_resolved(layout.job)
    stage = job.stage(stage_name)
    job = _among(job, stage, rank)
    _check_input_stage(layout, stage)
    stage_layout = layout.stage(stage_name)
    last_written = stage_layout.last_written()
    _log_to_file(stage_layout, rank.rank)
    device = _select_device(job, rank)
    _join_process_group(rank, device)
    began = time.monotonic()
    try:
        if rank.rank == 0:
            append_event(layout.events, "stage_started", stage=stage_name, last_written=last_written)
        check_nodes(layout, stage_layout)
        outcome = _run(job, stage, layout, rank, device, notice)
        if rank.rank == 0:
            seconds = round(time.monotonic() - began, 1)
            append_event(layout.events, f"stage_{outcome}", stage=stage_name, seconds=seconds)
        return outcome
    except BaseException as error:
        logger.exception("rank %d failed", rank.rank)
        _record_failure(layout, stage_name, rank, error)
        raise


def _refuse_unseen(layout: RunLayout, stage_name: str, rank: Rank) -> None:
    """Refuse nodes that do not see the run directory.

    Raises:
        AgreedError: On every rank.
    """
    unseen = find_unseen(layout)
    if not unseen:
        return
    error = LaunchError(f"{'; '.join(unseen)}: put it where all nodes see it")
    if layout.job.exists():
        _record_failure(layout, stage_name, rank, error)
    raise AgreedError(error)


def _record_failure(layout: RunLayout, stage_name: str, rank: Rank, error: BaseException) -> None:
    # On a full disk it cannot be written, and the error itself says more than that.
    with suppress(OSError):
        append_event(
            layout.events,
            "rank_failed",
            stage=stage_name,
            rank=rank.rank,
            error=type(error).__name__,
            message="; ".join([str(error), *getattr(error, "__notes__", [])]),
            exit_code=error.exit_code if isinstance(error, OrchestratorError) else 1,
        )


def _run(
    job: Job,
    stage: Stage,
    layout: RunLayout,
    rank: Rank,
    device: torch.device,
    notice: PreemptionNotice | None,
) -> Outcome:
    if isinstance(stage, TrainStage):
        return run_training_stage(job, stage, layout, rank=rank.rank, device=device, notice=notice)
    if isinstance(stage, EvaluateStage):
        return run_evaluation_stage(job, stage, layout, device=device)
    return run_export_stage(stage, layout)


def _check_input_stage(layout: RunLayout, stage: Stage) -> None:
    """Refuse a stage whose first weights are not there yet, or damaged.

    Raises:
        PlanError: Naming the stage that makes them.
        CheckpointError: Naming the file that is damaged.
    """
    name = input_stage(stage)
    if name is None:
        return
    if not layout.stage(name).result.exists():
        raise PlanError(
            f"stage '{stage.name}' reads the weights of stage '{name}', which is not finished in"
            f" {layout.root}; run '{name}' first"
        )
    check_weights(layout.stage(name))


def _among(job: Job, stage: Stage, rank: Rank) -> Job:
    """The job for as many workers as there are.

    Raises:
        PlanError: The job does not train on that number.
    """
    resources = job.resources
    allows = resources.min_workers <= rank.world_size <= resources.num_workers
    if allows or not isinstance(stage, TrainStage):
        return job.model_copy(update={"resources": resources.with_workers(rank.world_size)})
    allowed = f"{resources.num_workers}"
    if resources.min_workers < resources.num_workers:
        allowed = f"{resources.min_workers} to {allowed}"
    raise PlanError(
        f"stage '{stage.name}' was started on"
        f" {counted(rank.world_size, 'process', 'processes')}, resources.num_workers is"
        f" {allowed}: start it with --nproc-per-node {resources.num_workers}, or prepare it again with"
        f" --set resources.num_workers={rank.world_size}"
    )


def _select_device(job: Job, rank: Rank) -> torch.device:
    """This rank's device, with the job's number of threads.

    Raises:
        LaunchError: The job wants GPUs and there is none.
    """
    torch.set_num_threads(job.resources.cpus_per_worker)
    if job.resources.gpus_per_worker == 0:
        return torch.device("cpu")
    if rank.local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"resources.gpus_per_worker is {job.resources.gpus_per_worker}, but local rank {rank.local_rank}"
            f" sees {torch.cuda.device_count()} CUDA devices; set gpus_per_worker: 0 to train on the CPU"
        )
    torch.cuda.set_device(rank.local_rank)
    return torch.device("cuda", rank.local_rank)


def _join_process_group(rank: Rank, device: torch.device) -> None:
    """Initialise torch.distributed unless Ray Train already did; alone, a group of one."""
    if dist.is_initialized():
        return
    if rank.world_size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(_backend(device), store=HashStore(), rank=0, world_size=1)
        return
    dist.init_process_group(_backend(device))


def _backend(device: torch.device) -> str:
    """Gloo for tensors in host memory, NCCL for those on GPUs."""
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


class _RankLog(logging.FileHandler):
    """A log file whose full disk is not a second story beside the one that the worker ends with."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave out what cannot be written."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _log_to_file(layout: StageLayout, rank: int) -> None:
    """Send this process's log messages and Python warnings to the rank's log file."""
    path = layout.log(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _RankLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point under torchrun; exit codes are the command line's."""
    parser = argparse.ArgumentParser(prog="orchestrator.train.worker", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stage", required=True)
    parsed = parser.parse_args(arguments)
    if Rank.from_environment().rank == 0:
        # Nobody follows the run here: what the log says is shown as well.
        logger.addHandler(logging.StreamHandler())
    try:
        outcome = run_stage(parsed.run_dir.resolve(), parsed.stage)
        logger.info(
            "stage '%s' %s; its files are in %s", parsed.stage, outcome, parsed.run_dir / parsed.stage
        )
        return EXIT_CODES[outcome]
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"orchestrator: {parsed.run_dir}: {error.strerror}: free some space and run the same command"
            " again; it goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
