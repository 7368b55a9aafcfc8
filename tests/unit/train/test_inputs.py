"""What a stage reads, before any worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.data.catalog import Catalog
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.train.inputs import StageInputs
from orchestrator.train.kept import Kept, rows_keys
from orchestrator.train.preparing import prepare_data
from tests.unit.data.corpus import make_texts, write_jsonl


def make_job(folder: Path, *, num_labels: int = 3, **dataset: object) -> Job:
    """A classifier of rows with the labels a, b and c."""
    records = [{"text": text, "y": "abc"[row % 3]} for row, text in enumerate(make_texts(30))]
    files = str(write_jsonl(folder / "rows.jsonl", records))
    stage = {
        "name": "classify",
        "objective": {"name": "sequence_classification", "num_labels": num_labels},
        "model": {"config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16}},
        "data": {"mixture": {"rows": 1.0}, "seq_len": 16},
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 8},
    }
    return Job.model_validate(
        {
            "name": "job",
            "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["text", "rows"]}},
            "datasets": {
                "rows": {"source": "json", "files": files, "label_column": "y", **dataset},
                "text": {"source": "json", "files": files},
                "unread": {"source": "json", "files": "/nowhere"},
            },
            "stages": [stage],
        }
    )


def prepare(job: Job, folder: Path) -> tuple[str, ...]:
    """Label names of the job's stage."""
    catalog = Catalog(job.datasets, folder / "cache")
    return prepare_data(job, job.stages[0], catalog, lambda what, done, total: None).label_names  # type: ignore[arg-type]


def test_more_outputs_than_labels_are_refused(tmp_path: Path) -> None:
    assert prepare(make_job(tmp_path), tmp_path) == ("a", "b", "c")
    with pytest.raises(DataError) as raised:
        prepare(make_job(tmp_path, num_labels=4), tmp_path)
    assert str(raised.value) == (
        "stage 'classify': objective.num_labels is 4, but ['rows'] have 3 labels: a, b, c. Set"
        " num_labels: 3, or name the others in label_names."
    )
    named = make_job(tmp_path, num_labels=4, label_names=("a", "b", "c", "d"))
    assert prepare(named, tmp_path) == ("a", "b", "c", "d")


def test_datasets_of_a_stage_with_other_labels_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"t {n}", "y": "bcd"[n % 3]} for n in range(9)])
    keys = job.model_dump(mode="json", by_alias=True)
    keys["datasets"]["other"] = {"source": "json", "files": str(other), "label_column": "y"}
    keys["stages"][0]["data"]["mixture"]["other"] = 1.0
    with pytest.raises(DataError) as raised:
        prepare(Job.model_validate(keys), tmp_path)
    assert str(raised.value) == (
        "stage 'classify': its datasets have different labels: rows ['a', 'b', 'c']; other ['b', 'c',"
        " 'd']. Give each of them the same label_names"
    )


def test_prepared_rows_stand_in_for_what_is_gone_wherever_their_cache_lies(tmp_path: Path) -> None:
    job, layout = make_job(tmp_path), StageLayout(tmp_path / "stage")
    (stage,) = job.stages
    assert isinstance(stage, TrainStage)

    def find(cache: str = "cache") -> Kept | None:
        return Kept.find(layout, job, stage, Catalog(job.datasets, tmp_path / cache))

    assert find() is None
    data = prepare_data(job, stage, Catalog(job.datasets, tmp_path / "cache"), lambda what, done, total: None)
    rows = data.train["rows"]
    StageInputs(
        fingerprint="f",
        spec_fingerprint="s",
        tokenizer=str(data.tokenizer),
        train={"rows": str(rows)},
        evaluation={},
        label_names=data.label_names,
        weights=None,
        run_id="r",
        data_digests=data.digests(),
        input_fingerprints={},
        files=data.files,
        rows_keys=rows_keys(job, stage),
    ).write(layout.inputs)
    missing = SourceMissingError("gone.")
    (tmp_path / "rows.jsonl").unlink()
    kept = find()
    assert kept is not None
    assert kept.rows("rows", "train", data.tokenizer, missing) == rows
    assert kept.files("rows") == data.files["rows"]
    with pytest.raises(SourceMissingError, match="gone"):
        kept.rows("text", "train", data.tokenizer, missing)

    whole = layout.inputs.read_text()
    for damaged in (
        whole[: len(whole) // 2],
        "[]",
        "{}",
        whole.replace('"train": {', '"train": null, "x": {'),
    ):
        layout.inputs.write_text(damaged)
        assert find() is None
        with pytest.raises(DataError, match=r"inputs.json is damaged .*: delete it. Run 'orch"):
            StageInputs.read(layout)
    layout.inputs.unlink()
    layout.inputs.mkdir()
    with pytest.raises(DataError, match=r"inputs.json is damaged .*Is a directory.*: delete it. Run 'orch"):
        StageInputs.read(layout)
    layout.inputs.rmdir()
    layout.inputs.write_text(whole)

    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = find("moved")
    assert moved is not None
    rows = tmp_path / "moved" / "rows" / rows.name
    assert moved.rows("rows", "train", moved.tokenizer(missing), missing) == rows
    tokens = (rows / "tokens.bin").read_bytes()
    (rows / "tokens.bin").write_bytes(bytes([tokens[0] ^ 1]) + tokens[1:])
    assert moved.tokenizer(missing).is_dir()
    with pytest.raises(DataError, match=rf"{rows} is damaged or gone: file tokens.bin does not have"):
        moved.rows("rows", "train", moved.tokenizer(missing), missing)
    layout.inputs.write_text(whole.replace('"rows_keys"', '"other"'))
    earlier = find("moved")
    assert earlier is not None
    with pytest.raises(DataError, match="another version of orchestrator prepared it"):
        earlier.tokenizer(missing)
