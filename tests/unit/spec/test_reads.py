"""What a stage reads by its job file: its own datasets, and the tokenizer and template of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.fields import columns_of
from orchestrator.spec.reads import chat_template, dataset_names, whole_kind
from tests.unit.data.corpus import section
from tests.unit.spec.jobs import load
from tests.unit.train.test_inputs import make_job

CHAT = """\
name: tiny
tokenizer: {from: gpt2}
datasets:
  chats: {source: json, files: chats.jsonl, messages_column: m}
defaults:
  data: {mixture: {chats: 1.0}, seq_len: 64}
  global_batch_size: 4
  micro_batch_size: 4
  strategy: {name: ddp}
  optimizer: {name: adamw, lr: 1e-3}
  schedule: {name: constant}
  limits: {max_steps: 1}
stages:
  - {name: base, objective: {name: causal_lm}, model: {config: {model_type: gpt2}}}
  - {name: first, objective: {name: supervised_finetuning, chat_template: plain}, init: {stage: base}}
  - {name: second, objective: {name: supervised_finetuning}, init: {stage: first}}
  - {name: other, objective: {name: supervised_finetuning}, init: {stage: base}}
"""


def test_a_stage_reads_its_rows_and_what_its_tokenizer_learned_from(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert dataset_names(job, job.stages[0]) == ["text", "rows"]  # type: ignore[arg-type]


def test_a_chat_template_is_handed_on_with_the_weights(tmp_path: Path) -> None:
    job = load(tmp_path, CHAT)
    found = {stage.name: chat_template(job, stage) for stage in job.stages}  # type: ignore[arg-type]
    assert found == {"base": None, "first": "plain", "second": "plain", "other": None}


@pytest.mark.parametrize("words", [{}, {"words_column": "w"}], ids=str)
@pytest.mark.parametrize(
    "turns", [{}, {"messages_column": "m"}, {"prompt_column": "p", "completion_column": "c"}], ids=str
)
def test_the_kind_of_a_whole_section_is_that_of_the_fields_read(
    words: dict[str, str], turns: dict[str, str]
) -> None:
    fields = {"text": "texts", "words": "words", "messages": "conversations", "prompt": "conversations"}
    dataset = section(source="json", files="a.jsonl", text_pair_column="b", **words, **turns)
    assert whole_kind(dataset) == fields[next(iter(columns_of(dataset)))]
