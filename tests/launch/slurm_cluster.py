"""A real SLURM inside this machine: munged, slurmctld and two slurmd on loopback, in one folder.

Nothing is installed and nothing of the machine's own SLURM is touched; the daemons are started by this
module and ended by their process ids. Two nodes share this machine, each with an address of its own
(127.0.0.11, .12), so that Ray takes them for two.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.commands import free_port

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NUM_NODES = 2
KILL_WAIT_SECONDS = 5
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# Set where SLURM must be there: a test that skips would hide that it is not.
REQUIRED = "ORCHESTRATOR_TEST_SLURM"


def missing() -> str | None:
    """Why there can be no SLURM here."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"no {', '.join(absent)}: apt-get install --no-install-recommends {packages}"
    return None if os.geteuid() == 0 else "slurmd must be started by root"


def skip_or_fail() -> None:
    """Skip a test where SLURM cannot run, and fail it where it must."""
    reason = missing()
    if reason and os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and {reason}")
    if reason:
        pytest.skip(reason)


@contextmanager
def cluster_in_environment(folder: Path) -> Iterator[Cluster]:
    """A cluster that commands of this process find; the test is skipped where it cannot be."""
    skip_or_fail()
    with running_cluster(folder) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """A running SLURM: its environment, and what scontrol says of a job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def command(self, *arguments: str) -> str:
        """Standard output of a command of SLURM that must succeed."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of ``scontrol show job``."""
        text = self.command("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\w+)=(\S+)", text))

    def wait(
        self, job_id: str, wanted: Callable[[dict[str, str]], bool], seconds: float = 400
    ) -> dict[str, str]:
        """The job's fields once they are as wanted."""
        deadline = time.monotonic() + seconds
        while not wanted(job := self.job(job_id)):
            assert time.monotonic() < deadline, f"job {job_id} is {job['JobState']} after {seconds} s"
            time.sleep(0.2)
        return job

    def ended(self, job_id: str, seconds: float = 400) -> dict[str, str]:
        """The job's fields once it is over."""
        return self.wait(job_id, lambda job: job["JobState"] in OVER, seconds)

    def start_again(self, job_id: str) -> None:
        """Let a job that was queued again start without the two minutes that SLURM holds it back."""
        # A start in the second of its requeue fails with 'Job credential revoked'.
        time.sleep(2)
        self.command("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def run_seconds(self, job_id: str) -> int:
        """For how long this turn of a job has been running."""
        hours, minutes, seconds = self.job(job_id)["RunTime"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + int(seconds)

    def processes(self, job_id: str | None = None) -> list[psutil.Process]:
        """Living processes of jobs, or of one: all whose environment is that of a job of this cluster."""
        return [
            process
            for process in psutil.process_iter()
            if (found := _environment(process)).get("SLURM_CONF") == self.environment["SLURM_CONF"]
            and "SLURM_JOB_ID" in found
            and job_id in (None, found["SLURM_JOB_ID"])
        ]


def _environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error, OSError):
        return dict(process.environ())
    return {}


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with all nodes idle; all of its processes are gone afterwards."""
    for name in ("state", "log", "munge", "spool"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o755)
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(_configuration(folder))
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    cluster = Cluster(folder)
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)


def _start(cluster: Cluster) -> None:
    munge = cluster.folder / "munge"
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    cluster.command("munged", "--force", *(f"--{flag}={munge / name}" for flag, name in files.items()))
    configuration = cluster.environment["SLURM_CONF"]
    cluster.command("slurmctld", "-f", configuration)
    for number in range(1, NUM_NODES + 1):
        cluster.command("slurmd", "-N", f"n{number}", "-f", configuration)
    deadline = time.monotonic() + 60
    while cluster.command("sinfo", "--noheader", "--Node", "--format=%T").split() != ["idle"] * NUM_NODES:
        assert time.monotonic() < deadline, (cluster.folder / "log" / "slurmctld.log").read_text()
        time.sleep(0.1)


def _stop(cluster: Cluster) -> None:
    """End all jobs, then the daemons, by the ids that they have written."""
    with suppress(AssertionError):
        cluster.command("scancel", "--user=root", "--signal=KILL", "--full")
        deadline = time.monotonic() + KILL_WAIT_SECONDS + 15
        while cluster.command("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
    daemons = []
    for path in [*cluster.folder.glob("slurm*.pid"), cluster.folder / "munge" / "pid"]:
        with suppress(psutil.Error, OSError, ValueError):
            daemons.append(psutil.Process(int(path.read_text())))
            daemons[-1].terminate()
    _, alive = psutil.wait_procs(daemons, timeout=10)
    for process in [*alive, *cluster.processes()]:
        with suppress(psutil.Error):
            process.kill()


def _configuration(folder: Path) -> str:
    ports = [free_port() for _ in range(NUM_NODES + 1)]
    nodes = "".join(
        f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.{10 + number} Port={ports[number]}"
        " CPUs=2 RealMemory=4000 State=UNKNOWN\n"
        for number in range(1, NUM_NODES + 1)
    )
    # Ports and temporary files of a job are by its id: those of two clusters on one machine must differ.
    first_job = random.SystemRandom().randrange(1, 5000)
    return f"""\
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny
ReturnToService=2
KillWait={KILL_WAIT_SECONDS}
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
JobRequeue=1
{nodes}PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
