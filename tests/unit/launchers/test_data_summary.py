"""The summary of a job's datasets says what is trained on, and where every other row went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launchers import data_summary
from launchers.data_summary import _histogram
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.catalog import Catalog
from orchestrator.data.rows import find_rows
from orchestrator.spec.load import load_job
from tests.unit.data.corpus import make_texts, train_small, write_jsonl
from tests.unit.data.hub_folder import COMMIT, make_records, put_in_hubs_place, write_files
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import write_job

JOB = """\
name: tiny
tokenizer:
  train: {algorithm: bpe, vocab_size: 300, datasets: [web]}
datasets:
  web:
    source: json
    files: web.jsonl
    filter: {use: true}
    on_bad_row: skip
    scrub: [email]
    min_chars: 3
    deduplicate: true
    near_duplicates: {}
    decontaminate: {against: [exam]}
    max_rows: 30
  exam:
    source: json
    files: exam.jsonl
    label_column: y
    validation_fraction: 0.4
stages:
  - name: pretrain
    objective: {name: causal_lm}
    model: {config: {model_type: gpt2}}
    data: {mixture: {web: 1.0}, seq_len: 64}
    global_batch_size: 4
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer: {name: adamw, lr: 1e-3}
    schedule: {name: cosine, warmup_steps: 1}
    limits: {max_steps: 2}
  - name: classify
    objective: {name: sequence_classification, num_labels: 2}
    init: {stage: pretrain}
    data: {mixture: {exam: 1.0}, seq_len: 64}
    global_batch_size: 4
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer: {name: adamw, lr: 1e-3}
    schedule: {name: cosine, warmup_steps: 1}
    limits: {max_steps: 2}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose first dataset loses a row to each of its keys."""
    web = [{"text": f"write to a{row}@b.org {text}", "use": True} for row, text in enumerate(make_texts(36))]
    words = " ".join(f"word{number}" for number in range(40))
    exam = [{"text": text, "y": row % 2} for row, text in enumerate(make_texts(20, seed=5))]
    web += [
        {"text": "not used", "use": False},
        {"text": None, "use": True},
        {"text": "ab", "use": True},
        web[0],
        {"text": words, "use": True},
        {"text": words + " more", "use": True},
    ]
    exam[0]["text"] = "one two three four five six seven eight nine ten eleven twelve thirteen"
    write_jsonl(tmp_path / "web.jsonl", web)
    write_jsonl(tmp_path / "exam.jsonl", exam)
    return write_job(tmp_path, JOB)


def test_every_row_of_a_source_is_accounted_for(job: Path, console: Console, tmp_path: Path) -> None:
    ended = console("data", job, "--json", "--runs-dir", tmp_path / "runs")
    assert ended.code == 0
    web, exam = ended.json()["datasets"]
    assert (web["rows"], web["filtered"], web["skipped"]) == (42, 41, 1)
    assert web["skipped_first"] == [
        {
            "place": f"{tmp_path}/web.jsonl: line 38, row 37 (counted from 0)",
            "problem": "column 'text' holds None, expected a string",
        }
    ]
    dropped = {"min_chars": 1, "deduplicate": 1, "near_duplicates": 1, "decontaminate": 0}
    assert web["dropped"] == dropped
    assert web["splits"]["train"]["rows"] == 30
    assert web["scrubbed"] == {"email": 37}
    assert exam["splits"]["train"]["rows"] + exam["splits"]["validation"]["rows"] == 20
    labels = [split["labels"] for split in exam["splits"].values()]
    assert sum(found["0"] for found in labels) == sum(found["1"] for found in labels) == 10
    assert web["splits"]["train"]["labels"] is None
    assert all("<email>" in sample or "word" in sample for sample in web["samples"])


def test_duplicates_are_counted_where_nobody_drops_them(job: Path, console: Console, tmp_path: Path) -> None:
    for name, kept, again in (("web", 30, 0), ("web", 39, 1)):
        web = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][0]
        assert web["name"] == name
        assert web["splits"]["train"]["rows"] == kept
        assert web["splits"]["train"]["duplicates"] == again
        text = job.read_text("utf-8")
        for line in ("    deduplicate: true\n", "    near_duplicates: {}\n", "    max_rows: 30\n"):
            text = text.replace(line, "")
        job.write_text(text, "utf-8")
    shown = console("data", job, "--runs-dir", tmp_path / "runs").output
    assert "duplicates" in shown


def test_rows_whose_label_a_stage_cannot_use_are_counted(job: Path, console: Console, tmp_path: Path) -> None:
    labels = [0, 1, 2, -1, 1.5, None, 1]
    records = [{"text": text, "y": y} for text, y in zip(make_texts(7, seed=5), labels, strict=True)]
    write_jsonl(tmp_path / "exam.jsonl", records)
    text = job.read_text("utf-8").replace("    validation_fraction: 0.4\n", "    on_bad_row: skip\n")
    job.write_text(text.replace("    decontaminate: {against: [exam]}\n", ""), "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert (exam["rows"], exam["skipped"], exam["dropped"]["label_column"]) == (7, 1, 3)
    assert exam["splits"]["train"]["labels"] == {"1": 2, "0": 1}


def test_rows_with_a_tag_a_stage_cannot_use_are_counted(job: Path, console: Console, tmp_path: Path) -> None:
    tags = [[0, 1], [1, 2], [0, 0], [-1, 0]]
    write_jsonl(tmp_path / "exam.jsonl", [{"text": "a b", "w": ["a", "b"], "y": given} for given in tags])
    text = job.read_text("utf-8").replace("    validation_fraction: 0.4\n", "    on_bad_row: skip\n")
    text = text.replace("    label_column: y\n", "    label_column: y\n    words_column: w\n")
    text = text.replace("name: sequence_classification", "name: token_classification")
    job.write_text(text.replace("    decontaminate: {against: [exam]}\n", ""), "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert (exam["rows"], exam["dropped"]["label_column"]) == (4, 2)
    assert exam["splits"]["train"]["labels"] == {"0": 3, "1": 1}
    assert exam["splits"]["train"]["chars"] == 2 * len("ab")


def test_a_dataset_may_be_held_out_as_a_whole(job: Path, console: Console, tmp_path: Path) -> None:
    text = job.read_text("utf-8").replace("validation_fraction: 0.4", "test_fraction: 1.0")
    job.write_text(text.replace("{exam: 1.0}", "{exam: 1.0, web: 1.0}"), "utf-8")
    refused = console("validate", job)
    assert refused.code == 2
    assert "data.mixture.exam: dataset 'exam' has no training rows: its validation_fraction" in refused.errors
    text = job.read_text("utf-8").partition("  - name: classify")[0]
    job.write_text(text, "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert {name: split["rows"] for name, split in exam["splits"].items()} == {"test": 20}
    assert len(exam["samples"]) == 3
    assert "tokens of test rows" in console("data", job, "--runs-dir", tmp_path / "runs").output


def test_a_split_may_be_empty_beside_one_with_rows(job: Path, console: Console, tmp_path: Path) -> None:
    text = job.read_text("utf-8").replace(
        "    validation_fraction: 0.4\n", "    validation_fraction: 1.0e-9\n"
    )
    text = text.replace("    decontaminate: {against: [exam]}\n", "")
    job.write_text(text, "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert exam["splits"]["train"]["rows"] == 20
    assert exam["splits"]["validation"] == {
        "rows": 0,
        "chars": 0,
        "duplicates": 0,
        "tokens": None,
        "labels": {},
    }
    lines = console("data", job, "--runs-dir", tmp_path / "runs").output.splitlines()
    assert "validation 0 0 0 - - - -" in [" ".join(line.split()) for line in lines]


def test_of_a_dataset_whose_training_rows_are_all_held_out_the_others_are_shown(
    job: Path, console: Console, tmp_path: Path
) -> None:
    text = job.read_text("utf-8").replace("validation_fraction: 0.4", "validation_fraction: 0.999999999")
    job.write_text(text, "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert [split["rows"] for split in exam["splits"].values()] == [0, 20]
    assert len(exam["samples"]) == 3
    assert "tokens of validation rows" in console("data", job, "--runs-dir", tmp_path / "runs").output


def test_where_no_split_has_rows_the_message_says_why(job: Path, console: Console, tmp_path: Path) -> None:
    job.write_text(job.read_text("utf-8").replace("min_chars: 3", "min_chars: 10_000"), "utf-8")
    ended = console("data", job, "--json", "--runs-dir", tmp_path / "runs")
    assert ended.code == 2
    message = json.loads(ended.output)["errors"][0]["message"]
    assert message.startswith("datasets.web: split 'train' has none of 41 rows")
    assert "by min_chars" in message


def test_what_is_shown_is_what_preparation_finds(job: Path, console: Console, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train = console("data", job, "--json", "--runs-dir", runs).json()["datasets"][0]["splits"]["train"]
    loaded = load_job(job, env={})
    rows = find_rows(
        Catalog(loaded.datasets, RunLayout(runs / "tiny").cache).find("web").without_labels(), "train"
    )
    texts = rows.open()["text"][:]
    assert train["rows"] == len(texts)
    assert train["chars"] == sum(map(len, texts))
    # A byte-level tokenizer of nearly no merges: about a token for each byte.
    assert train["chars"] / 3 < train["tokens"]["total"] <= train["chars"]
    assert sum(bar["rows"] for bar in train["tokens"]["histogram"]) == len(texts)
    assert not train["tokens"]["is_estimate"]
    assert not (runs / "tiny").exists()


def test_many_rows_are_sampled_and_that_is_said(
    job: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][0]
    monkeypatch.setattr(data_summary, "SAMPLE_ROWS", 10)
    sampled = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][0]
    exact, estimate = (found["splits"]["train"]["tokens"] for found in (whole, sampled))
    assert (estimate["is_estimate"], estimate["sampled_rows"]) == (True, 10)
    assert estimate["total"] == round(estimate["mean"] * 30)
    assert estimate["total"] == pytest.approx(exact["total"], rel=0.5)
    output = console("data", job, "--runs-dir", tmp_path / "runs").output
    assert f"about {estimate['total']:,}" in output
    assert "tokens of training rows, of 10 evenly spaced ones" in output


def test_a_person_reads_tables(job: Path, console: Console, tmp_path: Path) -> None:
    output = console("data", job, "--runs-dir", tmp_path / "runs").output
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in (
        "web (json)",
        "in the source 42",
        "left out by filter 1",
        "skipped: cannot be read or used 1",
        "dropped by near_duplicates 1",
        "left out by max_rows 7",
        "kept, in all splits 30",
        "scrubbed: 37 <email>",
    ):
        assert line in lines
    assert any(line.startswith("labels of train: ") for line in lines)
    assert any(line.startswith("> ") for line in lines)


def test_conversations_are_shown_as_the_stage_reads_them(console: Console, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hello"}]
    write_jsonl(tmp_path / "exam.jsonl", [{"chat": messages, "y": None}] * 3)
    write_jsonl(tmp_path / "web.jsonl", [{"text": text, "use": True} for text in make_texts(30)])
    text = JOB.replace("    label_column: y\n", "    label_column: y\n    messages_column: chat\n")
    text = text.replace("{name: sequence_classification, num_labels: 2}", "{name: supervised_finetuning}")
    text = text.replace("    validation_fraction: 0.4\n", "").replace(
        "    decontaminate: {against: [exam]}\n", ""
    )
    path = write_job(tmp_path, text)
    exam = console("data", path, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert exam["splits"]["train"]["rows"] == 3
    assert exam["splits"]["train"]["labels"] is None
    assert exam["samples"] == ["hello there\nhello"] * 3
    assert exam["splits"]["train"]["chars"] == 3 * len("hello therehello")


def test_of_pairs_the_characters_of_both_texts_are_counted(
    job: Path, console: Console, tmp_path: Path
) -> None:
    write_jsonl(
        tmp_path / "exam.jsonl", [{"text": f"ab{y}", "z": "\u00e4\u00f6", "y": y % 2} for y in range(9)]
    )
    text = job.read_text("utf-8").replace("    validation_fraction: 0.4\n", "    text_pair_column: z\n")
    job.write_text(text.replace("    decontaminate: {against: [exam]}\n", ""), "utf-8")
    exam = console("data", job, "--json", "--runs-dir", tmp_path / "runs").json()["datasets"][1]
    assert exam["splits"]["train"]["chars"] == 9 * 5


def test_a_missing_file_is_the_users_error(job: Path, console: Console, tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").unlink()
    ended = console("data", job, "--json", "--runs-dir", tmp_path / "runs")
    assert ended.code == 2
    assert "there is no file 'exam.jsonl'" in json.loads(ended.output)["errors"][0]["message"]


def test_a_histogram_has_every_row_in_one_range() -> None:
    import numpy as np

    found: list[dict[str, Any]] = _histogram(np.array([0, 1, 2, 3, 4, 5, 8, 9, 100]))
    assert [(bar["from"], bar["to"], bar["rows"]) for bar in found] == [
        (0, 1, 2),
        (2, 2, 1),
        (3, 4, 2),
        (5, 8, 2),
        (9, 16, 1),
        (17, 32, 0),
        (33, 64, 0),
        (65, 128, 1),
    ]


STREAMED = """\
name: tiny
tokenizer: {from: TOKENIZER}
datasets:
  web: {source: hub, path: some/web, streaming: true, on_bad_row: skip, validation_fraction: 0.2}
