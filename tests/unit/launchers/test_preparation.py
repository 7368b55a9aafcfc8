"""A stage that began is not given other data, and the file that changed is named."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from launchers import preparation
from launchers.preparation import Preparation
from launchers.progress import ProgressDisplay
from launchers.run_directory import opened_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.tasks import IN_PROCESS
from orchestrator.data.tokenizer import load_tokenizer, save_tokenizer
from orchestrator.errors import DataError, PlanError, SourceMissingError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import load_resolved
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


def test_a_stage_goes_on_from_a_chat_with_the_same_tokens_and_without_its_conversations(
    tmp_path: Path,
) -> None:
    template, layout = tmp_path / "own.jinja", RunLayout(tmp_path / "runs" / "job")
    template.write_text("{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}")
    keys = make_chat(tmp_path, template).model_dump(mode="json", by_alias=True)
    (chat,) = keys["stages"]
    chat["objective"]["train_on"] = "all"
    keys["tokenizer"]["train"]["datasets"] = ["chats"]
    classify = make_job(tmp_path).model_dump(mode="json", by_alias=True)["stages"][0]
    keys["stages"].append({**classify, "name": "second", "model": None, "init": {"stage": "classify"}})
    job = Job.model_validate(keys)
    fingerprints = []
    for _ in range(2):
        preparation = start(job, layout)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
            fingerprints.append(preparation.prepare(stage))
            layout.stage(stage.name).result.write_text('{"step": 8}')
        (tmp_path / "chats.jsonl").unlink(missing_ok=True)
    assert fingerprints[:2] == fingerprints[2:]


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
    with pytest.raises(PlanError, match="since the stage began: the chat template is another one"):
        prepare(job, layout)


def test_a_broken_chat_template_is_refused_before_any_stage_is_prepared(tmp_path: Path) -> None:
    template, layout = tmp_path / "own.jinja", RunLayout(tmp_path / "runs" / "job")
    template.write_text("{% for message in messages %}{{ message.content }}")
    preparation = start(make_chat(tmp_path, template), layout)
    with pytest.raises(DataError, match=r"own\.jinja, line 1: not valid Jinja: Unexpected end of template"):
        preparation.check_sources()


def make_many(folder: Path) -> Job:
    """Rows of two files without what is held out, which is evaluated on; a tokenizer of its own file."""
    keys = make_job(folder).model_dump(mode="json", by_alias=True)
    labels = {"source": "json", "label_column": "y", "label_names": ["a", "b", "c"]}
    files = {}
    for name in ("words", "rows", "more", "held", "other"):
        rows = [{"text": f"{name} {n} of some text", "y": "a"} for n in range(20)]
        files[name] = str(write_jsonl(folder / f"{name}.jsonl", rows))
    keys["tokenizer"]["train"]["datasets"] = ["words"]
    keys["datasets"] = {
        "words": {"source": "json", "files": files["words"]},
        "rows": {**labels, "files": [files["rows"], files["more"]], "decontaminate": {"against": ["held"]}},
        "held": {**labels, "files": files["held"], "validation_fraction": 0.5},
        "other": {**labels, "files": files["other"]},
    }
    keys["stages"][0]["data"]["mixture"] = {"rows": 0.5, "other": 0.5}
    keys["stages"][0]["evaluation"] = {"datasets": ["held"], "every_steps": 4}
    return Job.model_validate(keys)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Job, RunLayout, str]:
    """A job of many files, the run that it was finished in, and the stage's fingerprint."""
    job, layout = make_many(tmp_path), RunLayout(tmp_path / "runs" / "job")
    layout.stage("classify").root.mkdir(parents=True)
    fingerprint = prepare(job, layout)
    layout.stage("classify").result.write_text('{"step": 8}')
    return job, layout, fingerprint


def change(path: Path) -> None:
    path.write_text(path.read_text().replace("some", "other", 1))


@pytest.mark.parametrize("gone", ["words", "rows", "more", "held", "other"])
def test_what_is_gone_alone_is_done_without(
    gone: str, begun: tuple[Job, RunLayout, str], tmp_path: Path
) -> None:
    job, layout, fingerprint = begun
    (tmp_path / f"{gone}.jsonl").unlink()
    assert prepare(job, layout) == fingerprint
    (event,) = read_json_lines(layout.events)
    assert event["event"] == "sources_missing"
    assert f"there is no file '{gone}.jsonl'" in event["message"]


