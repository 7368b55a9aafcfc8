"""The Ray launcher: ``orchestrator run`` as a job of a Ray cluster, through its jobs service.

The run directory and the data lie on a file system that the cluster shares, under the paths that they have
where the command is typed; the job and the user's own modules are sent. The submission id is the run's name,
then ``NAME.2`` and so on: Ray ends a job's actor by that id after the job, and with it one that took the id.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launchers.base import PlaceState, is_named
from launchers.deferral import say
from launchers.ray_http import JobsService, printable
from launchers.ray_package import JOB_NAME, collect
from launchers.room import DRIVER_CPUS, SETTLED_SECONDS, check_driver, check_nodes
from launchers.submission_record import JOB_ID_VARIABLE
from orchestrator.errors import LaunchError, PlanError
from orchestrator.spec.job import Job
from orchestrator.spec.launchers import RayOptions
from orchestrator.spec.plan import fewest_workers

PHASES: Mapping[str, Literal["queued", "running"]] = {"PENDING": "queued", "RUNNING": "running"}
# What a job of the cluster says of itself.
RUN_DIR = "run_dir"
# Workers keep the folder that was sent, where the user's own modules are.
ENVIRONMENT = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}

ELSEWHERE = "give a larger cluster with --address"

# A cluster that has just been started answers before the part of its head that takes jobs is there.
NO_AGENT, AGENT_SECONDS = "No available agent", 60
# A job whose submission broke off is listed once the head has taken it, of which nobody is told any more.
NUM_LOOKS, LOOK_SECONDS = 4, 1


class RayLauncher:
    """Runs the driver on a Ray cluster."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take over ``launcher.options``."""
        self._options = RayOptions.model_validate(options)
        self._service = JobsService(self._options.address)

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The ``ray job submit`` that does the same from a folder that holds what is sent."""
        return [
            "ray",
            "job",
            "submit",
            f"--address={self._service.address}",
            f"--submission-id={run_dir.name}",
            f"--runtime-env-json={json.dumps({'env_vars': self._environment()})}",
            f"--metadata-json={json.dumps({RUN_DIR: str(run_dir)})}",
            f"--entrypoint-num-cpus={self._options.entrypoint_cpus:g}",
            f"--working-dir=<a folder with {JOB_NAME} and your modules>",
            "--no-wait",
            "--",
            *self._entrypoint(run_dir),
        ]

    def _environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, DRIVER_CPUS: f"{self._options.entrypoint_cpus:g}"}

    def _entrypoint(self, run_dir: Path) -> list[str]:
        return [self._options.python, "-m", "launchers.cli", "run", JOB_NAME, f"--runs-dir={run_dir.parent}"]

    def check_room(self, jobs: Sequence[Job]) -> None:
        """Refuse what its nodes could not hold beside the driver; the driver would, once it is there.

        Raises:
            LaunchError: It is not there, or refused.
            PlanError: It is too small.
        """
        # What is wrong with the cluster as a whole is an error, and not to be told its nodes is none.
        self._jobs()
        try:
            nodes = self._service.nodes()
        except LaunchError as error:
            say(f"orchestrator: warning: whether the job has room is for its driver to say: {error}")
            return
        if not nodes:
            # Its head takes jobs before it has joined as a node.
            return
        held, driver_cpus = [node.resources for node in nodes], self._options.entrypoint_cpus
        is_settled = time.time() - max(node.started for node in nodes) >= SETTLED_SECONDS
        try:
            check_driver(driver_cpus, held, ELSEWHERE)
        except PlanError as error:
            if is_settled:
                raise
            say(f"orchestrator: warning: the job waits for a node that may still join: {error}")
        if not is_settled:
            # The driver waits for more that join.
            return
        for job in jobs:
            try:
                check_nodes(fewest_workers(job), held, ELSEWHERE, driver_cpus=driver_cpus)
            except PlanError as error:
                raise PlanError(f"{job.name}: {error}" if len(jobs) > 1 else str(error)) from error

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Send it; the submission id.

        Raises:
            LaunchError: The cluster is not there, refused, or runs a job in this run directory; or the
                connection broke and it does not tell whether it has the job.
        """
        headers = self._service.headers()
        jobs = self._jobs()
        self._refuse_second(run_dir, jobs)
        job_id = _unused(run_dir.name, jobs)
        from ray.job_submission import JobSubmissionClient

        with tempfile.TemporaryDirectory() as folder:
            size = collect(job_file, Path(folder), max_bytes=self._options.max_package_megabytes * 1e6)
            print(f"sending {size / 1e3:.1f} kB to {self._service.address}", file=sys.stderr)
            deadline = time.monotonic() + AGENT_SECONDS
            while True:
                try:
                    client = JobSubmissionClient(self._service.address, headers=headers)
                    return str(
                        client.submit_job(
                            entrypoint=shlex.join(self._entrypoint(run_dir)),
                            submission_id=job_id,
                            metadata={RUN_DIR: str(run_dir)},
                            runtime_env={
                                "working_dir": folder,
                                "env_vars": {**self._environment(), JOB_ID_VARIABLE: job_id},
                            },
                            entrypoint_num_cpus=self._options.entrypoint_cpus,
                        )
                    )
                except ConnectionError as error:
                    # Ray's own, before it sends a job.
                    raise LaunchError(self._refused(error)) from error
                except (RuntimeError, OSError) as error:
                    # Where an answer is lost, an OSError of the library that Ray's client asks with.
                    if NO_AGENT not in str(error) or time.monotonic() > deadline:
                        return self._taken_after_all(job_id, run_dir, error)
                time.sleep(1)

    def _refused(self, error: Exception) -> str:
        return f"the Ray cluster at {self._service.address} refused the job: {error}"

    def _taken_after_all(self, job_id: str, run_dir: Path, error: Exception) -> str:
        """The id of a submission that Ray's client gave up, where the cluster has the job.

        Raises:
            LaunchError: It has not, or does not say.
        """
        is_answered, place = isinstance(error, RuntimeError), f"--address={self._service.address}"
        said = self._refused(error) if is_answered else f"the submission of {job_id} got no answer: {error}"
        try:
            for number in range(1 if is_answered else NUM_LOOKS):
                time.sleep(LOOK_SECONDS if number else 0)
                if _is_of(self._jobs().get(job_id), run_dir):
                    return job_id
        except LaunchError as unknown:
            raise LaunchError(
                f"{said}\nNor can the cluster be asked ({unknown}).\nIt may have the job, as '{job_id}': look"
                f" with 'ray job status {job_id} {place}', and end it with 'ray job stop {job_id} {place}'"
                " before you submit the run again"
            ) from error
        if is_answered:
            raise LaunchError(said) from error
        raise LaunchError(
            f"{said}\nThe Ray cluster at {self._service.address} has no job of this run: look once more with"
            f" 'ray job list {place}', and submit it again"
        ) from error

    def _refuse_second(self, run_dir: Path, jobs: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse what the run directory itself cannot tell of, as where it was deleted under a running job.

        Raises:
            LaunchError: A job is alive there.
        """
        for job_id, job in jobs.items():
            if job["status"] in PHASES and _is_of(job, run_dir):
                raise LaunchError(
                    f"{run_dir} is {PHASES[job['status']]} already as job {job_id} of the Ray cluster at"
                    f" {self._service.address}; end it with"
                    f" 'ray job stop {job_id} --address={self._service.address}', or rename yours"
                )

    def _jobs(self) -> dict[str, dict[str, Any]]:
        """What the cluster knows of its jobs, by submission id; those that are over are among them."""
        # One that was started otherwise has no submission id.
        jobs = self._service.jobs()
        return {job["submission_id"]: job for job in jobs if isinstance(job.get("submission_id"), str)}

    def resolved_options(self) -> dict[str, Any]:
        """The cluster that was asked, where RAY_API_SERVER_ADDRESS or the default was."""
        return {"address": self._service.address}

    def queue(self) -> dict[str, PlaceState]:
        """Jobs of the cluster that are not over.

        Raises:
            LaunchError: It cannot be asked.
        """
        return {
            job_id: PlaceState(PHASES[job["status"]], job["status"], _run_dir(job))
            for job_id, job in self._jobs().items()
            if job["status"] in PHASES
        }

    def ending(self, job_id: str, run_dir: Path) -> str | None:
        """Status and exit code of the driver, or Ray's own reason where it has none."""
        found = self._service.job(job_id)
        if found is None or not _is_of(found, run_dir):
            return None
        code, lines = found.get("driver_exit_code"), str(found.get("message") or "").splitlines()
        if code is not None:
            return printable(f"{found['status']}, exit code {code}")
        return printable(f"{found['status']}: {lines[0]}" if lines else str(found["status"]))

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What the driver has printed."""
        return self._service.logs(job_id) if _is_of(self._service.job(job_id), run_dir) else None

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """Stop a job; its driver has 3 s (RAY_JOB_STOP_WAIT_TIME_S on the head) to save.

        Raises:
            LaunchError: The cluster refused.
        """
        self._service.stop(job_id)


def _is_of(job: Mapping[str, Any] | None, run_dir: Path) -> bool:
    """Whether a job of the cluster says that it runs in this run directory."""
    return job is not None and is_named(run_dir, _run_dir(job))


def _run_dir(job: Mapping[str, Any]) -> str:
    """The run directory that a job of the cluster names; empty: it is no run's."""
    metadata = job.get("metadata")
    return str(metadata.get(RUN_DIR, "")) if isinstance(metadata, dict) else ""


def _unused(name: str, taken: Container[str]) -> str:
    """``name``, or with the first number behind it that no job of the cluster has."""
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(job_id for job_id in itertools.chain([name], numbered) if job_id not in taken)
