"""The launchers of a job file and what each may be told.

Values here become arguments of a command that is run without a shell, so any text is safe; what
a command would misread - a line break, a flag that belongs to the launcher - is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from orchestrator.spec.section import ChosenBy, Must, Section, field
from orchestrator.spec.training import Plugin

Positive = Annotated[int, Must(ge=1)]
ONE_LINE = Must(pattern=r"^[^\x00-\x1f\x7f]+$", hint="text in one line")
Line = Annotated[str, ONE_LINE]
TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.ASCII)
SIGNAL_EARLY_SECONDS = 60
"""How much earlier than asked SLURM may send a signal (sbatch's manual, --signal)."""
FLAG = re.compile(r"--([a-z][a-z0-9-]*)(=[^\x00-\x1f\x7f]*)?")
OWN_FLAGS = {
    "array": "it is made of the job's sweep",
    "error": "it goes to the run's output, which 'orchestrator logs RUN' shows",
    "help": "type 'sbatch --help'",
    "job-name": "it is the run's name",
    "open-mode": "each turn of a run adds to its output",
    "output": "it lies in the run directory, where 'orchestrator logs RUN' reads it",
    "parsable": "the launcher reads the job id itself",
    "test-only": "use --dry-run",
    "usage": "type 'sbatch --usage'",
    "version": "type 'sbatch --version'",
    "wait": "follow the run with 'orchestrator logs RUN -f'",
    "wrap": "the script is slurm/ray.sbatch",
}
"""Flags of sbatch that would break a submission, and what to do instead."""


class LocalLauncher(Section):
    """This machine, or the Ray cluster that RAY_ADDRESS names."""

    name: Literal["local"] = "local"
    """This machine, or the Ray cluster that RAY_ADDRESS names."""
    options: dict[str, Any] = field(default_factory=dict)
    """It takes none."""

    def __post_init__(self) -> None:
        if self.options:
            raise ValueError(
                f"launcher 'local' takes no options, found {', '.join(map(str, self.options))}; choose"
                " another with launcher.name or --launcher"
            )


class SlurmOptions(Section):
    """What sbatch is told; the flags of ``orchestrator submit`` of the same names override it."""

    nodes: Positive = 1
    """SLURM nodes; each becomes one Ray node with ``num_workers / nodes`` workers, rounded up."""
    partition: Line | None = None
    """Partition, or several by comma; absent: the site's default."""
    time: int | str | None = None
    """Time limit as sbatch takes it: minutes, or ``days-hours:minutes:seconds``; absent: the partition's."""
    account: Line | None = None
    """Account that is charged; absent: the user's default."""
    cpus_per_node: Positive | None = None
    """CPU cores of each node; absent: those of its workers. More of them prepare data faster."""
    gpus_per_node: Annotated[int, Must(ge=0)] | None = None
    """GPUs of each node; absent: those of its workers."""
    grace_seconds: Annotated[int, Must(ge=10)] = 120
    """Seconds before the time limit at which the run saves and asks for a new turn. SLURM may send the signal
    up to 60 s earlier."""
    signal: Literal["USR1", "USR2"] = "USR1"
    """What SLURM sends the batch script then, and no other process: both kill Ray's."""
    max_requeues: Annotated[int, Must(ge=0)] = 10
    """How often one job is queued again at its time limit, a preemption or a lost node."""
    python: Line | None = None
    """Interpreter on the nodes, with orchestrator installed: a path, or a name on PATH where it is submitted;
    absent: the one that submits."""
    scripts: Line | None = None
    """Folder with ``ray.sbatch``, ``ray_node.sh`` and ``env.sh``; absent: ``slurm/`` of the project."""
    after: tuple[Line, ...] = ()
    """Runs, or sweeps, in the same folder that must finish first; ``--after`` overrides it."""
    flags: tuple[str, ...] = ()
    """Any other flags of sbatch, as given: ``[--qos=high, --exclusive]``; they win over the launcher's."""

    def __post_init__(self) -> None:
        if self.time is not None:
            _check_time(str(self.time), key="time", found=repr(self.time), grace_seconds=self.grace_seconds)
        for run in self.after:
            if "/" in run or run in (".", ".."):
                raise ValueError(f"after: expected the name of a run in the same folder, found {run!r}")
        for flag in self.flags:
            found = FLAG.fullmatch(flag)
            if found is None:
                raise ValueError(f"flags: expected '--name' or '--name=value' in one line, found {flag!r}")
            if (complaint := refused_flag(flag, OWN_FLAGS)) is not None:
                raise ValueError(complaint)
            if found[1] == "time":
                given = (found[2] or "=")[1:]
                _check_time(given, key="flags", found=repr(flag), grace_seconds=self.grace_seconds)


def refused_flag(flag: str, refused: Mapping[str, str]) -> str | None:
    """What is said of a flag that is one of those ``refused``, each for a reason, or a beginning of one."""
    given = flag.removeprefix("--").partition("=")[0]
    # sbatch takes every beginning of a flag for it; none of them is another flag's whole name.
    own = next((name for name in refused if name.startswith(given)), None)
    if own is None:
        return None
    meant = "" if own == given else f", which sbatch takes for '--{own}',"
    return f"flags: '--{given}'{meant} cannot be given: {refused[own]}"


def _check_time(time: str, *, key: str, found: str, grace_seconds: int) -> None:
    """Refuse a time limit that sbatch does not take, or that leaves no turn a step.

    Args:
        time: As sbatch is given it.
        key: Where it stands in the launcher's options.
        found: As it stands there.
        grace_seconds: From the launcher's options.
    """
    if not TIME.fullmatch(time):
        raise ValueError(
            f"{key}: expected minutes, minutes:seconds, hours:minutes:seconds, days-hours,"
            f" days-hours:minutes or days-hours:minutes:seconds, found {found}"
        )
    limit, signalled = _limit_seconds(time), grace_seconds + SIGNAL_EARLY_SECONDS
    if limit is not None and limit <= signalled:
        raise ValueError(
            f"{key}: {found} is a limit of {limit} s, and the run may be asked to save and stop"
            f" {signalled} s before it (grace_seconds, and up to {SIGNAL_EARLY_SECONDS} s that SLURM is"
            " early), so no turn would do a step: raise time or lower grace_seconds"
        )


def _limit_seconds(time: str) -> int | None:
    """A time limit of sbatch in seconds; ``None``: no limit."""
    if not time[0].isdigit():
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    # Without days, one number is minutes and two are minutes and seconds.
    hours, minutes, seconds = parts if len(parts) == 3 else [*parts, 0, 0][:3] if dash else [0, *parts, 0][:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds or None


class SlurmLauncher(Section):
    """A batch job under SLURM."""

    name: Literal["slurm"]
    """A batch job under SLURM."""
    options: SlurmOptions = field(default_factory=SlurmOptions)
    """What sbatch is told."""


class RayOptions(Section):
    """Which cluster, and what is sent to it."""

    address: Line | None = None
    """Address of its jobs service, ``http://HEAD:8265``; absent: RAY_API_SERVER_ADDRESS, or this machine's.
    ``--address`` overrides it."""
    python: Line = "python"
    """Interpreter on the cluster, with orchestrator installed."""
    entrypoint_cpus: Annotated[float, Must(ge=0.0)] = 0.0
    """CPU cores set aside for the driver; with 0 it runs on the head node."""
    max_package_megabytes: Annotated[float, Must(gt=0.0)] = 50.0
    """Largest size of what is sent - the job and the user's own modules - in megabytes (10^6 bytes)."""


class RayLauncher(Section):
    """A job of a Ray cluster."""

    name: Literal["ray"]
    """A job of a Ray cluster."""
    options: RayOptions = field(default_factory=RayOptions)
    """Which cluster, and what is sent to it."""


KUBERNETES_NAME = "a name of Kubernetes: lower-case letters, digits and '-'"
Memory = Annotated[str, Must(pattern=r"^[1-9][0-9]*(\.[0-9]+)?[MGT]i?$", hint="a size such as 64Gi")]


class KuberayOptions(Section):
    """What KubeRay starts for the job."""

    image: Annotated[str, Must(pattern=r"^[^\s\x00-\x1f\x7f]+$", hint="a name without a space")]
    """Container image with Ray, orchestrator and your own modules; its Ray is the version installed here."""
    volume_claim: Annotated[
        str, Must(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$", hint=KUBERNETES_NAME)
    ]
    """PersistentVolumeClaim that all pods mount; ``runs/`` and the data lie on it."""
    mount_path: Annotated[str, Must(pattern=r"^/[^\x00-\x1f\x7f]+$", hint="an absolute path")]
    """Where it is mounted, in the pods as on the machine that submits."""
    namespace: (
        Annotated[str, Must(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", hint=KUBERNETES_NAME)] | None
    ) = None
    """Kubernetes namespace; absent: that of kubectl's context."""
    nodes: Positive = 1
    """Pods with workers; each has ``num_workers / nodes`` of them, rounded up."""
    memory_per_node: Memory
    """Memory of a pod with workers, such as ``64Gi``."""
    head_cpus: Positive = 2
    """CPU cores of the head, which runs the driver."""
    head_memory: Memory = "8Gi"
    """Memory of the head."""
    python: Line = "python"
    """Interpreter in the image, with orchestrator installed."""
    max_restarts: Annotated[int, Must(ge=0)] = 3
    """How often KubeRay starts the job again, on a new Ray, after it failed."""

    def __post_init__(self) -> None:
        if Path(self.mount_path) == Path("/dev/shm"):
            raise ValueError(
                "mount_path: /dev/shm is the memory that workers share; mount the volume elsewhere"
            )


class KuberayLauncher(Section):
    """A RayJob of a Kubernetes cluster with KubeRay 1.5.1 or later."""

    name: Literal["kuberay"]
    """A RayJob of a Kubernetes cluster."""
    options: KuberayOptions
    """What KubeRay starts for the job."""


Launcher = Annotated[
    LocalLauncher | RayLauncher | SlurmLauncher | KuberayLauncher | Plugin,
    ChosenBy("name", default="local"),
]