@pytest.mark.parametrize(
    ("dataset", "split"), [("held", "validation"), ("other", "train"), ("held", "train")]
)
def test_an_evaluation_does_without_the_rows_that_were_trained_on(
    dataset: str, split: str, tmp_path: Path
) -> None:
    keys = make_many(tmp_path).model_dump(mode="json", by_alias=True)
    keys["stages"].append(
        {
            "name": "test",
            "kind": "evaluate",
            "from": "classify",
            "datasets": [dataset],
            "split": split,
        }
    )
    job, layout = Job.model_validate(keys), RunLayout(tmp_path / "runs" / "job")

    def prepare_both() -> list[str]:
        preparation = start(job, layout)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
        return [preparation.prepare(stage) for stage in job.stages]

    before = prepare_both()
    for name in ("words", "rows", "more", "held", "other"):
        (tmp_path / f"{name}.jsonl").unlink()
        assert prepare_both() == before


@pytest.mark.parametrize("is_begun", [True, False])
@pytest.mark.parametrize(
    ("gone", "changed"),
    # Of the same dataset, of one that is compared with it, of what is held out, and of others.
    [
        ("more", "rows"),
        ("held", "rows"),
        ("rows", "held"),
        ("other", "rows"),
        ("words", "other"),
        ("other", "words"),
    ],
)
def test_what_is_gone_does_not_hide_what_changed(
    gone: str, changed: str, is_begun: bool, begun: tuple[Job, RunLayout, str], tmp_path: Path
) -> None:
    job, layout, fingerprint = begun
    if not is_begun:
        layout.stage("classify").result.unlink()
    (tmp_path / f"{gone}.jsonl").rename(tmp_path / "kept")
    path = tmp_path / f"{changed}.jsonl"
    content = path.read_text()
    change(path)
    with pytest.raises(DataError) as raised:
        start(job, layout).check_sources()
    said = f"cannot stand in for it: {path} has other content. Bring back what is gone, or undo that change."
    assert f"there is no file '{gone}.jsonl'" in str(raised.value)
    assert said in str(raised.value)
    with pytest.raises(DataError, match="cannot stand in"):
        prepare(job, layout)
    # Either way out is enough.
    path.write_text(content)
    assert prepare(job, layout) == fingerprint
    change(path)
    (tmp_path / "kept").rename(tmp_path / f"{gone}.jsonl")
    layout.stage("classify").result.unlink(missing_ok=True)
    prepare(job, layout)


def with_dataset(job: Job, name: str, **keys: object) -> Job:
    said = job.model_dump(mode="json", by_alias=True)
    said["datasets"][name] |= keys
    return Job.model_validate(said)


def test_a_file_that_came_where_another_went_is_named(tmp_path: Path) -> None:
    job, layout = make_many(tmp_path), RunLayout(tmp_path / "runs" / "job")
    (tmp_path / "parts").mkdir()
    write_jsonl(tmp_path / "parts" / "one.jsonl", [{"text": f"part {n}", "y": "a"} for n in range(20)])
    job = with_dataset(
        job, "other", files=[str(tmp_path / "other.jsonl"), str(tmp_path / "parts" / "*.jsonl")]
    )
    layout.stage("classify").root.mkdir(parents=True)
    prepare(job, layout)
    (tmp_path / "other.jsonl").unlink()
    prepare(job, layout)
    two = write_jsonl(tmp_path / "parts" / "two.jsonl", [{"text": "new", "y": "a"}])
    with pytest.raises(DataError, match=rf"cannot stand in for it: {two} is new"):
        prepare(job, layout)


