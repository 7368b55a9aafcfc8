"""The head of a Ray cluster dies: the run ends with a message, the next start goes on from a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different, end_of
from tests.e2e.commands import last_step, started, succeed
from tests.e2e.ray_cluster import ray_cluster
from tests.e2e.test_elastic import STAGE, slow_job, wait_until

LIMIT = ("--set", f"stages.{STAGE}.limits.max_steps=40")
# Ray's client gives up on a head that is gone after a minute (RAY_gcs_rpc_server_reconnect_timeout_s).
NOTICE_SECONDS = 150


def workers_of(run: RunLayout) -> list[psutil.Process]:
    """Processes that write into a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(run.root) in file.path for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_a_cluster_whose_head_is_lost_loses_at_most_an_interval(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    run = RunLayout(runs / "headless")
    path = slow_job(tmp_path, "headless", 2)
    options = (*LIMIT, "--runs-dir", runs)
    with ray_cluster() as cluster:
        cluster.start("head")
        cluster.start("second")
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        with started("run", path, *options, home=home, cwd=tmp_path, variables=variables) as driver:
            wait_until(lambda: last_step(run.stage(STAGE).metrics) >= 12)
            cluster.kill("head")
            began = time.monotonic()
            output, errors = driver.communicate(timeout=NOTICE_SECONDS)
        assert driver.returncode == 1, errors + output
        assert "Traceback" not in errors
        assert "run the same command again" in errors.lower()
        wait_until(lambda: not workers_of(run), seconds=NOTICE_SECONDS - (time.monotonic() - began))
    with ray_cluster() as cluster:
        cluster.start("head", num_cpus=2)
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        succeed("run", path, *options, home=home, cwd=tmp_path, variables=variables)
    starts = [event["step"] for event in read_json_lines(run.events) if event["event"] == "training_started"]
    assert starts[0] == 0
    assert starts[1] >= 10
    assert verify_run(run.root, None)["ok"]
    fast = ("--set", f"stages.{STAGE}.objective.options.seconds=0.0")
    reference = slow_job(tmp_path, "reference", 2)
    succeed("run", reference, *LIMIT, *fast, "--runs-dir", runs, home=home, cwd=tmp_path)
    both = (RunLayout(runs / name).stage(STAGE) for name in ("headless", "reference"))
    assert different(*map(end_of, both)) == []
