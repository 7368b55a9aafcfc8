"""A run keeps the commits it began with; the hub, which cannot be here, is a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchers import pins
from launchers.pins import look_up_pins, pinned, read_pins
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.training import Init

FIRST, SECOND = "a" * 40, "b" * 40


class FakeHub:
    """Where every branch stands at one commit."""

    def __init__(self) -> None:
        self.commit = FIRST
        self.asked: list[tuple[str, str, str | None]] = []

    def find_commit(self, repo: str, kind: str, revision: str | None) -> str:
        self.asked.append((repo, kind, revision))
        if repo == "gone/away":
            raise OSError("404: no such\nentry")
        return self.commit


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(pins, "find_commit", fake.find_commit)
    return fake


def make_job(**reviews: Any) -> Job:
    stage = {
        "name": "tune",
        "objective": {"name": "causal_lm"},
        "init": {"pretrained": "some/model", "revision": "v2"},
        "data": {"mixture": {"reviews": 1.0}, "seq_len": 16},
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 10},
    }
    datasets = {
        "reviews": {"source": "hub", "path": "some/reviews", **reviews},
        "fixed": {"source": "hub", "path": "some/other", "revision": SECOND},
        "local": {"source": "text", "files": "/data/a.txt"},
    }
    tokenizer = {"from": "/some/folder"}
    return Job.model_validate({"name": "j", "tokenizer": tokenizer, "datasets": datasets, "stages": [stage]})


def revisions(job: Job) -> tuple[str | None, str | None, str | None]:
    stage = job.stages[0]
    assert isinstance(stage, TrainStage)
    assert stage.init is not None
    datasets: Any = job.datasets
    return datasets["reviews"].revision, datasets["fixed"].revision, stage.init.revision


def test_every_branch_is_pinned_once_and_kept_when_it_moves(tmp_path: Path, hub: FakeHub) -> None:
    path = tmp_path / "pins.json"
    job, notes = look_up_pins(make_job(), path)
    assert revisions(job) == (FIRST, SECOND, FIRST)
    assert hub.asked == [("some/reviews", "dataset", None), ("some/model", "model", "v2")]
    hub.commit = "c" * 40
    again, _ = look_up_pins(make_job(), path)
    assert revisions(again) == (FIRST, SECOND, FIRST)
    assert len(hub.asked) == 2
    assert notes == []
    assert revisions(pinned(make_job(), read_pins(path))) == (FIRST, SECOND, FIRST)


def test_another_branch_or_entry_is_looked_up_anew(tmp_path: Path, hub: FakeHub) -> None:
    path = tmp_path / "pins.json"
    look_up_pins(make_job(), path)
    hub.commit = SECOND
    job, _ = look_up_pins(make_job(revision="next"), path)
    assert revisions(job) == (SECOND, SECOND, FIRST)
    job, _ = look_up_pins(make_job(path="other/reviews"), path)
    assert hub.asked[-1] == ("other/reviews", "dataset", None)


def test_what_cannot_be_pinned_is_said_and_left(tmp_path: Path, hub: FakeHub) -> None:
    job, notes = look_up_pins(make_job(path="gone/away"), tmp_path / "pins.json")
    assert revisions(job) == (None, SECOND, FIRST)
    problem = "OSError: 404: no such entry"
    assert notes == [f"datasets.reviews: the commit of 'gone/away' was not pinned: {problem}"]


def test_a_job_without_hub_entries_asks_nobody_and_writes_nothing(tmp_path: Path, hub: FakeHub) -> None:
    job = make_job(revision=FIRST)
    assert isinstance(job.stages[0], TrainStage)
    stage = job.stages[0].model_copy(update={"init": Init(pretrained="/some/model")})
    job = job.model_copy(update={"stages": (stage,)})
    assert look_up_pins(job, tmp_path / "pins.json") == (job, [])
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_pins_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "pins.json").write_text(content)
    assert read_pins(tmp_path / "pins.json") == {}
