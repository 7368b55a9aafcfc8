"""A stage that began is not given other data, and the file that changed is named."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from launchers import preparation
from launchers.preparation import Preparation
from launchers.progress import ProgressDisplay
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.tasks import IN_PROCESS
from orchestrator.errors import DataError, PlanError
from orchestrator.spec.job import Job
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.inputs import StageInputs
from tests.unit.data.corpus import write_jsonl
from tests.unit.train.test_inputs import make_job


def start(job: Job, layout: RunLayout) -> Preparation:
    return Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)


def prepare(job: Job, layout: RunLayout) -> str:
    return start(job, layout).prepare(job.stages[0])


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


def make_chat(folder: Path, template: Path) -> Job:
    """A job that is finetuned on conversations by a template of its own."""
    keys = make_job(folder).model_dump(mode="json", by_alias=True)
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 20
    files = str(write_jsonl(folder / "chats.jsonl", rows))
    keys["datasets"]["chats"] = {"source": "json", "files": files, "messages_column": "messages"}
    keys["stages"][0]["objective"] = {"name": "supervised_finetuning", "chat_template": str(template)}
    keys["stages"][0]["data"] |= {"mixture": {"chats": 1.0}, "seq_len": 64}
    return Job.model_validate(keys)


def test_a_chat_template_that_changed_is_named(tmp_path: Path) -> None:
    template, layout = tmp_path / "own.jinja", RunLayout(tmp_path / "runs" / "job")
    text = "{% for message in messages %}{{ message.role + message.content + eos_token }}{% endfor %}"
    ask = "{% if add_generation_prompt %}assistant{% endif %}"
    template.write_text(text + ask)
    job = make_chat(tmp_path, template)
    layout.stage("classify").root.mkdir(parents=True)
    prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    template.write_text("X" + text + ask)
    with pytest.raises(PlanError, match="its files are the same, and the chat template is another one"):
        prepare(job, layout)


def test_a_broken_chat_template_is_refused_before_any_stage_is_prepared(tmp_path: Path) -> None:
    template, layout = tmp_path / "own.jinja", RunLayout(tmp_path / "runs" / "job")
    template.write_text("{% for message in messages %}{{ message.content }}")
    preparation = start(make_chat(tmp_path, template), layout)
    with pytest.raises(DataError, match=r"own\.jinja, line 1: not valid Jinja: Unexpected end of template"):
        preparation.check_sources()


def test_a_source_that_is_gone_does_not_hide_one_that_changed(tmp_path: Path) -> None:
    layout, keys = RunLayout(tmp_path / "runs" / "job"), make_job(tmp_path).model_dump(by_alias=True)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"other {n}", "y": "a"} for n in range(20)])
    keys["datasets"]["other"] = {
        **keys["datasets"]["rows"],
        "files": str(other),
        "label_names": ["a", "b", "c"],
    }
    keys["datasets"]["rows"]["label_names"] = ["a", "b", "c"]
    keys["stages"][0]["data"]["mixture"] = {"rows": 0.5, "other": 0.5}
    job = Job.model_validate(keys)
    layout.stage("classify").root.mkdir(parents=True)
    fingerprint = prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    other.unlink()
    assert prepare(job, layout) == fingerprint
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("a", "o", 1))
    with pytest.raises(PlanError) as raised:
        prepare(job, layout)
    said = str(raised.value)
    assert "datasets.other: files: there is no file 'other.jsonl'" in said
    assert f"has changed, too: {path} has other content. Restore both" in said


def test_rows_of_another_tokenizer_than_the_weights_are_refused(tmp_path: Path) -> None:
    layout, keys = RunLayout(tmp_path / "runs" / "job"), make_job(tmp_path).model_dump(by_alias=True)
    (first,) = keys["stages"]
    again = {**first, "name": "again", "model": None, "init": {"stage": "classify"}}
    test = {"name": "test", "kind": "evaluate", "from": "classify", "datasets": ["rows"]}
    keys["stages"] = [first, again, test]
    keys["datasets"]["rows"] |= {"test_fraction": 0.5}
    job = Job.model_validate(keys)
    preparation = start(job, layout)
    for stage in job.stages:
        layout.stage(stage.name).root.mkdir(parents=True)
        preparation.prepare(stage)
    inputs = StageInputs.read(layout.stage("classify"))
    digests = {**inputs.data_digests, "tokenizer": "another"}
    replace(inputs, data_digests=digests).write(layout.stage("classify").inputs)
    for name in ("again", "test"):
        with pytest.raises(PlanError, match=f"stage '{name}': its tokenizer is another one than that of 'cl"):
            preparation.prepare(job.stage(name))


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
    preparation = start(job, layout)
    for stage in job.stages:
        layout.stage(stage.name).root.mkdir(parents=True)
        preparation.prepare(stage)
        layout.stage(stage.name).result.write_text('{"step": 8}')
    held.write_text(held.read_text().replace("held", "hold"))
    preparation = start(job, layout)
    for stage in job.stages:
        preparation.prepare(stage)
    (event,) = read_json_lines(layout.events)
    assert (event["event"], event["stage"]) == ("evaluation_data_changed", "test")


def test_a_stage_that_has_no_room_for_a_step_any_more_is_refused_and_stays(tmp_path: Path) -> None:
    keys = make_job(tmp_path).model_dump(mode="json", by_alias=True)
    first = keys["stages"][0] | {"limits": {"max_steps": 3}}
    data = {**first["data"], "after": "classify", "on_exhausted": "stop"}
    second = {**first, "name": "again", "model": None, "init": {"stage": "classify"}, "data": data}

    def run(max_steps: int) -> None:
        job = Job.model_validate(keys | {"stages": [first | {"limits": {"max_steps": max_steps}}, second]})
        preparation = start(job, layout)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
            preparation.prepare(stage)
            layout.stage(stage.name).result.write_text('{"step": 3}')

    layout = RunLayout(tmp_path / "runs" / "job")
    run(3)
    # Of 30 rows 28 are read by then.
    with pytest.raises(PlanError, match=r"'again': .*'rows' runs out after 2 rows"):
        run(7)
    assert layout.stage("again").result.exists()
    assert not list(layout.root.glob("again.before-*"))
