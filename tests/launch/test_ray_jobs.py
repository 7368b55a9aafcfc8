"""A real Ray cluster of two nodes on loopback that asks for a token: submit, follow, cancel, go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launchers.ray import RayLauncher
from launchers.ray_http import JobsService
from launchers.rehearsed_run import kill_tree
from launchers.room import SETTLED_SECONDS
from launchers.submission_record import read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from tests.e2e.commands import environment, events, free_port, last_step, orchestrator, succeed
from tests.launch.test_slurm import short_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
# So many that the run is still going on when the node is lost, or when it is cancelled.
MAX_STEPS = 500


class RayCluster:
    """A head with its jobs service and a second node, of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = folder / "token"
        self.token.write_text("0123456789abcdef" * 4)
        self.token.chmod(0o600)
        self.port, self.address = free_port(), f"http://127.0.0.1:{free_port()}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, name: str) -> None:
        """Start one node."""
        temporary = f"/tmp/orc-test-{os.getpid()}-{name}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
                   "--object-store-memory=100000000", f"--temp-dir={temporary}",
                   # The default is the same for all clusters of a machine: the second would have no agent.
                   f"--dashboard-agent-listen-port={free_port()}", *options]  # fmt: skip
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {**environment(self.folder / "home"), **self.environment, "PATH": path}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(command, env=given, stdout=log, stderr=log, start_new_session=True)
            )

    def join(self, name: str, number: int) -> None:
        """Start a node on the loopback address of this number, beside the head."""
        self.start(f"--node-ip-address=127.0.0.{number}", f"--address=127.0.0.11:{self.port}", name=name)

    def kill_newest(self) -> None:
        """Kill the node that was started last, with everything that runs on it."""
        kill_tree(self.processes[-1].pid)
        self.processes[-1].wait()

    def wait(self) -> None:
        """Wait for the jobs service."""
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/api/authentication_mode", timeout=5)
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "head.log").read_text()
                time.sleep(0.5)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    dashboard = cluster.address.rpartition(":")[2]
    try:
        cluster.start(
            "--head", "--node-ip-address=127.0.0.11", f"--port={cluster.port}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}", name="head",
        )  # fmt: skip
        cluster.wait()
        cluster.join("second", 12)
        yield cluster
    finally:
        for process in cluster.processes:
            kill_tree(process.pid)
            process.wait()
        for name in ("head", "second", "third", "wide"):
            shutil.rmtree(f"/tmp/orc-test-{os.getpid()}-{name}", ignore_errors=True)


def test_without_the_token_the_message_says_what_to_set(ray_cluster: RayCluster, tmp_path: Path) -> None:
    command = ("submit", short_job(tmp_path, "closed"), "--launcher", "ray", "--address", ray_cluster.address)
    command = (*command, "--runs-dir", tmp_path / "runs")
    without = orchestrator(*command, home=tmp_path / "home")
    assert without.returncode == 2
    assert f"the Ray cluster at {ray_cluster.address} asks for a token" in without.stderr
    assert "RAY_AUTH_TOKEN_PATH" in without.stderr

    wrong = orchestrator(*command, home=tmp_path / "home", variables={"RAY_AUTH_TOKEN": "f" * 64})
    assert wrong.returncode == 2
    assert "does not take the token that was sent" in wrong.stderr
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.exhaustive
def test_a_job_is_followed_loses_a_node_is_cancelled_and_goes_on(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, home, token = tmp_path / "runs", tmp_path / "home", ray_cluster.environment
    python = f"launcher.options.python={sys.executable}"
    job = short_job(tmp_path, "far", max_steps=MAX_STEPS)
    submit = ("submit", job, "--launcher", "ray", "--address", ray_cluster.address,
              "--set", python, "--runs-dir", runs)  # fmt: skip

    def call(*command: str | Path) -> str:
        return succeed(*command, "--runs-dir", runs, home=home, variables=token)

    submitted = json.loads(succeed(*submit, "--json", home=home, variables=token))
    assert submitted == {"name": "far", "launcher": "ray", "job_id": "far"}
    second = orchestrator(*submit, home=home, variables=token)
    assert second.returncode == 1
    # By the cluster's list of jobs, or by the driver's lock once that runs.
    assert any(
        f"far is {how}" in second.stderr
        for how in ("queued already as", "running already as", "being run already")
    )

    layout = RunLayout(runs / "far")
    metrics = layout.stage("ddp").metrics
    deadline = time.monotonic() + 400
    while last_step(metrics) < 3:
        assert time.monotonic() < deadline, call("logs", "far")
        time.sleep(0.2)
    assert last_step(metrics) < MAX_STEPS // 3
    status = json.loads(call("status", "far", "--json"))
    assert status["state"] == "running"
    assert status["job"] == {"launcher": "ray", "job_id": "far", "state": "RUNNING"}
    # What the cluster says where the run directory was deleted under the job.
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token["RAY_AUTH_TOKEN_PATH"])
    with pytest.raises(LaunchError, match="/far is running already as job far of"):
        RayLauncher({"address": ray_cluster.address}).submit(layout.submitted_job, layout.root)

    ray_cluster.kill_newest()
    ray_cluster.join("third", 13)
    while len(starts(layout)) < 2:
        assert time.monotonic() < deadline, call("logs", "far")
        time.sleep(0.2)
    assert json.loads(call("status", "far", "--json"))["state"] == "running"
    call("cancel", "far")
    call("logs", "far", "-f")
    wait_until_over(call)
    assert json.loads(call("status", "far", "--json"))["state"] == "stopped"

    assert json.loads(succeed(*submit, "--json", home=home, variables=token))["job_id"] == "far.2"
    wait_until_over(call)
    assert json.loads(call("status", "far", "--json"))["state"] == "finished"
    first, after_loss, after_cancel = starts(layout)
    assert 0 == first < after_loss < after_cancel, "each must have gone on from a checkpoint"
    assert json.loads(call("verify", "far", "--json"))["ok"]


