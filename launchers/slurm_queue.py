"""What SLURM says: of a command that it refused, of the jobs in its queue, of one that has ended."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from launchers.base import PlaceState, RefusedJobError
from orchestrator.errors import LaunchError

# A controller that does not answer makes every command of SLURM wait, by default for minutes.
TIMEOUT_SECONDS = 60
# States in squeue of a job that waits; a requeued one is among them. One that is suspended has its processes.
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
JOB_ID = re.compile(r"(\d+)(;\S+)?", re.ASCII)
# Of the variables that SLURM sets in a job or reads: a site's, for reaching its controller. The rest is an
# outer job's, whose array, restarts and GPUs sbatch would pass on to the new job as that one's own.
SITE_VARIABLES = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_DEBUG_FLAGS"),
    *("SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS"),
)
# Flags of sbatch by variable that make another submission of it; what a site demands of its jobs - account,
# partition, qos, reservation, sizes - stays.
BREAKING_VARIABLES = tuple(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "WAIT", "TEST_ONLY", "PARSABLE", "JOB_NAME", "DEPENDENCY", "SIGNAL", "CLUSTERS"),
        *("REQUEUE", "NO_REQUEUE", "OPEN_MODE", "INPUT", "OUTPUT", "ERROR"),
    )
)
# Defaults of a person's own listings, such as SQUEUE_STATES, which would hide jobs.
LISTING_PREFIXES = ("SQUEUE_", "SCANCEL_", "SCONTROL_", "SACCT_")
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
    (
        "temporarily unable to accept job",
        "the cluster holds as many jobs as it may (MaxJobCount): submit again when some of them have ended",
    ),
    ("unrecognized option", "it came after '--' or from launcher.options.flags: correct it there"),
)
GENERAL_ADVICE = (
    "these are SLURM's own words: type what '--dry-run' shows, with '--test-only -v' after 'sbatch', for more"
    " of them; where they name the cluster's files, disks or daemons, ask its administrator"
)


class UnansweredError(LaunchError):
    """A command of SLURM did not end in time; whether it has done its work is not known."""


def queued_jobs() -> dict[str, PlaceState]:
    """The user's jobs that are not over, from squeue; those of an array one by one.

    Raises:
        LaunchError: It cannot be asked.
    """
    states = {}
    for line in _asked("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%r").splitlines():
        if line.count("|") < 2:
            # A site's squeue may greet, and a plugin of SLURM's may warn, on standard output.
            continue
        job_id, state, reason = line.strip().split("|", 2)
        detail = state if reason in ("None", "") else f"{state}, {reason}"
        states[job_id] = PlaceState("queued" if state in WAITING else "running", detail)
    return states


def ending(job_id: str) -> str | None:
    """State and exit code of a job, from scontrol, or from sacct where there is accounting."""
    done = run_command(["scontrol", "--oneliner", "show", "job", job_id])
    state = re.search(r"\bJobState=(\S+)", done.stdout)
    code = re.search(r"\bExitCode=(\d+)", done.stdout)
    if state and code:
        return f"{state[1]}, exit code {code[1]}"
    if shutil.which("sacct") is None:
        return None
    done = run_command(
        ["sacct", "-j", job_id, "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode"]
    )
    found, _, code_text = done.stdout.strip().partition("|")
    return f"{found}, exit code {code_text.partition(':')[0]}" if found else None


def advice_on(message: str) -> str:
    """What to do about sbatch's message."""
    for sign, advice in ADVICE:
        if sign in message.lower():
            return f"\n{advice}"
    return f"\n{GENERAL_ADVICE}"


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM to its end.

    Raises:
        LaunchError: It is not there, or does not answer.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=command_environment(),
            # Ctrl-C at a terminal is for whoever waits for the command: sbatch has a submission to end.
            process_group=0,
        )
    except FileNotFoundError as error:
        dry = " ('--dry-run' shows what would be submitted)" if command[0] == "sbatch" else ""
        raise RefusedJobError(
            f"there is no {command[0]} on PATH: type this on a login node of a SLURM cluster, or load its"
            f" module first{dry}"
        ) from error
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        raise UnansweredError(
            f"{command[0]} has not answered for {TIMEOUT_SECONDS} s: is the SLURM controller up"
            " ('scontrol ping')?" + (f"\nIt said: {said}{advice_on(said)}" if said else "")
        ) from error


def printed_job_id(printed: str) -> str | None:
    """The job id that ``sbatch --parsable`` printed, also beside what a site's sbatch says.

    ``None`` where several lines are such numbers, since just one of them is its.
    """
    # On a federation of clusters it is followed by the cluster's name.
    found = {match[1] for line in printed.splitlines() if (match := JOB_ID.fullmatch(line.strip()))}
    return found.pop() if len(found) == 1 else None


def queued_after_all(name: str, output: str, unanswered: LaunchError) -> str:
    """The job id of a submission that sbatch gave no answer to, from the queue.

    Args:
        name: Of the job.
        output: What the path of its output begins with, and no other run's.
        unanswered: What became of sbatch.

    Raises:
        LaunchError: The queue does not hold it, or does not answer.
    """
    look = f"'squeue --me --name={name}'"
    try:
        for job_id in _newest_first(_asked("squeue", "--me", "--noheader", f"--name={name}", "--format=%F")):
            if f" StdOut={output}" in _asked("scontrol", "--oneliner", "show", "job", job_id):
                return job_id
    except LaunchError as error:
        raise LaunchError(
            f"{unanswered}\nNor does the queue answer ({error}), so the job may be queued under the name"
            f" '{name}', without the job file that it would need: look with {look}, and end it with 'scancel'"
            " before you submit the run again"
        ) from unanswered
    raise LaunchError(
        f"{unanswered}\nThe queue holds no job of this run: look once more with {look}, and submit it again"
    ) from unanswered


def _newest_first(listed: str) -> list[str]:
    return sorted({line for line in listed.split() if line.isdigit()}, key=int, reverse=True)


def _asked(*command: str) -> str:
    """What a command prints.

    Raises:
        LaunchError: It failed.
    """
    done = run_command(command)
    if done.returncode != 0:
        raise LaunchError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def command_environment() -> dict[str, str]:
    """This process's variables without those that would change what a command of SLURM does."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in SITE_VARIABLES
        or not (name.startswith(("SLURM_", *LISTING_PREFIXES)) or name in BREAKING_VARIABLES)
    }
