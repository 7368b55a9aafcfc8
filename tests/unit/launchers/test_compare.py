"""compare: keys that differ, all final metrics, for any number of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.submission_record import Submission
from orchestrator.checkpoint.layout import RunLayout
from tests.unit.launchers.commands import Console, FakeRun


def make(runs: Path, name: str) -> FakeRun:
    """A run on data that lies in the same place for all."""
    run = FakeRun(runs, name)
    run.layout.job.write_text(run.layout.job.read_text().replace(str(run.layout.root), "/data"))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs: the second learns faster, the third has not finished anything."""
    made = {name: make(tmp_path, name) for name in ("first", "second", "third")}
    made["first"].finish("pretrain", **{"eval/loss": 2.5, "eval/perplexity": 12.18249})
    made["second"].finish("pretrain", **{"eval/loss": 2.25})
    path = made["second"].layout.job
    before = path.read_text()
    path.write_text(before.replace("lr: 0.001", "lr: 0.01"))
    assert path.read_text() != before
    return tmp_path


def test_keys_and_metrics_that_differ_are_shown_for_all_runs(console: Console, runs: Path) -> None:
    ended = console("compare", "first", "second", "third", "--runs-dir", runs, "--json")
    assert (ended.code, ended.errors) == (0, "")
    assert ended.json() == {
        "runs": ["first", "second", "third"],
        "keys": [{"key": "stages.pretrain.optimizer.lr", "values": [0.001, 0.01, 0.001]}],
        "metrics": [
            {"stage": "pretrain", "metric": "eval/loss", "values": [2.5, 2.25, None]},
            {"stage": "pretrain", "metric": "eval/perplexity", "values": [12.18249, None, None]},
        ],
    }
    assert console("compare", "first", "second", "third", "--runs-dir", runs).output.splitlines() == [
        "keys of the job files",
        "  key                           first  second  third",
        "  stages.pretrain.optimizer.lr  0.001  0.01    0.001",
        "final metrics",
        "  stage     metric           first    second  third",
        "  pretrain  eval/loss        2.5      2.25    -",
        "  pretrain  eval/perplexity  12.1825  -       -",
    ]


def test_runs_that_do_not_differ_say_so(console: Console, runs: Path) -> None:
    ended = console("compare", "first", runs / "third", "--runs-dir", runs)
    assert ended.output.startswith("their job files differ in nothing but the name\n")
    make(runs, "fourth")
    assert console("compare", "third", "fourth", "--runs-dir", runs).output.splitlines()[-1] == (
        "none of their stages is finished"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [(["first"], "found 1 run, expected two or more"), (["first", "secnod"], "Did you mean 'second'")],
)
def test_what_cannot_be_compared_is_refused(
    names: list[str], message: str, console: Console, runs: Path
) -> None:
    ended = console("compare", *names, "--runs-dir", runs)
    assert ended.code == 2
    assert message in ended.errors


def test_a_submitted_run_that_has_not_begun_is_told_as_that(console: Console, runs: Path) -> None:
    layout = RunLayout(runs / "fourth")
    Submission.of_now("slurm", "17", {}).write(layout)
    ended = console("compare", "first", "fourth", "--runs-dir", runs)
    assert ended.code == 2
    assert ended.errors.startswith(f"{runs}/fourth has not begun: it was submitted, and until its driver")
    assert f"'orchestrator status {runs}/fourth'" in ended.errors


@pytest.mark.parametrize("is_submitted", [False, True], ids=["typed", "submitted as one job"])
def test_a_sweep_stands_for_its_runs(is_submitted: bool, console: Console, tmp_path: Path) -> None:
    for index in range(2):
        run = make(tmp_path, f"sw-{index}")
        run.layout.submitted_job.write_text(run.layout.job.read_text())
    if is_submitted:
        layout = RunLayout(tmp_path / "sw")
        layout.root.mkdir()
        layout.submitted_job.write_text("name: sw\nsweep: {runs: [{seed: 1}, {seed: 2}]}\n")
        layout.events.write_text("")
    # One that waits for its turn.
    waits = RunLayout(tmp_path / "sw-2")
    waits.root.mkdir()
    waits.submitted_job.write_text("name: sw-2\n")
    make(tmp_path, "other")
    ended = console("compare", "sw", "other", "--runs-dir", tmp_path, "--json")
    assert (ended.code, ended.json()["runs"]) == (0, ["sw-0", "sw-1", "other"])


def test_a_run_with_a_sweep_of_its_name_beside_it_is_itself(console: Console, tmp_path: Path) -> None:
    for name in ("sw", "sw-0", "other"):
        run = make(tmp_path, name)
        run.layout.submitted_job.write_text(run.layout.job.read_text())
    assert console("compare", "sw", "other", "--runs-dir", tmp_path, "--json").json()["runs"] == [
        "sw",
        "other",
    ]
