"""A node of a real cluster that is unlike the driver's is named before the first step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from tests.e2e.commands import orchestrator
from tests.e2e.ray_cluster import ray_cluster
from tests.e2e.test_kill_and_resume import write_job

# Arguments: a folder that the command does not see, and the command.
BLIND = """
set -e
hostname second
mount -t tmpfs none "$1"
shift
exec "$@"
"""
NAMESPACE = ("unshare", "--mount", "--uts")


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="needs the right to make namespaces",
)
def test_a_node_without_the_run_directory_or_with_other_versions_is_named(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    runs.mkdir()
    path = write_job(tmp_path, "apart", ["ddp"])
    command = ("run", path, "--runs-dir", runs)
    other = tmp_path / "other" / "datasets-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 0.0.1\n")
    with ray_cluster() as cluster:
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        cluster.start("head")
        cluster.start("second", wrapper=(*NAMESPACE, "sh", "-c", BLIND, "blind", str(runs)))
        done = orchestrator(*command, home=home, variables=variables)
        assert done.returncode == 1, done.stderr
        assert f"node 'second' does not see the run directory {runs / 'apart'}: put it where" in done.stderr
        cluster.kill("second")
        cluster.start("third", variables={"PYTHONPATH": str(other.parent)})
        done = orchestrator(*command, home=home, variables=variables)
        assert done.returncode == 1, done.stderr
        assert "has datasets 0.0.1 where the driver has " in done.stderr
        assert "Traceback" not in done.stderr
        cluster.kill("third")
        cluster.start("fourth")
        done = orchestrator(*command, home=home, variables=variables)
        assert done.returncode == 0, done.stderr
    assert RunLayout(runs / "apart").stage("ddp").result.exists()


LOOK = """
import os

from launchers import ray_session
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources


def look(driver_cpus="", **asked):
    os.environ["ORCHESTRATOR_DRIVER_CPUS"] = driver_cpus
    wanted = Resources.model_validate(asked)
    try:
        ray_session.check_room(wanted, lambda message: print(message, flush=True), lambda: None)
        print("there is room", flush=True)
    except PlanError as error:
        print(error, flush=True)


with ray_session.ray_session():
    look(num_workers=3)
    ray_session.SETTLED_SECONDS = 0
    look(num_workers=4)
    look("1", num_workers=3)
    look("1", cpus_per_worker=2)
    print(ray_session.count_workers({"CPU": 1}), flush=True)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_whose_nodes_are_still_joining_is_waited_for() -> None:
    with ray_cluster() as cluster:
        cluster.start("head", num_cpus=2)
        variables = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address}
        look = subprocess.Popen(
            [sys.executable, "-c", LOOK], env=variables, stdout=subprocess.PIPE, text=True
        )
        with look:
            assert look.stdout is not None
            waits = look.stdout.readline()
            assert "waits up to 60 s for more Ray nodes to join: resources: 3 workers x 1 CPU" in waits
            cluster.start("second", num_cpus=1)
            assert look.stdout.readline() == "there is room\n"
            # One that has been up for long is as large as it will be.
            assert "found 2 nodes with 3 CPU and 0 GPU, room for 3." in look.stdout.readline()
            # A driver that was given one core by its place would wait for itself.
            assert "room for 2 beside the driver's 1 CPU." in look.stdout.readline()
            # Elsewhere it would leave the head to the worker, and it is there.
            assert "room for 0 beside the driver's 1 CPU." in look.stdout.readline()
            assert look.stdout.readline() == "2\n"
        assert look.returncode == 0