@pytest.mark.exhaustive
def test_a_sweep_is_one_job_that_is_cancelled_and_goes_on(ray_cluster: RayCluster, tmp_path: Path) -> None:
    runs, home, token = tmp_path / "runs", tmp_path / "home", ray_cluster.environment
    path = short_job(tmp_path, "swept", max_steps=MAX_STEPS)
    path.write_text(path.read_text() + "sweep: {grid: {seed: [1, 2]}}\n")
    submit = ("submit", path, "--launcher", "ray", "--address", ray_cluster.address,
              "--set", f"launcher.options.python={sys.executable}", "--runs-dir", runs)  # fmt: skip

    def call(*command: str | Path) -> str:
        return succeed(*command, "--runs-dir", runs, home=home, variables=token)

    def state(name: str) -> str:
        return str(json.loads(call("status", name, "--json"))["state"])

    assert json.loads(succeed(*submit, "--json", home=home, variables=token))["job_id"] == "swept"
    deadline = time.monotonic() + 240
    while not last_step(RunLayout(runs / "swept-0").stage("ddp").metrics):
        assert time.monotonic() < deadline, call("logs", "swept")
        time.sleep(0.2)
    assert state("swept") == "running"
    assert orchestrator(*submit, home=home, variables=token).returncode == 1
    call("cancel", "swept")
    wait_until_over(call, "swept")
    assert (state("swept"), state("swept-0")) == ("stopped", "stopped")
    assert not (runs / "swept-1").exists()

    succeed(*submit, home=home, variables=token)
    wait_until_over(call, "swept")
    assert [state(name) for name in ("swept", "swept-0", "swept-1")] == ["finished"] * 3
    assert "swept-1" in call("logs", "swept")
    again = starts(RunLayout(runs / "swept-0"))
    assert len(again) == 2
    assert again[1] > 0, "it must have gone on from a checkpoint"


