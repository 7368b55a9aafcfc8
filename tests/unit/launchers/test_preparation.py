"""A stage that began is not given other data, and the file that changed is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from launchers import preparation
from launchers.preparation import Preparation
from launchers.progress import ProgressDisplay
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.tasks import IN_PROCESS
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job
from orchestrator.tracking.events import read_json_lines
from tests.unit.data.corpus import write_jsonl
from tests.unit.train.test_inputs import make_job


def prepare(job: Job, layout: RunLayout) -> str:
    return Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS).prepare(
        job.stages[0]
    )


def test_the_file_that_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, layout = make_job(tmp_path), RunLayout(tmp_path / "runs" / "job")
    layout.stage("classify").root.mkdir(parents=True)
    fingerprint = prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    assert prepare(job, layout) == fingerprint
    path = tmp_path / "rows.jsonl"
    content = path.read_text()
    path.write_text(content.replace("a", "o", 1))
    with pytest.raises(PlanError) as raised:
        prepare(job, layout)
    assert "'classify'" in str(raised.value)
    assert f"changed since the stage began: {path} has other content. Restore it" in str(raised.value)
    path.write_text(content)
    assert prepare(job, layout) == fingerprint
    for module in ("prepare", "prepared"):
        monkeypatch.setattr(f"orchestrator.data.{module}.FORMAT_VERSION", 999)
    with pytest.raises(PlanError, match="its files are the same, and this version of orchestrator prepares"):
        prepare(job, layout)


def test_files_that_came_and_went_are_named(tmp_path: Path) -> None:
    job, layout = make_job(tmp_path), RunLayout(tmp_path / "runs" / "job")
    (tmp_path / "rows.jsonl").rename(tmp_path / "first.jsonl")
    pattern = {"source": "json", "files": str(tmp_path / "*.jsonl"), "label_column": "y"}
    keys = job.model_dump(mode="json", by_alias=True)
    keys["datasets"] = {"rows": pattern, "text": pattern}
    job = Job.model_validate(keys)
    layout.stage("classify").root.mkdir(parents=True)
    prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    for name in ("second", "third"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name, "y": "a"}])
    (tmp_path / "first.jsonl").rename(tmp_path / "fourth.jsonl")
    with pytest.raises(PlanError) as raised:
        prepare(job, layout)
    assert (
        f"{tmp_path}/first.jsonl is gone; {tmp_path}/fourth.jsonl is new; {tmp_path}/second.jsonl is new; and"
        in (str(raised.value))
    )
    assert preparation.has_started(layout.stage("classify"))


def test_other_evaluation_rows_are_said(tmp_path: Path) -> None:
    job, layout = make_job(tmp_path), RunLayout(tmp_path / "runs" / "job")
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": f"held {n}", "y": "a"} for n in range(20)])
    keys = job.model_dump(mode="json", by_alias=True)
    section = {"label_column": "y", "label_names": ["a", "b", "c"], "validation_fraction": 0.5}
    keys["datasets"]["held"] = {"source": "json", "files": str(held), **section}
    keys["stages"][0]["evaluation"] = {"datasets": ["held"], "every_steps": 4}
    job = Job.model_validate(keys)
    layout.stage("classify").root.mkdir(parents=True)
    prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    prepare(job, layout)
    assert not layout.events.exists()
    held.write_text(held.read_text().replace("held", "hold"))
    prepare(job, layout)
    (event,) = read_json_lines(layout.events)
    assert (event["event"], event["datasets"]) == ("evaluation_data_changed", ["held"])


def test_other_rows_of_a_finished_evaluation_are_said(tmp_path: Path) -> None:
    job, layout = make_job(tmp_path), RunLayout(tmp_path / "runs" / "job")
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": f"held {n}", "y": "a"} for n in range(20)])
    keys = job.model_dump(mode="json", by_alias=True)
    section = {"label_column": "y", "label_names": ["a", "b", "c"], "test_fraction": 1.0}
    keys["datasets"]["held"] = {"source": "json", "files": str(held), **section}
    keys["stages"].append({"name": "test", "kind": "evaluate", "from": "classify", "datasets": ["held"]})
    job = Job.model_validate(keys)
    preparation = Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)
    for stage in job.stages:
        layout.stage(stage.name).root.mkdir(parents=True)
        preparation.prepare(stage)
        layout.stage(stage.name).result.write_text('{"step": 8}')
    held.write_text(held.read_text().replace("held", "hold"))
    preparation = Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)
    for stage in job.stages:
        preparation.prepare(stage)
    (event,) = read_json_lines(layout.events)
    assert (event["event"], event["stage"]) == ("evaluation_data_changed", "test")


def test_a_stage_that_has_no_room_for_a_step_any_more_is_refused_and_stays(tmp_path: Path) -> None:
    keys = make_job(tmp_path).model_dump(mode="json", by_alias=True)
    first = keys["stages"][0] | {"limits": {"max_steps": 3}}
    data = {**first["data"], "after": "classify", "on_exhausted": "stop"}
    second = {**first, "name": "again", "model": None, "init": {"stage": "classify"}, "data": data}

    def start(max_steps: int) -> None:
        job = Job.model_validate(keys | {"stages": [first | {"limits": {"max_steps": max_steps}}, second]})
        preparation = Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
            preparation.prepare(stage)
            layout.stage(stage.name).result.write_text('{"step": 3}')

    layout = RunLayout(tmp_path / "runs" / "job")
    start(3)
    # Of 30 rows 28 are read by then.
    with pytest.raises(PlanError, match=r"'again': .*'rows' runs out after 2 rows"):
        start(7)
    assert layout.stage("again").result.exists()
    assert not list(layout.root.glob("again.before-*"))