stages:
  - name: pretrain
    objective: {name: causal_lm}
    model: {config: {model_type: gpt2}}
    data: {mixture: {web: 1.0}, seq_len: 64}
    global_batch_size: 4
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer: {name: adamw, lr: 1e-3}
    schedule: {name: cosine, warmup_steps: 1}
    limits: {max_steps: 2}
"""


def test_of_a_streamed_dataset_the_first_file_of_a_folder_in_the_hubs_place_is_shown(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(put_in_hubs_place(tmp_path / "web", monkeypatch), make_records())
    job = write_job(tmp_path, STREAMED.replace("TOKENIZER", str(train_small(tmp_path))))
    runs = tmp_path / "runs"
    refused = console("data", job, "--runs-dir", runs)
    assert refused.code == 2
    assert (
        "datasets.web: streaming: true reads 'some/web' at revision 'main', expected a commit"
        in refused.errors
    )
    layout = RunLayout(runs / "tiny")
    layout.root.mkdir(parents=True)
    pin = {"repo": "some/web", "asked": None, "commit": COMMIT}
    layout.pins.write_text(json.dumps({"datasets.web": pin}))
    (web,) = console("data", job, "--json", "--runs-dir", runs).json()["datasets"]
    assert (web["first_of_files"], web["rows"]) == (4, 18)
    assert web["splits"]["train"]["rows"] + web["splits"]["validation"]["rows"] == 18
    text = console("data", job, "--runs-dir", runs).output
    assert "web (hub, streamed, the first of 4 files)" in text
    assert not list(runs.rglob("rows.arrow"))
    plan = console("plan", job, "--no-model", "--runs-dir", runs)
    assert plan.code == 0
