"""A sweep on a real Ray ends its hopeless run early and no other, whatever happens to the sweep meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.steps import newest_step
from tests.e2e.commands import RUN_SECONDS, events, kill_when, orchestrator, succeed
from tests.e2e.test_kill_and_resume import write_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.exhaustive]

MAX_STEPS = 400
STATES = ["finished", "stopped early", "finished"]


def write_sweep(folder: Path) -> Path:
    """Three runs one after the other, of which the second does not learn; compared after 20 steps alone."""
    path = write_job(folder, "swept", ["ddp"])
    job: dict[str, Any] = yaml.safe_load(path.read_text())
    job["resources"] = {"num_workers": 1}
    job["datasets"]["corpus"]["validation_fraction"] = 0.1
    job["defaults"] |= {
        "limits": {"max_steps": MAX_STEPS},
        "evaluation": {"datasets": ["corpus"], "every_steps": 20},
        "checkpoint": {"every_steps": 20, "keep_last": 2},
    }
    job["stages"].append({"name": "export", "kind": "export", "from": "ddp"})
    job["sweep"] = {
        "runs": [{"seed": 1}, {"seed": 2, "stages.ddp.optimizer.lr": 1e-9}, {"seed": 3}],
        "at_once": 1,
        "early_stopping": {"metric": "eval/loss", "grace_steps": 20, "reduction_factor": 20},
    }
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def run_all(*command: str | Path, home: Path, cwd: Path) -> list[dict[str, Any]]:
    """What the sweep says of its runs."""
    done = orchestrator(*command, home=home, cwd=cwd, seconds=3 * RUN_SECONDS)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def num_starts(runs: Path, event: str) -> list[int]:
    """How often each run, or its training, was started."""
    return [sum(each["event"] == event for each in events(runs / f"swept-{number}")) for number in range(3)]


def lost(runs: Path) -> list[dict[str, Any]]:
    """Comparisons that the second run lost."""
    path = runs / "swept-1"
    found = events(path) if (path / "events.jsonl").exists() else []
    return [event for event in found if event["event"] == "compared" and event["stop"]]


@pytest.mark.timeout(1800)
def test_a_hopeless_run_is_stopped_early_and_stays_so(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    command = ("run", write_sweep(tmp_path), "--runs-dir", runs, "--json")
    found = run_all(*command, home=home, cwd=tmp_path)
    assert [run["state"] for run in found] == STATES
    assert "at step 20 of 'ddp', not among the best 1/20 of 2 runs" in found[1]["reason"]
    (comparison,) = lost(runs)
    assert comparison["step"] == 20
    stage = RunLayout(runs / "swept-1").stage("ddp")
    saved = newest_step(stage.checkpoints)
    assert saved is not None
    assert 20 <= saved < MAX_STEPS
    assert not stage.result.exists()
    assert not RunLayout(runs / "swept-1").stage("export").weights.exists()
    before = num_starts(runs, "training_started")
    assert run_all(*command, home=home, cwd=tmp_path) == found
    assert num_starts(runs, "training_started") == before == [1, 1, 1]
    status = json.loads(succeed("status", "swept-1", "--runs-dir", runs, "--json", home=home, cwd=tmp_path))
    assert (status["state"], status["reason"]) == ("stopped early", found[1]["reason"])
    # By itself it goes on where it stopped, and the sweep finds it finished.
    submitted = RunLayout(runs / "swept-1").submitted_job
    succeed("run", submitted, "--runs-dir", runs, home=home, cwd=tmp_path)
    starts = [each["step"] for each in events(runs / "swept-1") if each["event"] == "training_started"]
    assert starts == [0, saved]
    assert {run["state"] for run in run_all(*command, home=home, cwd=tmp_path)} == {"finished"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("moment", ["the first run trains", "the second has lost"])
def test_a_killed_sweep_ends_in_the_same_states(moment: str, tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    command = ("run", write_sweep(tmp_path), "--runs-dir", runs, "--json")

    def is_there() -> bool:
        if moment == "the second has lost":
            return bool(lost(runs))
        return (newest_step(RunLayout(runs / "swept-0").stage("ddp").checkpoints) or 0) >= 40

    kill_when(is_there, *command, home=home, cwd=tmp_path)
    assert [run["state"] for run in run_all(*command, home=home, cwd=tmp_path)] == STATES
    assert len(lost(runs)) == 1
    expected = [2, 1, 1] if moment == "the first run trains" else [1, 1, 1]
    assert num_starts(runs, "training_started") == expected
