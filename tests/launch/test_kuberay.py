"""The RayJob that ``submit --launcher kuberay`` renders, and what a stand-in for kubectl is asked."""

from __future__ import annotations

import json
import os
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launchers.kuberay import KuberayLauncher
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import Resources
from orchestrator.tracking.events import append_event
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, write_data, write_job

# The YAML of KubeRay's own ray.io_rayjobs.yaml, where it is at hand.
CRD = "ORCHESTRATOR_TEST_KUBERAY_CRD"
OPTIONS = {
    "image": "registry.example/orchestrator:1",
    "volume_claim": "shared",
    "mount_path": "/shared",
    "nodes": 2,
    "memory_per_node": "64Gi",
}
RESOURCES = Resources.model_validate({"num_workers": 3, "cpus_per_worker": 4, "gpus_per_worker": 1})
FAKE = """#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE_LOG"
for word in "$@"; do
  case $word in create) cat >"$FAKE_LOG.manifest" ;; esac
  [[ -f $FAKE_LOG.$word ]] && cat "$FAKE_LOG.$word"
done
exit "$(cat "$FAKE_LOG.code" 2>/dev/null || echo 0)"
"""


def render(name: str = "tiny", **options: Any) -> dict[str, Any]:
    launcher = KuberayLauncher.for_resources({**OPTIONS, **options}, RESOURCES)
    run_dir = Path("/shared/runs", name)
    found: dict[str, Any] = yaml.safe_load(launcher.manifest(run_dir / "submitted.yaml", run_dir))
    return found


def test_the_manifest_asks_for_the_jobs_workers_on_a_ray_with_a_token() -> None:
    job = render()
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "tiny")
    spec = job["spec"]
    assert spec["entrypoint"] == (
        "python -m launchers.cli run /shared/runs/tiny/submitted.yaml --runs-dir=/shared/runs"
    )
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    (container,) = group["template"]["spec"]["containers"]
    # Three workers on two pods.
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    for pod in (group["template"], cluster["headGroupSpec"]["template"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["spec"]["volumes"]} == set(mounts)


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} names no file with KubeRay's schema")
def test_the_manifest_fits_kuberays_schema() -> None:
    crd = yaml.safe_load(Path(os.environ[CRD]).read_text())
    (version,) = (found for found in crd["spec"]["versions"] if found["name"] == "v1")
    jsonschema.validate(render(), version["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("text", ["$(touch hacked)", "; touch hacked", "a' b\" c", "{}: &a *a", "%j", "- x"])
def test_no_value_becomes_anything_but_itself(text: str) -> None:
    assert shlex.split(render(python=text)["spec"]["entrypoint"])[0] == text
    for option in ("image", "volume_claim", "namespace", "memory_per_node", "head_memory"):
        if option != "image" or " " in text:
            with pytest.raises(ValueError, match=option):
                render(**{option: text})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("memory_per_node", "64GB"),
        ("memory_per_node", "64g"),
        ("memory_per_node", "64 Gi"),
        ("memory_per_node", "64m"),
        ("head_memory", "0Gi"),
        ("namespace", "Lab_X"),
        ("volume_claim", "My_Claim"),
        ("mount_path", "/dev/shm"),
    ],
)
def test_what_kubernetes_would_refuse_later_is_refused(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=option):
        render(**{option: value})


def submit(folder: Path, console: Console, *flags: str) -> Any:
    options = {**OPTIONS, "mount_path": str(folder), "nodes": 1}
    text = VALID + "launcher: " + json.dumps({"name": "kuberay", "options": options}) + "\n"
    return console("submit", write_job(folder, text), "--runs-dir", folder / "runs", *flags)


def test_a_dry_run_prints_the_manifest_and_leaves_nothing(tmp_path: Path, console: Console) -> None:
    ended = submit(tmp_path, console, "--dry-run")
    assert ended.code == 0
    assert yaml.safe_load(ended.output)["kind"] == "RayJob"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--set", "name=a.b"), "'a.b' is no name for Kubernetes, expected at most 47 lower-case letters"),
        (("--set", "launcher.options.mount_path=/else"), "is not on the volume, which is mounted at /else"),
        (("--set", "launcher.options.nodes=9"), "resources.num_workers is 1: a node would have no worker"),
        (("--set", "launcher.options.volume_claim=null"), "launcher.options.volume_claim: "),
    ],
)
def test_what_kubernetes_could_not_take_is_refused(
    flags: tuple[str, ...], expected: str, tmp_path: Path, console: Console
) -> None:
    for more in ((), ("--dry-run",)):
        ended = submit(tmp_path, console, *flags, *more)
        assert ended.code == 2
        assert expected in ended.errors
        assert not list((tmp_path / "runs").glob("*"))


