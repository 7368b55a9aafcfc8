"""What a sweep prints of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launchers.sweep_results import Outcome, print_results, results
from orchestrator.spec.load import dump_resolved, load_job
from tests.unit.launchers.test_asha import TEXT, Runs

FINISHED = Outcome("finished")
LATER = "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc], split: validation}\n"


def finish(runs: Runs, run: int, stage: str, metrics: dict[str, float]) -> None:
    """Let a stage of a run be finished."""
    layout = runs.layout(run).stage(stage)
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.result.write_text(json.dumps({"step": 80, "metrics": metrics}))


def reached(folder: Path, runs: Runs, overrides: tuple[str, ...] = ()) -> list[dict[str, float | None]]:
    """The results of all runs; those that have begun have the job that their drivers wrote."""
    job = load_job(folder / "job.yaml", env={}, overrides=overrides)
    for run in runs.jobs:
        root = folder / run.name
        if root.exists():
            (root / "job.yaml").write_text(dump_resolved(run))
    return results(job, runs.jobs, folder)


def test_the_metric_that_decides_is_shown_of_every_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path, text=TEXT + LATER, num_runs=3)
    finish(runs, 0, "pretrain", {"train/loss": 1.5, "eval/loss": 1.25})
    finish(runs, 0, "test", {"eval/loss": 1.75})
    # Stopped early, and never started.
    runs.log(1, s10=5.0)
    assert reached(tmp_path, runs) == [
        {"pretrain eval/loss": 1.25, "test eval/loss": 1.75},
        {"pretrain eval/loss": 5.0},
        {"pretrain eval/loss": None},
    ]


def test_without_early_stopping_what_is_not_finished_shows_what_it_has(tmp_path: Path) -> None:
    runs = Runs(tmp_path, num_runs=2)
    finish(runs, 0, "pretrain", {"train/loss": 1.5, "eval/loss": 1.25})
    runs.log(1, s10=5.0)
    found = reached(tmp_path, runs, ("sweep.early_stopping=null",))
    assert found == [{"pretrain eval/loss": 1.25}, {"pretrain eval/loss": 5.0}]


def test_results_that_are_not_finite_are_left_empty(capsys: pytest.CaptureFixture[str]) -> None:
    metrics: Any = {"train/loss": None, "eval/accuracy": 0.0}
    print_results([{"seed": 1}], {"tiny-0": FINISHED}, [metrics])
    *_, line = capsys.readouterr().out.rstrip().splitlines()
    assert line.split() == ["tiny-0", "finished", "1", "0"]