def test_what_a_job_says_of_what_is_gone_may_not_change(
    begun: tuple[Job, RunLayout, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, layout, fingerprint = begun
    # It is not there, and what it was is.
    elsewhere = with_dataset(job, "held", files=str(tmp_path / "new.jsonl"))
    with pytest.raises(DataError, match=r"datasets.held.files: .*/held.jsonl'\] -> \[.*/new.jsonl"):
        prepare(elsewhere, layout)
    (tmp_path / "held.jsonl").unlink()
    (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("moved", "more")]
    with pytest.raises(DataError, match=r"datasets.rows.validation_fraction: "):
        prepare(with_dataset(job, "rows", files=files, validation_fraction=0.5), layout)
    # What is there may lie elsewhere now, and what rows do not depend on may change.
    moved = with_dataset(job, "rows", files=files).model_dump(mode="json", by_alias=True)
    moved["stages"][0]["limits"]["max_steps"] = 12
    moved["stages"][0]["evaluation"]["every_steps"] = 2
    assert prepare(Job.model_validate(moved), layout) != fingerprint
    monkeypatch.setattr("orchestrator.train.kept.ROWS", {"examination": 0})
    with pytest.raises(DataError, match=r"cannot stand in for it: versions"):
        prepare(Job.model_validate(moved), layout)


def test_rows_of_another_split_do_not_stand_in(begun: tuple[Job, RunLayout, str], tmp_path: Path) -> None:
    job, layout, _ = begun
    (tmp_path / "other.jsonl").unlink()
    keys = job.model_dump(mode="json", by_alias=True)
    # What is read besides changes nothing in what was.
    (tmp_path / "new.jsonl").write_text((tmp_path / "held.jsonl").read_text())
    keys["datasets"]["new"] = {**keys["datasets"]["held"], "files": str(tmp_path / "new.jsonl")}
    keys["stages"][0]["evaluation"]["datasets"] = ["held", "new"]
    prepare(Job.model_validate(keys), layout)
    keys["stages"][0]["evaluation"]["datasets"] = ["held", "other"]
    keys["datasets"]["other"]["validation_fraction"] = 0.5
    with pytest.raises(DataError, match=r"other.jsonl"):
        prepare(Job.model_validate(keys), layout)
    keys["datasets"]["other"]["validation_fraction"] = None
    kept = start(job, layout)._kept(job.stages[0])  # type: ignore[arg-type]
    assert kept is not None
    tokenizer = kept.tokenizer(SourceMissingError("gone"))
    with pytest.raises(SourceMissingError):
        kept.rows("other", "validation", tokenizer, SourceMissingError("gone"))
    with pytest.raises(SourceMissingError):
        kept.rows("held", "train", tokenizer, SourceMissingError("gone"))


def test_what_is_damaged_and_not_gone_is_made_again(
    begun: tuple[Job, RunLayout, str], tmp_path: Path
) -> None:
    job, layout, fingerprint = begun
    (tmp_path / "other.jsonl").unlink()
    inputs = StageInputs.read(layout.stage("classify"))
    for folder in (inputs.train["rows"], inputs.evaluation["held"], inputs.tokenizer):
        (Path(folder) / "COMPLETE").write_text("{")
        assert prepare(job, layout) == fingerprint
    (Path(inputs.train["other"]) / "COMPLETE").unlink()
    with pytest.raises(DataError, match=rf"{inputs.train['other']} is damaged or gone"):
        prepare(job, layout)


def test_label_names_that_changed_are_found_where_held_out_rows_are_gone(tmp_path: Path) -> None:
    job, layout = make_job(tmp_path), RunLayout(tmp_path / "runs" / "job")
    keys = job.model_dump(mode="json", by_alias=True)
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": f"held {n}", "y": "b"} for n in range(20)])
    keys["datasets"]["held"] = {
        "source": "json",
        "files": str(held),
        "label_column": "y",
        "test_fraction": 1.0,
    }
    keys["tokenizer"]["train"]["datasets"] = ["unread"]
    keys["datasets"]["unread"]["files"] = str(
        write_jsonl(tmp_path / "words.jsonl", [{"text": "some words"}] * 9)
    )
    keys["stages"].append({"name": "test", "kind": "evaluate", "from": "classify", "datasets": ["held"]})
    job = Job.model_validate(keys)

    def prepare_both() -> None:
        preparation = start(job, layout)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
            preparation.prepare(stage)

    prepare_both()
    held.unlink()
    prepare_both()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"y": "a"', '"y": "z"'))
    with pytest.raises(DataError, match=rf"held.jsonl.* cannot stand in for it: {rows} has other content"):
        prepare_both()


def test_a_stage_whose_first_weights_are_others_starts_over_on_whatever_data(
    tmp_path: Path, begun: tuple[Job, RunLayout, str]
) -> None:
    keys = begun[0].model_dump(mode="json", by_alias=True)
    keys["stages"].append(
        {**keys["stages"][0], "name": "second", "model": None, "init": {"stage": "classify"}}
    )
    job, layout = Job.model_validate(keys), RunLayout(tmp_path / "runs" / "chain")

    def prepare_both() -> None:
        preparation = start(job, layout)
        for stage in job.stages:
            layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
            preparation.prepare(stage)
            layout.stage(stage.name).result.write_text('{"step": 8}')

    prepare_both()
    # As --redo does.
    layout.stage("classify").root.rename(layout.root / "classify.before-1")
    change(tmp_path / "rows.jsonl")
    change(tmp_path / "words.jsonl")
    prepare_both()
    assert (layout.root / "second.before-1").is_dir()


def test_a_stage_that_starts_over_has_the_job_it_starts_with_and_leaves_the_one_it_had(
    tmp_path: Path, begun: tuple[Job, RunLayout, str]
) -> None:
    keys = begun[0].model_dump(mode="json", by_alias=True)
    for before, name in (("classify", "second"), ("classify", "third")):
        keys["stages"].append({**keys["stages"][0], "name": name, "model": None, "init": {"stage": before}})
    layout = RunLayout(tmp_path / "runs" / "chain")

    def run(max_steps: int) -> None:
        keys["stages"][0]["limits"] = {"max_steps": max_steps}
        job = Job.model_validate(keys)
        display = ProgressDisplay(io.StringIO(), layout)
        with opened_run(job, layout, display) as (pinned, run_id):
            preparation = Preparation(pinned, layout, display, run_id, IN_PROCESS)
            for stage in pinned.stages:
                preparation.prepare(stage)
                layout.stage(stage.name).result.write_text('{"step": 8}')

    for max_steps in (8, 9, 9, 10):
        run(max_steps)
    for folder, max_steps in (("third", 10), ("third.before-2", 9), ("third.before-1", 8)):
        first = load_resolved(layout.root / folder / "job.yaml").stages[0]
        assert isinstance(first, TrainStage)
        assert first.limits.max_steps == max_steps
    assert not (layout.root / "third.before-3").exists()


def test_without_its_list_a_begun_stage_is_compared_with_its_checkpoint(
    begun: tuple[Job, RunLayout, str], tmp_path: Path
) -> None:
    job, layout, fingerprint = begun
    stage = layout.stage("classify")
    digests = StageInputs.read(stage).data_digests
    checkpoint = stage.checkpoints / "step-00000004"
    checkpoint.mkdir(parents=True)
    state = {f"data.{name}": digests[f"train.{name}"] for name in ("rows", "other")}
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "COMPLETE").write_text("{}")
    stage.inputs.unlink()
    path = tmp_path / "rows.jsonl"
    content = path.read_text()
    change(path)
    for _ in range(2):
        with pytest.raises(PlanError, match=r"the content of rows changed since .*, whose inputs\.json"):
            prepare(job, layout)
    for torn in ("[]", "{}", "{"):
        (checkpoint / "state.json").write_text(torn)
        prepare(job, layout)
        stage.inputs.unlink()
    path.write_text(content)
    assert prepare(job, layout) == fingerprint
    # As of a version that noted something else.
    noted = stage.inputs.read_text()
    stage.inputs.write_text(noted.replace('"datasets"', '"data"'))
    (tmp_path / "other.jsonl").unlink()
    with pytest.raises(DataError, match="another version of orchestrator prepared it"):
        prepare(job, layout)


def test_a_chat_template_that_changed_is_named_where_the_conversations_are_gone(tmp_path: Path) -> None:
    template, layout = tmp_path / "own.jinja", RunLayout(tmp_path / "runs" / "job")
    text = "{% for message in messages %}{{ message.role + message.content + eos_token }}{% endfor %}"
    template.write_text(text + "{% if add_generation_prompt %}assistant{% endif %}")
    job = make_chat(tmp_path, template)
    layout.stage("classify").root.mkdir(parents=True)
    fingerprint = prepare(job, layout)
    (tmp_path / "chats.jsonl").unlink()
    assert prepare(job, layout) == fingerprint
    template.write_text("X" + template.read_text())
    with pytest.raises(DataError, match="cannot stand in for it: the chat template is another one"):
        prepare(job, layout)


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
    other = load_tokenizer(Path(inputs.tokenizer))
    other.add_tokens(["another"])
    save_tokenizer(other, tmp_path / "other")
    replace(inputs, tokenizer=str(tmp_path / "other")).write(layout.stage("classify").inputs)
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
