"""What commands say of a sweep that stops runs early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers import sweep
from launchers.sweep_results import Outcome
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, write_job

TEXT = (
    VALID.replace("{max_steps: 10}", "{max_steps: 40}")
    + """\
    evaluation: {datasets: [rfc], every_steps: 2}
sweep:
  grid: {seed: [1, 2]}
  early_stopping: {metric: eval/loss, grace_steps: 4, reduction_factor: 3}
"""
)
RULE = {"metric": "eval/loss", "mode": "min", "stage": "pretrain", "grace_steps": 4, "reduction_factor": 3}


def test_the_plan_says_when_runs_are_compared(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT)
    command = ("plan", path, "--no-model", "--runs-dir", tmp_path)
    assert console(*command, "--json").json()["early_stopping"] == {**RULE, "compared_steps": [4, 12, 36]}
    assert console(*command).output.splitlines()[-1] == (
        "Early stopping: at step 4, 12, 36 of 'pretrain' a run ends unless its eval/loss is among the best"
        " 1/3 of the runs that were there before it"
    )
    epochs = ("--set", "stages.pretrain.limits={max_epochs: 2}")
    assert console(*command, *epochs, "--json").json()["early_stopping"]["compared_steps"] is None
    assert "at step 4, 12, ... of 'pretrain'" in console(*command, *epochs).output


def test_the_plan_knows_which_runs_were_stopped(console: Console, tmp_path: Path) -> None:
    command = ("plan", write_job(tmp_path, TEXT), "--no-model", "--json", "--runs-dir", tmp_path)
    events = RunLayout(tmp_path / "tiny-1").events
    append_event(events, "compared", rule=RULE, step=4, value=2.5, among=2, stop=True)

    def states(*options: str) -> list[str]:
        return [run["state"] for run in console(*command, *options).json()["sweep"].values()]

    assert states() == ["to do", "stopped early"]
    # Another rule decides anew, and without one it goes on.
    assert states("--set", "sweep.early_stopping.grace_steps=6") == ["to do", "to do"]
    assert states("--set", "sweep.early_stopping=null") == ["to do", "to do"]


def test_runs_that_are_compared_are_not_jobs_of_their_own(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT)
    command = ("submit", path, "--runs-dir", tmp_path / "runs", "--dry-run", "--launcher")
    ended = console(*command, "slurm")
    assert (ended.code, ended.output) == (2, "")
    assert ended.errors.startswith("sweep.early_stopping compares runs that one command runs")
    assert "sbatch --nodes=2 slurm/ray.sbatch JOB" in ended.errors
    # One job that runs them all.
    assert "--submission-id=tiny " in console(*command, "ray").output
    without = ("--launcher", "slurm", "--set", "sweep.early_stopping=null", "--dry-run", "--json")
    assert "--array=0-1" in json.dumps(console("submit", path, *without, "--runs-dir", tmp_path).json())


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
def test_what_is_the_same_for_all_runs_of_a_submission_is_not_swept(
    launcher: str, console: Console, tmp_path: Path
) -> None:
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", launcher, "--dry-run")
    place = "{launcher.options.python: [a, b], seed: [1, 2]}"
    ended = console(*submit, "--set", f"sweep.grid={place}")
    assert (ended.code, ended.output) == (2, "")
    assert ended.errors.startswith(
        "the sweep sets launcher.options.python, and all of its runs are submitted"
    )
    # The one job of a Ray cluster gives each run the workers that it asks for.
    sized = console(*submit, "--set", "sweep.grid={resources.num_workers: [2]}")
    assert sized.code == (2 if launcher == "slurm" else 0)
    assert ("'tiny-0' of the sweep asks for other resources" in sized.errors) == (launcher == "slurm")


def test_starting_over_a_stage_that_no_run_has_is_refused_once(console: Console, tmp_path: Path) -> None:
    command = ("run", write_job(tmp_path, TEXT), "--runs-dir", tmp_path / "runs")
    message = "job 'tiny' has no stage 'pretrian'. Did you mean 'pretrain'? Its stages: pretrain.\n"
    assert console(*command, "--redo", "pretrian") == (2, "", message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("states", "code"), [(("stopped", "waiting"), 75), (("failed", "stopped"), 1), (("finished",) * 2, 0)]
)
def test_a_sweep_that_was_stopped_says_how_to_go_on(
    states: tuple[str, str], code: int, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {f"tiny-{index}": Outcome(state) for index, state in enumerate(states)}
    monkeypatch.setattr(sweep, "stoppable", lambda *arguments: ends)
    path = write_job(tmp_path, TEXT)
    ends_at = ("--set", "stages.pretrain.limits={max_steps: 20}", "--runs-dir", tmp_path / "my runs")
    ended = console("run", path, *ends_at, "--fresh")
    assert (ended.code, "tiny-1" in ended.output) == (code, True)
    command = (
        f"orchestrator run {path} --set 'stages.pretrain.limits={{max_steps: 20}}'"
        f" --runs-dir '{tmp_path}/my runs'"
    )
    told = f"Stopped, with the work saved. To go on:\n  {command}\n"
    assert ended.errors == ("" if code == 0 else told)


def test_a_sweep_of_one_run(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, VALID + "sweep: {grid: {seed: [1]}}\n")
    assert console("validate", path).output == f"{path}: valid: 1 stage (pretrain), a sweep of 1 run\n"
    assert "a sweep of 1 run, and this command is for one run" in console("rehearse", path).errors
