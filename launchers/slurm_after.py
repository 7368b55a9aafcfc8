"""What a job under SLURM waits for: the jobs of the runs that ``--after`` names, or of a sweep's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.base import RefusedJobError
from launchers.runs import run_status, sweep_runs
from launchers.slurm_queue import ending, queued_jobs
from launchers.submitted import read_submission
from orchestrator.checkpoint.layout import RunLayout


@dataclass(frozen=True)
class AwaitedJob:
    """The job of a run that comes first and is not finished."""

    after: str
    """As it was given: the run, or its sweep."""
    run_dir: Path
    job_id: str


def awaited_jobs(name: str, runs_dir: Path) -> list[AwaitedJob]:
    """The jobs of the run called ``name``, or of the sweep called so, that are not finished.

    Raises:
        RefusedJobError: Such a run is not under SLURM.
    """
    awaited = []
    for run_dir in _run_dirs(name, runs_dir):
        layout = RunLayout(run_dir)
        if layout.events.exists() and run_status(run_dir)["state"] == "finished":
            continue
        submission = read_submission(layout)
        if submission is None or submission.launcher != "slurm":
            raise RefusedJobError(
                f"--after {name}: {run_dir} is not finished and was not submitted to SLURM, so nothing there"
                " can be waited for; submit it first, or leave it out"
            )
        awaited.append(AwaitedJob(name, run_dir, submission.job_id))
    return awaited


def _run_dirs(name: str, runs_dir: Path) -> list[Path]:
    """That of a run, or those of a sweep's runs, each of which is a job of its own in an array."""
    layout = RunLayout(runs_dir / name)
    is_run = layout.submission.exists() or layout.events.exists()
    return [layout.root] if is_run else sweep_runs(name, runs_dir) or [layout.root]


def dependency_flags(after: Sequence[str], runs_dir: Path) -> list[str]:
    """Flags of sbatch by which a job waits for those of ``after``.

    Raises:
        RefusedJobError: A run of these is neither finished nor under SLURM.
    """
    waited = [job_id for name in after for job_id in _waited_ids(name, runs_dir)]
    if not waited:
        return []
    # One that fails must not keep the next waiting for ever.
    return [f"--dependency=afterok:{':'.join(waited)}", "--kill-on-invalid-dep=yes"]


def _waited_ids(name: str, runs_dir: Path) -> list[str]:
    """What sbatch is told of the jobs of a run or sweep."""
    jobs = awaited_jobs(name, runs_dir)
    arrays = {job.job_id.partition("_")[0] for job in jobs}
    if len(arrays) == 1 and [job.run_dir for job in jobs] == sweep_runs(name, runs_dir):
        # A task that scancel takes out of the array before it starts counts as done well where it is waited
        # for by its own id, and as failed in the whole array (tried with 22.05).
        return list(arrays)
    return [job.job_id for job in jobs]


def refuse_over(after: Sequence[str], runs_dir: Path) -> None:
    """Refuse to wait for a job that is over: SLURM would take this one out of the queue without a word.

    Raises:
        RefusedJobError: The run of such a job is not finished.
    """
    queue = queued_jobs() if after else {}
    # Read after the queue: a run may just have finished.
    for job in (job for name in after for job in awaited_jobs(name, runs_dir)):
        if job.job_id not in queue:
            raise RefusedJobError(
                f"--after {job.after}: {job.run_dir} is not finished, and its job {job.job_id} is over"
                f" ({ending(job.job_id) or 'SLURM has forgotten how'}), so it cannot be waited for; submit it"
                " again first, or leave it out"
            )
