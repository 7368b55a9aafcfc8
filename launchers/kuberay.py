"""The KubeRay launcher: ``orchestrator run`` as a RayJob of a Kubernetes cluster, on a Ray of its own.

A volume that the cluster's nodes share is mounted where the command is typed as well: ``runs/``, the data and
the job file lie on it, under the same paths. Ray asks for a token there, which needs KubeRay 1.5.1 or later.

Source of the manifest's fields: the KubeRay API reference, ``ray.io/v1``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launchers.base import PlaceState, RefusedJobError, is_named, workers_per_node
from launchers.kubectl import run_command
from launchers.submission_record import JOB_ID_VARIABLE
from orchestrator.errors import LaunchError

if TYPE_CHECKING:
    from orchestrator.spec.job import Resources

# KubeRay adds to it for the names of pods and services, which have 63 characters.
NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
# jobDeploymentStatus of a RayJob that is over.
OVER = ("Complete", "Failed", "ValidationFailed")


class KuberayLauncher:
    """Runs the driver on a Ray that KubeRay starts for it."""

    def __init__(self, options: Mapping[str, Any], resources: Resources | None = None) -> None:
        """Take over ``launcher.options``; without ``resources`` for the questions of a queue alone."""
        from orchestrator.spec.launchers import KuberayOptions

        self._options = KuberayOptions.model_validate(options)
        self._resources = resources

    @classmethod
    def for_resources(cls, options: Mapping[str, Any], resources: Resources) -> KuberayLauncher:
        """The launcher of a job with these resources."""
        return cls(options, resources)

    def render(self, job_file: Path, run_dir: Path) -> list[str]:
        """The ``kubectl`` that takes the manifest from its standard input."""
        return [*self._kubectl(), "create", "--filename=-", "--output=name"]

    def manifest(self, job_file: Path, run_dir: Path) -> str:
        """The RayJob as YAML.

        Raises:
            RefusedJobError: The run's name is none of Kubernetes, or its directory is not on the volume.
        """
        options, name = self._options, run_dir.name
        if not NAME.fullmatch(name):
            raise RefusedJobError(
                f"'{name}' is no name for Kubernetes, expected at most 47 lower-case letters, digits and '-',"
                " a letter first; give the job another name"
            )
        mount = Path(options.mount_path)
        if mount not in run_dir.parents:
            raise RefusedJobError(
                f"{run_dir} is not on the volume, which is mounted at {mount}; name a folder of it with"
                " --runs-dir, or correct launcher.options.mount_path"
            )
        command = [
            options.python,
            "-m",
            "launchers.cli",
            "run",
            str(job_file),
            f"--runs-dir={run_dir.parent}",
        ]
        job = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "orchestrator"}},
            "spec": {
                "entrypoint": shlex.join(command),
                "runtimeEnvYAML": yaml.safe_dump(
                    {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0", JOB_ID_VARIABLE: name}}
                ),
                # Each is a new Ray, on which the run goes on where it stopped.
                "backoffLimit": options.max_restarts,
                # At once; the RayJob and what its driver printed stay.
                "shutdownAfterJobFinishes": True,
                "rayClusterSpec": self._cluster(),
            },
        }
        if options.namespace is not None:
            job["metadata"]["namespace"] = options.namespace  # type: ignore[index]
        return yaml.safe_dump(job, sort_keys=False)

    def _cluster(self) -> dict[str, Any]:
        """A head without workers, and a group of pods with them."""
        options = self._options
        worker = self._pod("ray-worker", *self._size(), options.memory_per_node)
        return {
            "rayVersion": metadata.version("ray"),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                "template": self._pod("ray-head", options.head_cpus, 0, options.head_memory),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": options.nodes,
                    "minReplicas": options.nodes,
                    "maxReplicas": options.nodes,
                    "rayStartParams": {},
                    "template": worker,
                }
            ],
        }

    def _size(self) -> tuple[int, int]:
        """Cores and GPUs of a pod with workers.

        Raises:
            RefusedJobError: A pod would have no worker.
        """
        from orchestrator.spec.job import Resources

        options, resources = self._options, self._resources or Resources()
        workers = workers_per_node(resources, options.nodes)
        return workers * resources.cpus_per_worker, workers * resources.gpus_per_worker

    def _pod(self, name: str, cpus: int, gpus: int, memory: str) -> dict[str, Any]:
        options = self._options
        size: dict[str, Any] = {"cpu": str(cpus), "memory": memory}
        if gpus:
            size["nvidia.com/gpu"] = str(gpus)
        container = {
            "name": name,
            "image": options.image,
            "resources": {"requests": size, "limits": size},
            "volumeMounts": [
                {"name": "shared", "mountPath": options.mount_path},
                # NCCL and gloo share memory between the workers of a pod; 64 MB is the default.
                {"name": "shm", "mountPath": "/dev/shm"},
            ],
        }
        volumes = [
            {"name": "shared", "persistentVolumeClaim": {"claimName": options.volume_claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ]
        return {"spec": {"containers": [container], "volumes": volumes}}

    def submit(self, job_file: Path, run_dir: Path) -> str:
        """Create the RayJob; its name.

        Raises:
            LaunchError: kubectl is not there, or the cluster refused.
        """
        manifest = self.manifest(job_file, run_dir)
        found = self._state(run_dir.name)
        if found is not None and found not in OVER:
            raise LaunchError(
                f"a RayJob '{run_dir.name}' is there already ({found}); stop it with"
                f" 'orchestrator cancel {run_dir.name}' or, where no run of that name is known,"
                f" '{shlex.join([*self._kubectl(), 'delete', 'rayjob', run_dir.name])}'; or give the job"
                " another name"
            )
        if found is not None:
            self._run("delete", "rayjob", run_dir.name, "--wait=true", "--ignore-not-found")
        self._run(*self.render(job_file, run_dir)[len(self._kubectl()) :], text=manifest)
        return run_dir.name

    def queue(self) -> dict[str, PlaceState]:
        """RayJobs that are not over.

        Raises:
            LaunchError: The cluster cannot be asked.
        """
        states = {}
        for item in json.loads(self._run("get", "rayjobs", "--output=json"))["items"]:
            state = _deployment(item)
            if state not in OVER:
                phase = "running" if state == "Running" else "queued"
                found = PlaceState(phase, state, _run_dir(item))  # type: ignore[arg-type]
                states[str(item["metadata"]["name"])] = found
        return states

    def ending(self, job_id: str, run_dir: Path) -> str | None:
        """The RayJob's own status, with its message."""
        found = self._own_job(job_id, run_dir)
        if found is None:
            return None
        status = {"jobStatus": _deployment(found)} | found.get("status", {})
        return ", ".join(str(status[key]) for key in ("jobStatus", "message") if status.get(key))

    def output(self, job_id: str, run_dir: Path) -> str | None:
        """What the driver has printed."""
        try:
            if self._own_job(job_id, run_dir) is None:
                return None
            return self._run("logs", f"job/{job_id}", "--container=ray-job-submitter") or None
        except LaunchError:
            return None

    def cancel(self, job_id: str, *, only_queued: bool) -> None:
        """Remove the RayJob, and its Ray with it.

        Raises:
            LaunchError: The cluster refused.
        """
        self._run("delete", "rayjob", job_id, "--wait=false", "--ignore-not-found")

    def end_restarts(self, job_id: str) -> None:
        """Leave the RayJob as it is when its driver ends: KubeRay restarts whatever failed.

        Raises:
            LaunchError: The cluster refused.
        """
        last = json.dumps({"spec": {"backoffLimit": 0}})
        try:
            self._run("patch", "rayjob", job_id, "--type=merge", f"--patch={last}")
        except LaunchError:
            # One that is gone starts nothing.
            if self._job(job_id) is not None:
                raise

    def _state(self, name: str) -> str | None:
        found = self._job(name)
        return None if found is None else _deployment(found)

    def _job(self, name: str) -> dict[str, Any] | None:
        text = self._run("get", "rayjob", name, "--ignore-not-found", "--output=json")
        found: dict[str, Any] | None = json.loads(text) if text.strip() else None
        return found

    def _own_job(self, name: str, run_dir: Path) -> dict[str, Any] | None:
        """The RayJob of this name, unless it is another run's."""
        found = self._job(name)
        return found if found is not None and is_named(run_dir, _run_dir(found)) else None

    def _kubectl(self) -> list[str]:
        namespace = self._options.namespace
        return ["kubectl", *([f"--namespace={namespace}"] if namespace is not None else [])]

    def _run(self, *arguments: str, text: str | None = None) -> str:
        """Output of a kubectl that must succeed.

        Raises:
            LaunchError: It is not there, does not answer, or failed.
        """
        return run_command([*self._kubectl(), *arguments], text)


def _deployment(job: Mapping[str, Any]) -> str:
    """How far KubeRay is with a RayJob, such as ``Initializing``."""
    return str(job.get("status", {}).get("jobDeploymentStatus") or "New")


def _run_dir(job: Mapping[str, Any]) -> str:
    """The run directory of the driver that a RayJob starts; empty: it is no run's."""
    flag = "--runs-dir="
    try:
        words = shlex.split(str(job.get("spec", {}).get("entrypoint", "")))
    except ValueError:
        # Of somebody else's.
        return ""
    folders = [word.removeprefix(flag) for word in words if word.startswith(flag)]
    return str(Path(folders[-1], job["metadata"]["name"])) if folders else ""
