"""`plan` foretells of each stage what `run` does with it: left alone, gone on with, or begun anew."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from launchers import forecast
from launchers.forecast import forecast_stages
from launchers.preparation import Preparation
from launchers.progress import ProgressDisplay
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data import files
from orchestrator.data.tasks import IN_PROCESS
from orchestrator.errors import DataError
from orchestrator.spec.fingerprint import spec_fingerprint
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved
from tests.unit.data.corpus import write_jsonl
from tests.unit.launchers.commands import Console
from tests.unit.train.test_inputs import make_job


def two_stages(folder: Path) -> Job:
    """A stage on `rows.jsonl`, and another that builds on it and reads `more.jsonl`."""
    job = make_job(folder)
    more = write_jsonl(folder / "more.jsonl", [{"text": f"more {n}", "y": "abc"[n % 3]} for n in range(9)])
    keys = job.model_dump(mode="json", by_alias=True)
    labels = {"label_column": "y", "label_names": ["a", "b", "c"]}
    keys["datasets"]["more"] = {"source": "json", "files": str(more), **labels}
    first = keys["stages"][0]
    second = {**first, "name": "again", "model": None, "init": {"stage": first["name"]}}
    first["schedule"] = {"name": "cosine"}
    keys["stages"].append(second | {"data": {**first["data"], "mixture": {"more": 1.0}}})
    return Job.model_validate(keys)


def start(job: Job, layout: RunLayout) -> None:
    """Prepare and finish all stages, as a driver and its workers leave them."""
    preparation = Preparation(job, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)
    for stage in job.stages:
        layout.stage(stage.name).root.mkdir(parents=True, exist_ok=True)
        preparation.prepare(stage)
        layout.stage(stage.name).job.write_text(dump_resolved(job))
        result = {"step": 8, "spec_fingerprint": spec_fingerprint(job, stage)}
        layout.stage(stage.name).result.write_text(json.dumps(result))


def states(job: Job, layout: RunLayout) -> list[str]:
    return [found.state for found in forecast_stages(job, layout).values()]


KINDS = ("files", "train", "begun", "data_digests", "input_fingerprints", "tokenizer")


@pytest.mark.parametrize(
    "edited",
    [*({key: value} for key in KINDS for value in (None, 5, ["x"])), {"files": {"corpus": None}}, None],
    ids=str,
)
def test_inputs_of_wrong_types_are_taken_for_unreadable(
    edited: dict[str, Any] | None, console: Console, tmp_path: Path
) -> None:
    job = two_stages(tmp_path)
    layout = RunLayout(tmp_path / "runs" / job.name)
    start(job, layout)
    for stage in job.stages:
        path = layout.stage(stage.name).inputs
        text = json.dumps(edited and {**json.loads(path.read_text()), **edited})
        path.write_text(text)
    source = tmp_path / "source.yaml"
    source.write_text(dump_resolved(job))
    assert states(job, layout) == ["done", "done"]
    assert console("plan", source, "--no-model", "--runs-dir", layout.root.parent).code == 0


def with_keys(job: Job, stage: int, **keys: Any) -> Job:
    document = job.model_dump(mode="json", by_alias=True)
    document["stages"][stage] |= keys
    return Job.model_validate(document)


def test_a_stage_on_weights_that_will_be_others_starts_over(tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    assert states(job, layout) == ["to do", "to do"]
    start(job, layout)
    assert states(job, layout) == ["done", "done"]
    lr = {"name": "adamw", "lr": 0.5}
    assert states(with_keys(job, 1, optimizer=lr), layout) == ["done", "goes on"]
    assert states(with_keys(job, 0, optimizer=lr), layout) == ["goes on", "starts over"]
    # The first stage is made again from the same: what builds on it has nothing new to begin with.
    layout.stage(job.stages[0].name).result.unlink()
    assert states(job, layout) == ["to do", "goes on"]


def test_the_forecast_is_what_preparation_then_does(tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    start(job, layout)
    other = with_keys(job, 0, optimizer={"name": "adamw", "lr": 0.5})
    assert states(other, layout)[1] == "starts over"
    start(other, layout)
    assert layout.stage("again").root.with_name("again.before-1").exists()
    assert states(other, layout) == ["done", "done"]


def test_files_that_changed_since_are_named(tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    more = tmp_path / "more.jsonl"
    more.write_text(more.read_text().replace("more 0", "less 0"))
    assert forecast_stages(job, layout)["again"].changed_data == ()
    start(job, layout)
    assert forecast_stages(job, layout)["again"].changed_data == ()
    content = more.read_text()
    more.write_text(content.replace("less 0", "sure 0"))
    assert forecast_stages(job, layout)["classify"].changed_data == ()
    assert forecast_stages(job, layout)["again"].changed_data == (f"{more} has other content",)
    more.write_text(content)
    assert forecast_stages(job, layout)["again"].changed_data == ()
    more.unlink()
    found = forecast_stages(job, layout)["again"]
    assert (found.state, found.changed_data, found.gone_data) == ("done", (), ("more",))


def test_rows_of_a_source_that_is_gone_are_kept_for_the_same_job_alone(tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    start(job, layout)
    (tmp_path / "more.jsonl").unlink()
    assert forecast_stages(job, layout)["again"].refusal is None
    # What rows do not depend on may change.
    longer = with_keys(job, 0, limits={"max_steps": 12})
    found = forecast_stages(longer, layout)["again"]
    assert (found.refusal, found.state) == (None, "starts over")
    data = job.stages[1].model_dump(mode="json", by_alias=True)["data"]
    shorter = with_keys(job, 1, data={**data, "seq_len": 8})
    refusal = forecast_stages(shorter, layout)["again"].refusal
    assert refusal == (
        "stage 'again': the source of 'more' is gone, and what was prepared before cannot stand in for it:"
        " rows.seq_len: 16 -> 8. Bring back what is gone, or undo that change"
    )
    preparation = Preparation(shorter, layout, ProgressDisplay(io.StringIO(), layout), "run", IN_PROCESS)
    preparation.prepare(shorter.stages[0])
    with pytest.raises(DataError, match=r"cannot stand in for it: rows\.seq_len: 16 -> 8"):
        preparation.prepare(shorter.stages[1])
    start(longer, layout)
    assert layout.stage("again").root.with_name("again.before-1").exists()


def test_an_export_of_the_name_of_a_stage_whose_source_is_gone_reads_nothing(tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    start(job, layout)
    (tmp_path / "more.jsonl").unlink()
    keys = job.model_dump(mode="json", by_alias=True)
    keys["stages"][1] = {"name": "again", "kind": "export", "from": keys["stages"][0]["name"]}
    found = forecast_stages(Job.model_validate(keys), layout)["again"]
    assert (found.state, found.refusal, found.gone_data, found.changed_data) == ("to do", None, (), ())


def test_only_files_written_since_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    start(job, layout)
    read: list[Path] = []
    digest_file = files.digest_file
    monkeypatch.setattr(files, "digest_file", lambda path: (read.append(path), digest_file(path))[1])
    assert forecast.forecast_stages(job, layout)["again"].changed_data == ()
    assert read == []
    more = tmp_path / "more.jsonl"
    now = layout.stage("again").inputs.stat().st_mtime_ns + 1
    os.utime(more, ns=(now, now))
    assert forecast.forecast_stages(job, layout)["again"].changed_data == ()
    assert read == [more]


def test_the_plan_says_what_it_foretells(console: Console, tmp_path: Path) -> None:
    job, layout = two_stages(tmp_path), RunLayout(tmp_path / "runs" / "job")
    start(job, layout)
    more = tmp_path / "more.jsonl"
    more.write_text(more.read_text().replace("more 0", "less 0"))
    path = tmp_path / "job.yaml"
    path.write_text(dump_resolved(job))
    command = ("plan", path, "--no-model", "--runs-dir", layout.root.parent)
    ended = console(*command)
    assert ended.code == 0
    assert f"     its data changed: {more} has other content: refused if that changes" in ended.output
    refused = console(*command, "--set", "stages.classify.optimizer.lr=0.5")
    assert refused.code == 2
    assert "2. again: train, needs classify: starts over: 'classify' gives it other weights" in refused.output
    longer = console(*command, "--set", "stages.classify.limits.max_steps=16")
    assert longer.code == 0
    assert (
        "limits.max_steps: 8 -> 16: where it goes on, the learning rate is that of the new" in longer.output
    )


def test_parameters_are_counted_for_the_tokenizer_that_is_there(console: Console, tmp_path: Path) -> None:
    keys = two_stages(tmp_path).model_dump(mode="json", by_alias=True)
    keys["tokenizer"]["train"]["vocab_size"] = 5000
    job, layout = Job.model_validate(keys), RunLayout(tmp_path / "runs" / "job")
    path = tmp_path / "job.yaml"
    path.write_text(dump_resolved(job))
    command = ("plan", path, "--json", "--runs-dir", layout.root.parent)
    asked = console(*command).json()["stages"][0]["parameters"]
    start(job, layout)
    tokenizer = json.loads(layout.stage("classify").inputs.read_text())["tokenizer"]
    content = json.loads((Path(tokenizer) / "tokenizer.json").read_text())
    entries = max([*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]) + 1
    assert job.tokenizer is not None
    assert job.tokenizer.train is not None
    fewer = job.tokenizer.train.vocab_size - entries
    assert fewer > 0
    model = job.stages[0].model_dump()["model"]["config"]
    assert asked - console(*command).json()["stages"][0]["parameters"] == fewer * model["n_embd"]
