"""What becomes of submitted jobs: status, logs and cancel ask their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.base import PlaceState
from launchers.submitted import Submission, join_places
from orchestrator.checkpoint.layout import RunLayout
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.launchers.place import NAME, Place


@pytest.fixture(autouse=True)
def place() -> type[Place]:
    Place.reset()
    return Place


def submitted(runs: Path, name: str, phase: str | None = "queued", **options: object) -> FakeRun:
    """A run that was submitted; ``phase``: that of its job, unless that is over."""
    run = FakeRun(runs, name)
    Submission.of_now(NAME, name, options).write(run.layout)
    if phase is not None:
        Place.jobs[name] = PlaceState("queued" if phase == "queued" else "running", phase.upper())
    return run


def test_a_place_that_does_not_answer_is_asked_once(console: Console, tmp_path: Path) -> None:
    Place.is_down = True
    for name in ("first", "second", "third"):
        submitted(tmp_path, name)
    submitted(tmp_path, "elsewhere", region="x")
    listed = console("status", "--runs-dir", tmp_path)
    assert (listed.code, len(listed.output.splitlines())) == (0, 6)
    assert listed.errors.splitlines() == [
        "orchestrator: warning: elsewhere: the place does not answer",
        "orchestrator: warning: first and 2 more: the place does not answer",
    ]
    assert Place.times_asked == 2


@pytest.mark.parametrize(
    ("launcher", "options", "expected"),
    [
        ("slurm", [{"nodes": 1}, {"nodes": 2, "partition": "x"}], 1),
        ("ray", [{"address": "http://a:1"}, {"address": "http://a:1", "python": "x"}], 1),
        ("ray", [{"address": "http://a:1"}, {"address": "http://b:1"}], 2),
        ("kuberay", [{"image": "a"}, {"image": "b", "namespace": None}], 1),
        ("kuberay", [{"image": "a", "namespace": "x"}, {"image": "a", "namespace": "y"}], 2),
        ("my.own:Place", [{"a": 1}, {"a": 2}], 2),
    ],
)
def test_runs_share_a_queue_whatever_their_other_options(
    launcher: str, options: list[dict[str, object]], expected: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Submission, "place", lambda submission: Place({}))
    for number, given in enumerate(options):
        Submission.of_now(launcher, str(number), given).write(RunLayout(tmp_path / str(number)))
    join_places({tmp_path / str(number): {"name": str(number)} for number in range(len(options))})
    assert Place.times_asked == expected


def test_a_sweep_and_its_runs_are_looked_up_together(console: Console, tmp_path: Path) -> None:
    submitted(tmp_path, "tiny")
    for number in range(3):
        run = submitted(tmp_path, f"tiny-{number}")
        run.layout.submitted_job.write_text(run.layout.job.read_text())
    assert console("status", "tiny", "--runs-dir", tmp_path).code == 0
    assert Place.times_asked == 1