def test_a_cancelled_job_that_waits_for_room_ends_once_it_has_it(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, home, token = tmp_path / "runs", tmp_path / "home", ray_cluster.environment
    names = ("wide", "lost")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token["RAY_AUTH_TOKEN_PATH"])
    service = JobsService(ray_cluster.address)
    address = f"--address=127.0.0.11:{ray_cluster.port}"
    ray_cluster.start("--node-ip-address=127.0.0.14", address, "--num-cpus=2", name="wide")
    deadline = time.monotonic() + 240
    while not any(node.resources["CPU"] == 2 for node in service.nodes()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    others = submit_sleep(ray_cluster, num_cpus=2)

    def call(*command: str | Path) -> str:
        return succeed(*command, "--runs-dir", runs, home=home, variables=token)

    def status(name: str) -> dict[str, Any]:
        return dict(json.loads(call("status", name, "--json")))

    def submit(name: str) -> tuple[str | Path, ...]:
        return ("submit", short_job(tmp_path, name), "--launcher", "ray", "--address", ray_cluster.address,
                "--set", "launcher.options.entrypoint_cpus=2", "--runs-dir", runs)  # fmt: skip

    for name in names:
        succeed(*submit(name), home=home, variables=token)
    assert "wide is cancelled; its place keeps it" in call("cancel", "wide")
    # As where Ray loses the request.
    lost = read_submission(RunLayout(runs / "lost"))
    assert lost is not None
    replace(lost, is_cancelled=True).write(RunLayout(runs / "lost"))
    for name in names:
        found = status(name)
        assert (found["state"], found["job"]["state"].partition(":")[0]) == ("queued", "PENDING, cancelled")
    refused = orchestrator(*submit("wide"), home=home, variables=token)
    assert (refused.returncode, "PENDING, cancelled:" in refused.stderr) == (1, True), refused.stderr

    service.stop(others)
    deadline = time.monotonic() + 240
    for name in names:
        while (found := status(name))["state"] != "cancelled":
            assert found["state"] in ("queued", "starting"), found
            assert time.monotonic() < deadline, call("logs", name)
            time.sleep(1)
        assert not RunLayout(runs / name).events.exists()
    # Read here: Ray looks for it in the folder of its head, which all nodes have elsewhere.
    output = Path(f"/tmp/orc-test-{os.getpid()}-wide/session_latest/logs/job-driver-lost.log").read_text()
    assert "lost was cancelled before its driver started: nothing is run" in output
    # What it was cancelled as is not what it is submitted as now.
    submitted = json.loads(succeed(*submit("wide"), "--json", home=home, variables=token))
    assert submitted["job_id"] == "wide.2"
    wait_until_over(call, "wide")
    assert status("wide")["state"] == "finished"


def test_a_job_that_can_never_have_room_is_refused_and_not_sent(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, token = tmp_path / "home", ray_cluster.environment
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token["RAY_AUTH_TOKEN_PATH"])
    service = JobsService(ray_cluster.address)
    deadline = time.monotonic() + 120
    while len(nodes := service.nodes()) < 2:
        assert time.monotonic() < deadline, nodes
        time.sleep(0.5)
    # For so long more nodes may join, and a job is left to its driver.
    time.sleep(max(0.0, max(node.started for node in nodes) + SETTLED_SECONDS + 1 - time.time()))
    cpus = [int(node.resources["CPU"]) for node in nodes]
    submit = ("submit", short_job(tmp_path, "large"), "--launcher", "ray", "--address", ray_cluster.address,
              "--runs-dir", tmp_path / "runs", "--set")  # fmt: skip
    many = ("resources.num_workers=64", "--set", "defaults.global_batch_size=256")
    driver = f"launcher.options.entrypoint_cpus={max(cpus)}"
    for sets, advice in (
        (many, f"room for {sum(cpus)}. Set resources.num_workers to {sum(cpus)} or less"),
        (("resources.cpus_per_worker=64",), "room for 0. Set resources.cpus_per_worker to 1, or"),
        ((*many, "--set", driver), f"room for {sum(cpus) - max(cpus)} beside the driver's {max(cpus)} CPU."),
        ((f"{driver}0",), f"no node has more than {max(cpus)} CPU: the driver would not start."),
    ):
        refused = orchestrator(*submit, *sets, home=home, variables=token)
        assert (refused.returncode, advice in refused.stderr) == (2, True), refused.stderr
    assert list((tmp_path / "runs").iterdir()) == []
    assert "large" not in {job["submission_id"] for job in service.jobs()}


def submit_sleep(cluster: RayCluster, *, num_cpus: int) -> str:
    """Have somebody else's job hold these CPUs of one node; its id, once it does."""
    service = JobsService(cluster.address)
    job = {"entrypoint": "sleep 600", "submission_id": "others", "entrypoint_num_cpus": num_cpus}
    request = urllib.request.Request(
        f"{cluster.address}/api/jobs/", json.dumps(job).encode(), service.headers(), method="POST"
    )
    urllib.request.urlopen(request, timeout=60).close()
    deadline = time.monotonic() + 120
    while (found := service.job("others")) is None or found["status"] != "RUNNING":
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return "others"


def starts(layout: RunLayout) -> list[int]:
    """The steps from which the workers began."""
    return [event["step"] for event in events(layout.root) if event["event"] == "training_started"]


def wait_until_over(call: Callable[..., str], name: str = "far") -> None:
    """Until the cluster says that the job is over."""
    deadline = time.monotonic() + 240
    while json.loads(call("status", name, "--json"))["job"]["state"] is not None:
        assert time.monotonic() < deadline, call("logs", name)
        time.sleep(1)