def test_without_kubectl_the_message_says_what_to_do(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = submit(tmp_path, console)
    assert ended.code == 2
    assert "there is no kubectl on PATH" in ended.errors
    assert not list((tmp_path / "runs").glob("*"))


def test_without_a_cluster_the_message_is_kubectls_last_word_and_what_to_do(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_fake_on_path(tmp_path, monkeypatch)
    refused = (
        "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    )
    logged = 'E1130 10:35:39.938700   14070 memcache.go:265] "Unhandled Error" err="connection refused"'
    errors = tmp_path / "errors"
    errors.write_text(f"{logged}\n{logged}\n{refused}\n")
    (tmp_path / "bin" / "kubectl").write_text(f"#!/bin/bash\ncat {errors} >&2; exit 1\n")
    ended = submit(tmp_path, console)
    first, *advice = ended.errors.splitlines()
    assert (ended.code, first) == (1, f"kubectl get rayjob tiny failed: {refused}")
    assert advice[0].startswith("Choose the cluster's context ('kubectl config get-contexts' lists them,")
    # What is nothing else is shown.
    errors.write_text(f"{logged}\n")
    assert submit(tmp_path, console).errors == f"kubectl get rayjob tiny failed: {logged}\n"


def put_fake_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for kubectl is found first; the file in which it writes its arguments."""
    bin_dir, log = folder / "bin", folder / "log"
    bin_dir.mkdir()
    (bin_dir / "kubectl").write_text(FAKE)
    (bin_dir / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_LOG", str(log))
    return log


def rayjob(folder: Path, state: str) -> dict[str, Any]:
    """That of the run ``tiny`` in this folder, as kubectl shows it."""
    entrypoint = shlex.join(["python", "-m", "launchers.cli", "run", "x", f"--runs-dir={folder}/runs"])
    return {
        "metadata": {"name": "tiny"},
        "spec": {"entrypoint": entrypoint},
        "status": {"jobDeploymentStatus": state},
    }


def test_a_stand_in_for_kubectl_is_given_the_manifest_and_asked_for_the_state(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.submitted.LOOK_SECONDS", 0)
    log = put_fake_on_path(tmp_path, monkeypatch)
    flags = ("--set", "launcher.options.namespace=lab")
    assert submit(tmp_path, console, *flags, "--json").json()["job_id"] == "tiny"
    assert yaml.safe_load(Path(f"{log}.manifest").read_text())["metadata"]["name"] == "tiny"
    assert log.read_text().splitlines() == [
        "--namespace=lab get rayjob tiny --ignore-not-found --output=json",
        "--namespace=lab create --filename=- --output=name",
    ]
    job = rayjob(tmp_path, "Initializing")
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [job]}))
    Path(f"{log}.rayjob").write_text(json.dumps(job))
    status = console("status", "tiny", "--runs-dir", tmp_path / "runs", "--json").json()
    assert (status["state"], status["job"]["state"]) == ("queued", "Initializing")
    second = submit(tmp_path, console, *flags)
    assert second.code == 1
    assert "is queued already as kuberay job tiny (Initializing)" in second.errors
    assert console("cancel", "tiny", "--runs-dir", tmp_path / "runs").code == 0
    assert "--namespace=lab delete rayjob tiny --wait=false" in log.read_text()
    refused = job | {"status": {"jobDeploymentStatus": "ValidationFailed", "message": "no such mode"}}
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [refused]}))
    Path(f"{log}.rayjob").write_text(json.dumps(refused))
    ended = console("status", "tiny", "--runs-dir", tmp_path / "runs").output
    assert "(ValidationFailed, no such mode)" in ended
    Path(f"{log}.code").write_text("1")
    failed = submit(tmp_path, console, *flags)
    assert failed.code == 1
    assert "kubectl" in failed.errors


def test_a_cancelled_run_is_not_started_again_by_a_stand_in_for_kuberay(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = put_fake_on_path(tmp_path, monkeypatch)
    submit(tmp_path, console)
    job = rayjob(tmp_path, "Running")
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [job]}))
    layout = RunLayout(tmp_path / "runs" / "tiny")
    append_event(layout.events, "run_started")
    assert console("cancel", "tiny", "--runs-dir", tmp_path / "runs").code == 0
    assert layout.stop_request.exists()
    assert log.read_text().splitlines()[-1] == (
        'patch rayjob tiny --type=merge --patch={"spec": {"backoffLimit": 0}}'
    )


def test_a_rayjob_that_is_gone_before_it_is_deleted_is_none_to_complain_of(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    log = put_fake_on_path(tmp_path, monkeypatch)
    kubectl = tmp_path / "bin" / "kubectl"
    not_found = 'case "$*" in *"--ignore-not-found"*) ;; *delete*) echo NotFound >&2; exit 1 ;; esac\n'
    kubectl.write_text(FAKE.replace("\n", f"\n{not_found}", 1))
    submit(tmp_path, console)
    # As it was listed.
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [rayjob(tmp_path, "Initializing")]}))
    monkeypatch.setattr("launchers.submitted.NUM_LOOKS", 1)
    cancelled = console("cancel", "tiny", "--runs-dir", tmp_path / "runs")
    assert (cancelled.code, cancelled.errors) == (0, "")
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": []}))
    Path(f"{log}.rayjob").write_text(json.dumps(rayjob(tmp_path, "Failed")))
    again = submit(tmp_path, console)
    assert (again.code, again.errors) == (0, "")


def test_a_rayjob_that_is_tried_again_and_one_that_is_gone_are_cancelled_by_a_stand_in_for_kuberay(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.submitted.LOOK_SECONDS", 0)
    log = put_fake_on_path(tmp_path, monkeypatch)
    kubectl = tmp_path / "bin" / "kubectl"
    not_found = 'case "$*" in *patch*) echo NotFound >&2; exit 1 ;; esac\n'
    kubectl.write_text(FAKE.replace("\n", f"\n{not_found}", 1))
    submit(tmp_path, console)
    layout = RunLayout(tmp_path / "runs" / "tiny")
    # Of a driver that was lost; while it is deleted KubeRay lists it still.
    append_event(layout.events, "run_started")
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [rayjob(tmp_path, "Initializing")]}))
    cancel = ("cancel", "tiny", "--json", "--runs-dir", tmp_path / "runs")
    assert console(*cancel).json()["state"] == "cancelling"
    assert not layout.stop_request.exists()
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [rayjob(tmp_path, "Running")]}))
    assert console(*cancel).json()["state"] == "stopping"
    Path(f"{log}.rayjob").write_text(json.dumps(rayjob(tmp_path, "Running")))
    refused = console(*cancel)
    assert (refused.code, "NotFound" in refused.output) == (1, True)


@pytest.mark.parametrize("entrypoint", ["run x --runs-dir=/elsewhere", "python -c 'torn", ""])
def test_a_rayjob_of_this_name_that_is_another_runs_is_left_alone(
    entrypoint: str, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = put_fake_on_path(tmp_path, monkeypatch)
    submit(tmp_path, console)
    job = rayjob(tmp_path, "Initializing")
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [job]}))
    Path(f"{log}.rayjob").write_text(json.dumps(job))
    Path(f"{log}.logs").write_text("of the driver\n")
    runs = ("--runs-dir", tmp_path / "runs")
    assert console("status", "tiny", *runs, "--json").json()["state"] == "queued"
    assert console("logs", "tiny", *runs).output == "of the driver\n"
    job["spec"]["entrypoint"] = entrypoint
    Path(f"{log}.rayjobs").write_text(json.dumps({"items": [job]}))
    Path(f"{log}.rayjob").write_text(json.dumps(job))
    found = console("status", "tiny", *runs, "--json").json()
    assert (found["state"], found["job"]["state"]) == ("failed", None)
    assert console("logs", "tiny", *runs).code == 2
    assert console("cancel", "tiny", *runs).code == 2
    assert "delete" not in log.read_text()
