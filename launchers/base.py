"""What a launcher promises: it only decides where ``orchestrator run`` runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from orchestrator.counts import counted
from orchestrator.errors import LaunchError
from orchestrator.registry import resolve

if TYPE_CHECKING:
    from orchestrator.spec.job import Job, Resources


class Launcher(Protocol):
    """A place where a job can run. Built with ``launcher.options`` of the job file.

    One that must know how many workers there are has a class method ``for_resources(options, resources)``.
    """

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The command that would be submitted; changes nothing."""

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Start ``orchestrator run`` there without waiting for it; returns the place's own job id.

        A driver that finds that id in ``ORCHESTRATOR_JOB_ID`` ends at once if the run was cancelled since.

        Raises:
            LaunchError: The place refused the job.
        """


@dataclass(frozen=True)
class PlaceState:
    """How a job stands at the place it was submitted to."""

    phase: Literal["queued", "running"]
    detail: str
    """In the place's own words, such as ``PENDING, Resources``."""
    run_dir: str | None = None
    """Of the run that the job itself says it is of; ``None`` where its place has no such thing."""


@runtime_checkable
class RemoteLauncher(Protocol):
    """A launcher whose place has a queue: ``status`` and ``cancel`` ask it about jobs without a driver."""

    def queue(self) -> Mapping[str, PlaceState]:
        """The user's jobs there that are not over, by job id.

        Raises:
            LaunchError: The place cannot be asked.
        """

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What the driver has printed there; ``None`` where that cannot be seen yet."""

    def ending(self, job_id: str, run_dir: Path) -> str | None:
        """How a run's job ended, in the place's own words; ``None`` where it no longer knows."""

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """Take a job out of the queue and, unless ``only_queued``, end it where it runs.

        Raises:
            LaunchError: The place refused.
        """


@runtime_checkable
class ResolvingLauncher(Protocol):
    """A launcher that finds out as it is built what its options leave open, as from the environment."""

    def resolved_options(self) -> Mapping[str, Any]:
        """What to record of a submission in the place of such options: another shell asks the same place."""


@runtime_checkable
class CheckingLauncher(Protocol):
    """A launcher whose place queues jobs that it can never start."""

    def withdraw_hopeless(self, job_id: str) -> str | None:
        """Take a job out of the queue that could never start there, with the array that it is one of.

        Returns:
            Why, and what to do; ``None``: it stays.

        Raises:
            LaunchError: The place cannot be asked, or refused.
        """


@runtime_checkable
class MeasuringLauncher(Protocol):
    """A launcher whose place can tell what it holds before it is given a job."""

    def check_room(self, jobs: Sequence[Job]) -> None:
        """Refuse jobs of which one has no room there, even if nobody else used it.

        Raises:
            LaunchError: The place cannot be asked.
            PlanError: It is too small.
        """


@runtime_checkable
class RestartingLauncher(Protocol):
    """A launcher whose place starts a job again whatever its driver ended with."""

    def end_restarts(self, job_id: str) -> None:
        """Leave a job as it is when its driver ends, as after a request to save and stop.

        Raises:
            LaunchError: The place refused.
        """


@runtime_checkable
class ManifestLauncher(Protocol):
    """A launcher whose place takes a document instead of a command."""

    def manifest(self, job_file: Path, run_dir: Path) -> str:
        """The document that would be submitted; changes nothing.

        Raises:
            LaunchError: The place cannot take the job.
        """


@runtime_checkable
class ArrayLauncher(Protocol):
    """A launcher whose place takes the runs of a sweep as one array, ``<name>-0``, ``<name>-1`` and so on."""

    def render_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """The command that would be submitted; changes nothing.

        Args:
            name: Of the sweep.
            job_files: One for each run, in its run directory.
            at_once: Most runs at the same time; absent: the place decides.
        """

    def submit_array(self, name: str, job_files: Sequence[Path], *, at_once: int | None) -> list[str]:
        """Start ``orchestrator run`` of each there; the place's own job ids.

        Raises:
            LaunchError: The place refused the jobs.
        """


class RefusedJobError(LaunchError):
    """The place does not take the job as it is asked for."""

    exit_code = 2


def is_named(run_dir: Path, named: object) -> bool:
    """Whether ``named``, as a job says it of itself, is this run directory, by whatever path that is given.

    What it names may be anybody's: the disk is not asked about that.
    """
    # A run is submitted with its folder's real path, and its own name behind that.
    return named in (str(run_dir.parent.resolve() / run_dir.name), str(run_dir.resolve()))


def workers_per_node(resources: Resources, nodes: int) -> int:
    """Workers that each of ``launcher.options.nodes`` nodes must hold.

    Raises:
        RefusedJobError: A node would have none.
    """
    if nodes > resources.num_workers:
        raise RefusedJobError(
            f"launcher.options.nodes is {nodes}, and resources.num_workers is {resources.num_workers}: a node"
            f" would have no worker. Ask for at most {counted(resources.num_workers, 'node')}, or for more"
            " workers"
        )
    return math.ceil(resources.num_workers / nodes)


def make_launcher(name: str, options: Mapping[str, Any], resources: Resources) -> Launcher:
    """The launcher called ``name``.

    Raises:
        PlanError: There is none.
    """
    plugin = resolve("launcher", name)
    build = getattr(plugin, "for_resources", None)
    launcher: Launcher = build(options, resources) if build else plugin(options)
    return launcher
