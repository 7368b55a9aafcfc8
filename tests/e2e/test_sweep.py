"""The runs of a sweep on one Ray: all of them, those that fail named, the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from tests.e2e.commands import events, orchestrator
from tests.e2e.test_kill_and_resume import write_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
sweep:
  runs:
    - {seed: 1}
    - {seed: 2, stages.ddp.objective: {name: "missing:Objective"}}
    - {seed: 3}
resources: {num_workers: 1}
"""


@pytest.mark.timeout(900)
def test_runs_share_a_ray_and_one_that_fails_ends_no_other(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    path = write_job(tmp_path, "swept", ["ddp"])
    path.write_text(path.read_text().replace("resources:\n  num_workers: 2\n", "") + SWEEP)
    command = ("run", path, "--runs-dir", runs, "--json")
    done = orchestrator(*command, home=home, cwd=tmp_path, seconds=400)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["runs"]
    assert [(run["name"], run["state"]) for run in found] == [
        ("swept-0", "finished"),
        ("swept-1", "failed"),
        ("swept-2", "finished"),
    ]
    assert [run["values"]["seed"] for run in found] == [1, 2, 3]
    assert "ddp train/loss" in found[0]["metrics"]
    assert "[swept-1]   " in done.stderr
    assert "missing" in done.stderr
    begun = {name: events(runs / name)[0]["time"] for name in ("swept-0", "swept-2")}
    assert begun["swept-0"] < begun["swept-2"]
    mended = orchestrator(*command, "--set", "sweep.runs[1]={seed: 2}", home=home, cwd=tmp_path, seconds=400)
    assert mended.returncode == 0, mended.stderr
    assert {run["state"] for run in json.loads(mended.stdout)["runs"]} == {"finished"}
    for number in range(3):
        starts = [event for event in events(runs / f"swept-{number}") if event["event"] == "training_started"]
        assert len(starts) == 1, "what was finished is not run again"
    assert RunLayout(runs / "swept-1").stage("ddp").result.exists()
