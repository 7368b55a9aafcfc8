"""What a job under SLURM waits for: the jobs of the runs that ``--after`` names, or of a sweep's runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.base import RefusedJobError
from launchers.runs import run_status, sweep_runs
from launchers.slurm_queue import ending, queued_jobs
from launchers.submission_record import Submission, last_mark, read_submission
from orchestrator.checkpoint.layout import RunLayout


def dependency_flags(after: Sequence[str], runs_dir: Path) -> list[str]:
    """Flags of sbatch by which a job waits for those of ``after``.

    Raises:
        RefusedJobError: A run of these is not finished, and not under SLURM or over there.
    """
    # A dry run is of use on a machine without SLURM, too.
    if after and shutil.which("squeue") is not None:
        _refuse_over(after, runs_dir)
    waited = [job_id for name in after for job_id in _waited_ids(name, runs_dir)]
    if not waited:
        return []
    # One that fails must not keep the next waiting for ever.
    return [f"--dependency=afterok:{':'.join(waited)}", "--kill-on-invalid-dep=yes"]


def _refuse_over(after: Sequence[str], runs_dir: Path) -> None:
    """Refuse to wait for a job that is over: SLURM would take this one out of the queue without a word.

    Raises:
        RefusedJobError: The run of such a job is not finished.
    """
    queue = queued_jobs()
    # Read after the queue: a run may just have finished.
    for name in after:
        for run_dir, job_id in _awaited_jobs(name, runs_dir).items():
            if job_id not in queue:
                raise RefusedJobError(
                    f"--after {name}: {run_dir} is not finished, and its job {job_id} is over"
                    f" ({ending(job_id) or 'SLURM has forgotten how'}), so it cannot be waited for; submit it"
                    " again first, or leave it out"
                )


def _waited_ids(name: str, runs_dir: Path) -> list[str]:
    """What sbatch is told of the jobs of a run or sweep."""
    jobs = _awaited_jobs(name, runs_dir)
    arrays = {job_id.partition("_")[0] for job_id in jobs.values()}
    if len(arrays) == 1 and list(jobs) == sweep_runs(name, runs_dir):
        # A task that scancel takes out of the array before it starts counts as done well where it is waited
        # for by its own id, and as failed in the whole array (tried with 22.05).
        return list(arrays)
    return list(jobs.values())


def _awaited_jobs(name: str, runs_dir: Path) -> dict[Path, str]:
    """The jobs of the unfinished among the run, or the runs of the sweep, called ``name``, by run directory.

    Raises:
        RefusedJobError: Such a run is not under SLURM.
    """
    submissions = dict[Path, Submission]()
    for run_dir in _run_dirs(name, runs_dir):
        layout = RunLayout(run_dir)
        submission = read_submission(layout)
        if _is_finished(layout, submission):
            continue
        if submission is None or submission.launcher != "slurm":
            raise RefusedJobError(
                f"--after {name}: {run_dir} is not finished and was not submitted to SLURM, so nothing there"
                " can be waited for; submit it first, or leave it out"
            )
        submissions[run_dir] = submission
    return {run_dir: found.job_id for run_dir, found in _of_newest_array(submissions).items()}


def _is_finished(layout: RunLayout, submission: Submission | None) -> bool:
    """Whether a run has finished, and was not submitted once more since, as with more steps."""
    if submission is not None:
        return last_mark(layout, submission) == "run_finished"
    return layout.events.exists() and run_status(layout.root)["state"] == "finished"


def _of_newest_array(submissions: Mapping[Path, Submission]) -> dict[Path, Submission]:
    """Without those of an earlier array: the sweep had more runs then, and their folders are left over."""
    tasks = [found for found in submissions.values() if "_" in found.job_id]
    newest = max(tasks, key=lambda found: found.time).job_id.partition("_")[0] if tasks else None
    return {
        run_dir: found
        for run_dir, found in submissions.items()
        if "_" not in found.job_id or found.job_id.partition("_")[0] == newest
    }


def _run_dirs(name: str, runs_dir: Path) -> list[Path]:
    """That of a run, or those of a sweep's runs, each of which is a job of its own in an array."""
    layout = RunLayout(runs_dir / name)
    is_run = layout.submission.exists() or layout.events.exists()
    return [layout.root] if is_run else sweep_runs(name, runs_dir) or [layout.root]
