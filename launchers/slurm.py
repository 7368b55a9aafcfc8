"""The SLURM launcher: ``slurm/ray.sbatch`` with the job's resources as flags of sbatch.

Nothing is generated: ``render`` gives the arguments of one sbatch call, which runs a script that stands
in the project and works by hand as well. Commands are started without a shell.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.base import PlaceState, RefusedJobError
from launchers.runs import run_status
from launchers.submitted import read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError

if TYPE_CHECKING:
    from orchestrator.spec.job import Resources
    from orchestrator.spec.launchers import SlurmOptions

SCRIPTS = Path(__file__).parents[1] / "slurm"
# A controller that does not answer makes every command of SLURM wait, by default for minutes.
TIMEOUT_SECONDS = 60
# States in squeue of a job that waits; a requeued one is among them.
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
# Reasons of waiting that only another request, or the administrator, ends. Many sites let such jobs in.
NEVER_STARTS = {
    "PartitionConfig": "'sinfo -Nl' shows the nodes: ask for fewer of them, or for less of each",
    "PartitionNodeLimit": "'sinfo -s' shows how many nodes a partition gives: lower --nodes",
    "PartitionTimeLimit": "'sinfo -s' shows each partition's limit: lower --time",
    "BadConstraints": "no node has these features: correct --constraint in launcher.options.flags",
}
ADVICE = (
    (
        "invalid partition",
        "'sinfo -s' lists the partitions: correct launcher.options.partition or --partition",
    ),
    ("accounting/qos policy", "wait for other jobs to end, or ask for less: fewer nodes, a shorter time"),
    ("invalid account", "'sacctmgr show assoc user=$USER' lists your accounts: give one with --account"),
    ("node configuration", "'sinfo -Nl' shows the nodes: ask for fewer of them, or for less of each"),
    ("node count", "'sinfo -s' shows how many nodes there are: lower --nodes"),
    ("dependency", "a run of --after has failed or is gone from the queue: mend and submit it first"),
    ("time limit", "'sinfo -s' shows each partition's limit: lower --time"),
    ("unrecognized option", "it came after '--' or from launcher.options.flags: correct it there"),
)


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
            RefusedJobError: The script is not there, or sbatch would misread the run directory.
        """
        scripts = self._scripts()
        return [
            "sbatch",
            "--parsable",
            f"--job-name={run_dir.name}",
            f"--output={_pattern(run_dir)}/%x-%j.out",
            "--open-mode=append",
            "--requeue",
            # To the batch shell alone: it would kill Ray's own processes.
            f"--signal=B:USR1@{self._options.grace_seconds}",
            *self._size_flags(),
            *self._site_flags(),
            *self._chain_flags(run_dir.parent),
            *self._options.flags,
            str(scripts / "ray.sbatch"),
            f"--scripts={scripts}",
            f"--python={Path(self._options.python or sys.executable).absolute()}",
            f"--folder={run_dir}",
            f"--max-requeues={self._options.max_requeues}",
            str(job_file),
            f"--runs-dir={run_dir.parent}",
        ]

    def _scripts(self) -> Path:
        scripts = Path(self._options.scripts or SCRIPTS).absolute()
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
        if options.nodes > resources.num_workers:
            raise RefusedJobError(
                f"launcher.options.nodes is {options.nodes}, and resources.num_workers is"
                f" {resources.num_workers}: a node would have no worker. Ask for at most"
                f" {resources.num_workers} nodes, or for more workers"
            )
        workers = math.ceil(resources.num_workers / options.nodes)
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
        names = ("partition", "time", "account")
        values = {name: getattr(self._options, name) for name in names}
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    def _chain_flags(self, runs_dir: Path) -> list[str]:
        """The jobs of the runs that come first and are not finished.

        Raises:
            RefusedJobError: Such a run is not under SLURM.
        """
        waited = []
        for name in self._options.after:
            layout = RunLayout(runs_dir / name)
            if layout.events.exists() and run_status(layout.root)["state"] == "finished":
                continue
            submission = read_submission(layout)
            if submission is None or submission.launcher != "slurm":
                raise RefusedJobError(
                    f"--after {name}: {layout.root} is not finished and was not submitted to SLURM, so"
                    " nothing there can be waited for; submit it first, or leave it out"
                )
            waited.append(submission.job_id)
        if not waited:
            return []
        # One that fails must not keep the next waiting for ever.
        return [f"--dependency=afterok:{':'.join(waited)}", "--kill-on-invalid-dep=yes"]

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Submit it; the job id.

        Raises:
            LaunchError: sbatch is not there, or refused the job.
        """
        command = self.render(job_file, run_dir)
        done = _run(command)
        if done.returncode != 0:
            raise RefusedJobError(f"sbatch refused the job: {done.stderr.strip()}{_advice(done.stderr)}")
        # On a federation of clusters it is followed by the cluster's name.
        job_id = done.stdout.strip().partition(";")[0]
        if not job_id.isdigit():
            raise LaunchError(
                f"sbatch printed {done.stdout.strip()!r}, expected a job id; look with 'squeue --me' whether"
                " the job was queued"
            )
        self._refuse_hopeless(job_id)
        return job_id

    def _refuse_hopeless(self, job_id: str) -> None:
        """Take out of the queue what could never start there.

        Raises:
            RefusedJobError: Naming SLURM's reason.
        """
        found = self.queue().get(job_id)
        reason = found.detail.partition(", ")[2] if found else ""
        if reason in NEVER_STARTS:
            self.cancel(job_id, only_queued=False)
            raise RefusedJobError(
                f"the cluster can never start this job ({reason}), so it was taken out of the queue again."
                f"\n{NEVER_STARTS[reason]}"
            )

    def queue(self) -> dict[str, PlaceState]:
        """The user's jobs that are not over, from squeue.

        Raises:
            LaunchError: It cannot be asked.
        """
        done = _run(["squeue", "--me", "--noheader", "--format=%i|%T|%r"])
        if done.returncode != 0:
            raise LaunchError(f"squeue failed: {done.stderr.strip()}")
        states = {}
        for line in done.stdout.splitlines():
            job_id, state, reason = line.strip().split("|", 2)
            detail = state if reason in ("None", "") else f"{state}, {reason}"
            states[job_id] = PlaceState("queued" if state in WAITING else "running", detail)
        return states

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What the batch job has printed."""
        try:
            path = run_dir / f"{run_dir.name}-{job_id}.out"
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def ending(self, job_id: str) -> str | None:
        """State and exit code, from scontrol, or from sacct where there is accounting."""
        done = _run(["scontrol", "--oneliner", "show", "job", job_id])
        state = re.search(r"\bJobState=(\S+)", done.stdout)
        code = re.search(r"\bExitCode=(\d+)", done.stdout)
        if state and code:
            return f"{state[1]}, exit code {code[1]}"
        if shutil.which("sacct") is None:
            return None
        done = _run(
            ["sacct", "-j", job_id, "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode"]
        )
        found, _, code_text = done.stdout.strip().partition("|")
        return f"{found}, exit code {code_text.partition(':')[0]}" if found else None

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """End a job.

        Raises:
            LaunchError: scancel refused.
        """
        done = _run(["scancel", *(["--state=PENDING"] if only_queued else []), job_id])
        if done.returncode != 0:
            raise LaunchError(f"scancel refused: {done.stderr.strip()}")


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


def _advice(message: str) -> str:
    """What to do about sbatch's message."""
    for sign, advice in ADVICE:
        if sign in message.lower():
            return f"\n{advice}"
    return ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM to its end.

    Raises:
        LaunchError: It is not there, or does not answer.
    """
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except FileNotFoundError as error:
        raise RefusedJobError(
            f"there is no {command[0]} on PATH: type this on a login node of a SLURM cluster, or load its"
            " module first ('--dry-run' shows what would be submitted)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"{command[0]} has not answered for {TIMEOUT_SECONDS} s: is the SLURM controller up"
            " ('scontrol ping')?"
        ) from error
