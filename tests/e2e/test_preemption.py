"""Ray says that it takes a node away: the workers save, and go on elsewhere, before it is gone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different, end_of
from tests.e2e.commands import last_step, started, succeed
from tests.e2e.ray_cluster import ray_cluster
from tests.e2e.test_elastic import STAGE, slow_job, wait_until

# Of the 200 of the elastic test, which waits longer.
MAX_STEPS = 60
LIMIT = ("--set", f"stages.{STAGE}.limits.max_steps={MAX_STEPS}")


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_notice_loses_no_step(everywhere: bool, tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    run = RunLayout(runs / "moved")
    path = slow_job(tmp_path, "moved", 2)
    options = (*LIMIT, "--set", "defaults.checkpoint.every_steps=1000", "--runs-dir", runs)
    with ray_cluster() as cluster:
        cluster.start("head")
        cluster.start("second")
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        with started("run", path, *options, home=home, cwd=tmp_path, variables=variables) as driver:
            wait_until(lambda: last_step(run.stage(STAGE).metrics) >= 5)
            if not everywhere:
                cluster.start("third")
            cluster.drain(*(("second", "head") if everywhere else ("second",)), seconds=60)
            output, errors = driver.communicate(timeout=300)
        assert driver.returncode == (75 if everywhere else 0), errors + output
    if everywhere:
        succeed("run", path, *options, home=home, cwd=tmp_path)
    else:
        assert "nodes are taken away: saved, and goes on elsewhere" in output
    events = [event for event in read_json_lines(run.events) if event.get("stage") == STAGE]
    names = [event["event"] for event in events]
    assert ("stage_stopped" if everywhere else "stage_preempted") in names
    assert "rank_failed" not in names
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    starts = [event["step"] for event in events if event["event"] == "training_started"]
    assert starts == [0, saved[0]]
    logged = [line["step"] for line in read_json_lines(run.stage(STAGE).metrics)]
    assert logged == list(range(1, MAX_STEPS + 1))
    assert verify_run(run.root, None)["ok"]
    fast = ("--set", f"stages.{STAGE}.objective.options.seconds=0.0")
    reference = slow_job(tmp_path, "reference", 2)
    succeed("run", reference, *LIMIT, *fast, "--runs-dir", runs, home=home, cwd=tmp_path)
    both = (RunLayout(runs / name).stage(STAGE) for name in ("moved", "reference"))
    assert different(*map(end_of, both)) == []


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_worker_that_dies_where_all_nodes_go_is_not_started_anew(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    run = RunLayout(runs / "moved")
    path = slow_job(tmp_path, "moved", 2)
    options = ("--set", "defaults.checkpoint.every_steps=2", "--runs-dir", runs)
    with ray_cluster() as cluster:
        cluster.start("head")
        cluster.start("second")
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        # Workers do not hear of it before one of them dies.
        variables["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "60"
        with started("run", path, *options, home=home, cwd=tmp_path, variables=variables) as driver:
            wait_until(lambda: last_step(run.stage(STAGE).metrics) >= 5)
            cluster.drain("second", "head", seconds=300)
            cluster.worker("second").kill()
            began = time.monotonic()
            output, errors = driver.communicate(timeout=300)
            seconds = time.monotonic() - began
        assert driver.returncode == 75, errors + output
    # Ray by itself waits for a minute, again and again, for room that never comes.
    assert seconds < 50
    events = [event["event"] for event in read_json_lines(run.events)]
    assert (events.count("stage_started"), events[-1]) == (1, "run_stopped")
