"""The SLURM launcher: ``slurm/ray.sbatch`` with the job's resources as flags of sbatch.

Nothing is generated: ``render`` gives the arguments of one sbatch call, which runs a script that stands
in the project and works by hand as well. Commands are started without a shell.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.base import PlaceState, RefusedJobError, workers_per_node
from launchers.slurm_after import dependency_flags
from launchers.slurm_queue import (
    UnansweredError,
    advice_on,
    ending,
    printed_job_id,
    queued_after_all,
    queued_jobs,
    run_command,
)
from orchestrator.errors import LaunchError

if TYPE_CHECKING:
    from orchestrator.spec.job import Resources
    from orchestrator.spec.launchers import SlurmOptions

SCRIPTS = Path(__file__).parents[1] / "slurm"
# Flags that would undo what a run promises, and what to do instead. Here and not among the job's types: runs
# that were submitted with one go on.
UNDOING_FLAGS = {
    "clusters": "'status' and 'cancel' would look for the job on this one; submit it on a login node of the"
    " other, or set SLURM_CLUSTERS for every command",
    "no-requeue": "a run queues itself again at its time limit; launcher.options.max_requeues: 0 is one turn",
    "quiet": "the launcher reads the job id, which sbatch does not print then",
    "signal": "launcher.options.signal and grace_seconds say which one asks the run to save, and when",
}
WAITING_FLAGS = {
    "dependency": "it would take the place of --after (launcher.options.after); give just one of them",
}
# Stands for a run's number in what the jobs of an array are given; the script puts it in.
TASK = "@ARRAY_TASK_ID@"
# Reasons of waiting that only another request, or the administrator, ends. Many sites let such jobs in.
NEVER_STARTS = {
    # What cannot be had of the partition's nodes: in the words of the submission, then in the scheduler's.
    "Partition(Config|NodeLimit)": "'sinfo -s' shows how many nodes a partition gives, and 'sinfo -Nl' what"
    " is in each: ask for fewer of them, or for less of each",
    "PartitionTimeLimit": "'sinfo -s' shows each partition's limit: lower --time",
    "BadConstraints": "no node has these features: correct --constraint in launcher.options.flags",
    "InvalidAccount": "'sacctmgr show assoc user=$USER' lists your accounts: give one with --account",
    "InvalidQOS": "'sacctmgr show assoc user=$USER format=account,qos' lists those that you may use: correct"
    " --qos in launcher.options.flags",
    r"(QOS|Assoc)Max\w+Per(Job|Node)(Limit)?": "'sacctmgr show qos' and 'sacctmgr show assoc user=$USER' show"
    " how much a job may have: ask for less, or for another --qos",
    r"QOSMin\w+": "'sacctmgr show qos' shows how much a job must ask for: ask for more, or for another --qos",
}


class SlurmLauncher:
    """Runs the driver in a batch job, with a Ray of its own on the job's nodes."""

    def __init__(self, options: Mapping[str, Any], resources: Resources | None = None) -> None:
        """Take over ``launcher.options``; without ``resources`` for the questions of a queue alone."""
        self._given = options
        self._resources = resources

    @classmethod
    def for_resources(cls, options: Mapping[str, Any], resources: Resources) -> SlurmLauncher:
        """The launcher of a job with these resources."""
        return cls(options, resources)

    @functools.cached_property
    def _options(self) -> SlurmOptions:
        from orchestrator.spec.launchers import SlurmOptions

        return SlurmOptions.model_validate(self._given)

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The arguments of sbatch.

        Raises:
            RefusedJobError: The script is not there, sbatch would misread the run directory, or a job that is
                to be waited for is over.
        """
        return self._command(run_dir.name, run_dir, job_file, [f"--output={_pattern(run_dir)}/%x-%j.out"])

    def render_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """The arguments of sbatch for the runs ``<name>-0``, ``<name>-1`` and so on, as one job array.

        Args:
            name: Of the sweep.
            job_files: One for each run, in its run directory.
            at_once: Most runs at the same time; absent: as many as SLURM starts.

        Raises:
            RefusedJobError: The script is not there, sbatch would misread the run directory, or a job that is
                to be waited for is over.
        """
        runs_dir = job_files[0].parents[1]
        if TASK in str(runs_dir):
            raise RefusedJobError(
                f"the runs folder '{runs_dir}' holds {TASK}, which stands for a run's number in what the jobs"
                " of an array are given; name another with --runs-dir"
            )
        limit = f"%{at_once}" if at_once else ""
        flags = [
            f"--array=0-{len(job_files) - 1}{limit}",
            f"--output={_pattern(runs_dir)}/{name}-%a/{name}-%a-%A_%a.out",
        ]
        run_dir = runs_dir / f"{name}-{TASK}"
        return self._command(name, run_dir, run_dir / job_files[0].name, flags)

    def _command(self, name: str, run_dir: Path, job_file: Path, flags: Sequence[str]) -> list[str]:
        scripts = self._scripts()
        self._refuse_undoing_flags()
        return [
            "sbatch",
            "--parsable",
            f"--job-name={name}",
            *flags,
            "--open-mode=append",
            "--requeue",
            # To the batch shell alone: it would kill Ray's own processes.
            f"--signal=B:{self._options.signal}@{self._options.grace_seconds}",
            *self._size_flags(),
            *self._site_flags(),
            *dependency_flags(self._options.after, run_dir.parent),
            *self._options.flags,
            str(scripts / "ray.sbatch"),
            f"--scripts={scripts}",
            f"--python={_program(self._options.python or sys.executable)}",
            f"--folder={run_dir}",
            f"--max-requeues={self._options.max_requeues}",
            str(job_file),
            f"--runs-dir={run_dir.parent}",
        ]

    def _refuse_undoing_flags(self) -> None:
        from orchestrator.spec.launchers import refused_flag

        refused = UNDOING_FLAGS | (WAITING_FLAGS if self._options.after else {})
        for flag in self._options.flags:
            if (complaint := refused_flag(flag, refused)) is not None:
                raise RefusedJobError(f"launcher.options.{complaint}")

    def _scripts(self) -> Path:
        scripts = Path(self._options.scripts or SCRIPTS).expanduser().absolute()
        if not (scripts / "ray.sbatch").is_file():
            raise RefusedJobError(
                f"there is no {scripts / 'ray.sbatch'}; name the folder that holds it with"
                " launcher.options.scripts (it is slurm/ of the project)"
            )
        return scripts

    def _size_flags(self) -> list[str]:
        """Nodes, and the cores and GPUs of each."""
        from orchestrator.spec.job import Resources

        options, resources = self._options, self._resources or Resources()
        workers = workers_per_node(resources, options.nodes)
        cpus = options.cpus_per_node or workers * resources.cpus_per_worker
        gpus = options.gpus_per_node
        if gpus is None:
            gpus = workers * resources.gpus_per_worker
        return [
            f"--nodes={options.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={cpus}",
            *([f"--gpus-per-node={gpus}"] if gpus else []),
        ]

    def _site_flags(self) -> list[str]:
        values = {name: getattr(self._options, name) for name in ("partition", "time", "account")}
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Submit it; the job id.

        Raises:
            LaunchError: sbatch is not there, or refused the job.
        """
        command = self.render(job_file, run_dir)
        return self._submit(command, run_dir.name, run_dir / run_dir.name)

    def submit_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """Submit the runs of a sweep (``render_array``); the job id of each.

        Raises:
            LaunchError: sbatch is not there, or refused the jobs.
        """
        command = self.render_array(name, job_files, at_once=at_once)
        runs_dir = job_files[0].parents[1]
        job_id = self._submit(command, name, runs_dir / name)
        return [f"{job_id}_{task}" for task in range(len(job_files))]

    def _submit(self, command: Sequence[str], name: str, output: Path) -> str:
        """The job id; ``output`` and a '-' begin the path of what the job prints."""
        try:
            done = run_command(command)
        except UnansweredError as error:
            return queued_after_all(name, f"{output}-", error)
        if done.returncode != 0:
            raise RefusedJobError(f"sbatch refused the job: {done.stderr.strip()}{advice_on(done.stderr)}")
        job_id = printed_job_id(done.stdout)
        if job_id is None:
            unread = LaunchError(f"sbatch printed {done.stdout.strip()!r}, expected a job id")
            return queued_after_all(name, f"{output}-", unread)
        return job_id

    def withdraw_hopeless(self, job_id: str) -> str | None:
        """Take a job, or the whole array of one, out of the queue if it could never start; SLURM's reason.

        Raises:
            LaunchError: squeue or scancel failed.
        """
        found = self.queue().get(job_id)
        reason = found.detail.partition(", ")[2] if found else ""
        advice = next((text for sign, text in NEVER_STARTS.items() if re.fullmatch(sign, reason)), None)
        if advice is None:
            return None
        try:
            self.cancel(job_id.partition("_")[0], only_queued=False)
        except LaunchError as error:
            raise LaunchError(f"SLURM says {reason}; {advice}. {error}") from error
        return (
            f"the cluster can never start this job ({reason}), so it was taken out of the queue again."
            f"\n{advice}"
        )

    def queue(self) -> dict[str, PlaceState]:
        """The user's jobs that are not over.

        Raises:
            LaunchError: It cannot be asked.
        """
        return queued_jobs()

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What the batch job has printed."""
        try:
            path = run_dir / f"{run_dir.name}-{job_id}.out"
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def ending(self, job_id: str, run_dir: Path) -> str | None:
        """State and exit code."""
        return ending(job_id)

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """End a job.

        Raises:
            LaunchError: scancel refused.
        """
        only = ["--state=PENDING"] if only_queued else []
        if only_queued and "_" in job_id:
            # scancel takes a filter for the whole array as long as that waits as one record. Held, it cannot
            # start; what has started cannot be held.
            if run_command(["scontrol", "hold", job_id]).returncode != 0:
                return
            only = []
        done = run_command(["scancel", *only, job_id])
        if done.returncode != 0:
            raise LaunchError(f"scancel refused: {done.stderr.strip()}")


def _program(given: str) -> Path:
    """An interpreter as a shell would find it here: by PATH or in the home folder, too."""
    found = None if "/" in given else shutil.which(given)
    return Path(found or os.path.expanduser(given)).absolute()


def _pattern(folder: Path) -> str:
    """``folder`` in sbatch's ``--output``, where ``%`` begins a placeholder.

    Raises:
        RefusedJobError: It holds what cannot be written there.
    """
    text = str(folder)
    if "\\" in text or any(ord(character) < 32 for character in text):
        raise RefusedJobError(
            f"the run directory {text!r} holds a backslash or a control character, which sbatch misreads in"
            " --output; name another with --runs-dir"
        )
    return text.replace("%", "%%")
