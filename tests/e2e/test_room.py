"""A cluster that others fill: a run waits as long as it takes, and stops at once when it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from launchers.runs import run_status
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_events
from tests.e2e.commands import orchestrator, started
from tests.e2e.ray_cluster import ray_cluster
from tests.e2e.test_kill_and_resume import write_job

# Takes CPUs until its input ends.
OTHERS = """
import sys
import ray

ray.init(log_to_driver=False)
ray.get(ray.util.placement_group([{"CPU": int(sys.argv[1])}]).ready())
print("taken", flush=True)
sys.stdin.read()
"""
# Ray Train looks anew so often, and gave up at the fourth time.
LOOK_SECONDS = 2


def events_of(run: RunLayout) -> list[str]:
    return [str(event["event"]) for event in read_events(run.events)]


def wait_for_starting(process: subprocess.Popen[str], run: RunLayout, times: int) -> None:
    """Wait until the driver has begun to start workers for the ``times``-th time."""
    while events_of(run).count("stage_starting") < times:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


@contextmanager
def others_on(num_cpus: int, variables: dict[str, str]) -> Iterator[IO[str]]:
    """Somebody who uses CPUs of the cluster until the end, or until what is given is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHERS, str(num_cpus)],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as others:
        assert others.stdin is not None and others.stdout is not None
        assert others.stdout.readline() == "taken\n"
        yield others.stdin


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_waits_for_room_until_it_is_asked_to_stop_or_has_it(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "runs" / "late")
    command = ("run", write_job(tmp_path, "late", ["ddp"]), "--runs-dir", run.root.parent)
    with ray_cluster() as cluster:
        cluster.start("head", num_cpus=2)
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        waiting = {**variables, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
        looking = {**variables, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(LOOK_SECONDS)}
        with others_on(2, variables) as taken:
            # It is the wait itself that ends, and not Ray's time for it.
            with started(*command, home=tmp_path / "home", variables=waiting) as process:
                wait_for_starting(process, run, 1)
                while run_status(run.root)["stages"][0]["state"] != "waiting for room":
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                output = process.communicate(timeout=120)
                assert process.returncode == 75, output
                assert "[ddp] waits for room for its workers" in output[0]
            assert "stage_started" not in events_of(run)
            assert events_of(run)[-1] == "run_stopped"
            with started(*command, home=tmp_path / "home", variables=looking) as process:
                wait_for_starting(process, run, 2)
                time.sleep(8 * LOOK_SECONDS)
                assert process.poll() is None, process.communicate()
                assert "stage_started" not in events_of(run)
                taken.close()
                output = process.communicate(timeout=240)
                assert process.returncode == 0, output
    assert run.stage("ddp").result.exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_and_a_sweep_that_wait_for_nodes_stop_when_they_are_asked_to(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    job = write_job(tmp_path, "early", ["ddp"])
    swept = tmp_path / "swept.yaml"
    swept.write_text(job.read_text() + "sweep: {grid: {seed: [1, 2]}}\n")
    wide = ("--set", "resources.num_workers=4", "--set", "defaults.micro_batch_size=2")
    with ray_cluster() as cluster:
        variables = dict(cluster.environment)
        for path in (job, swept):
            # A cluster is waited for in the first minute of its newest node.
            cluster.start(path.stem, num_cpus=1)
            variables["RAY_ADDRESS"] = cluster.address
            command = ("run", path, "--runs-dir", runs, *wide, "--set", f"name={path.stem}")
            with started(*command, home=tmp_path / "home", variables=variables) as process:
                assert process.stdout is not None and process.stderr is not None
                said = process.stderr if path == swept else process.stdout
                assert any("more Ray nodes to join" in line for line in said)
                process.send_signal(signal.SIGINT)
                began = time.monotonic()
                output = process.communicate(timeout=120)
                assert process.returncode == 75, output
                # It had waited for the rest of a minute.
                assert time.monotonic() - began < 30
    assert run_status(runs / "early")["state"] == "stopped"
    assert not (runs / "swept-0").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_range_of_workers_starts_with_those_for_which_others_leave_room(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "runs" / "fewer")
    path = write_job(tmp_path, "fewer", ["ddp"])
    command = ("run", path, "--runs-dir", run.root.parent, "--set", "resources.num_workers={min: 1, max: 2}")
    with ray_cluster() as cluster:
        cluster.start("head", num_cpus=2)
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        looking = {**variables, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(LOOK_SECONDS)}
        with others_on(1, variables):
            done = orchestrator(*command, home=tmp_path / "home", variables=looking)
    assert done.returncode == 0, done.stderr
    assert not run.stage("ddp").log(1).exists()
