"""Objectives and the columns they read, as a job file must say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.jobs import changed, complaints, load

COLUMNS = "    label_column: label\n"
MESSAGES = "    messages_column: chat\n"
LM = "{name: causal_lm}"
TAGS = "{name: token_classification, num_labels: 3}"
CHAT = "{name: supervised_finetuning}"


def job(objective: str, columns: str = COLUMNS, data: str = "seq_len: 64") -> str:
    return changed(LM, objective).replace(COLUMNS, columns).replace("seq_len: 64", data)


MISTAKES = {
    "values without regression": (
        job("{name: sequence_classification, problem: multi_label, num_values: 2}"),
        "num_values 2 belongs to problem 'regression', found 'multi_label'; leave it out, or set the problem",
    ),
    "unknown problem": (
        job("{name: sequence_classification, problem: multilabel}"),
        "expected one of 'single_label', 'multi_label', 'regression', found 'multilabel'",
    ),
    "number of tags": (job("{name: token_classification}"), "num_labels"),
    "no words": (
        job(TAGS),
        "'rfc' has no words_column, which token_classification reads. Give it one, such as",
    ),
    "no tags": (
        job(TAGS, "    words_column: w\n"),
        "dataset 'rfc' has no label_column, which token_classification reads. Give it one, such as",
    ),
    "names of tags": (
        job(TAGS, "    words_column: w\n    label_column: t\n    label_names: [a, b]\n"),
        "dataset 'rfc' has 2 label_names, and the objective of stage 'pretrain' has num_labels 3;",
    ),
    "names of numbers": (
        job(
            "{name: sequence_classification, problem: regression}",
            COLUMNS + "    label_names: [a, b]\n",
        ),
        "dataset 'rfc' has 2 label_names, and the objective of stage 'pretrain' has num_values 1;",
    ),
    "no conversations": (
        job(CHAT),
        "dataset 'rfc' has no conversations, which supervised_finetuning reads. Give it"
        " 'datasets.rfc.messages_column: messages', or prompt_column and completion_column",
    ),
    "half a conversation": (
        job(CHAT, "    prompt_column: q\n"),
        "prompt_column and completion_column make a conversation together, found 'q' alone; give"
        " completion_column too",
    ),
    "two kinds of conversation": (
        job(CHAT, MESSAGES + "    prompt_column: q\n    completion_column: a\n"),
        "messages_column 'chat' and prompt_column 'q' both say where conversations are; give one of them",
    ),
    "cut conversations": (
        job(CHAT, MESSAGES, "seq_len: 64, packing: cut"),
        "supervised_finetuning keeps conversations whole, which 'cut' would cut anywhere; set 'best_fit'",
    ),
    "mixed conversations": (
        job(CHAT, MESSAGES, "seq_len: 64, packing: best_fit, document_mask: false"),
        "supervised_finetuning keeps conversations that share a row apart; leave document_mask out",
    ),
    "nothing to confine": (
        job(CHAT, MESSAGES, "seq_len: 64, document_mask: true"),
        "puts one conversation in each row unless packing is 'best_fit': there is nothing to confine",
    ),
    "packed words": (
        job(TAGS, "    words_column: w\n    label_column: t\n", "seq_len: 64, packing: best_fit"),
        "token_classification puts one document in each row, which 'best_fit' cannot pack; leave packing out",
    ),
    "no template": (
        job("{name: supervised_finetuning, chat_template: plane}", MESSAGES),
        "'plane' is neither 'plain' nor 'chatml', and there is no such file",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_contradiction_is_named(case: str, tmp_path: Path) -> None:
    text, message = MISTAKES[case]
    found = complaints(tmp_path, text)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    "text",
    [
        job(CHAT, MESSAGES),
        job(CHAT, MESSAGES, "seq_len: 64, packing: best_fit"),
        job(
            "{name: supervised_finetuning, train_on: all}", "    prompt_column: q\n    completion_column: a\n"
        ),
        job(TAGS, "    words_column: w\n    label_column: t\n    label_names: [a, b, c]\n"),
        job("{name: sequence_classification, problem: regression, num_values: 3}"),
        job("{name: sequence_classification}", COLUMNS + "    text_pair_column: other\n"),
    ],
)
def test_what_fits_is_accepted(text: str, tmp_path: Path) -> None:
    load(tmp_path, text)


def test_a_template_file_lies_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    text = job("{name: supervised_finetuning, chat_template: own.jinja}", MESSAGES)
    assert load(tmp_path, text).stages[0].objective.chat_template == str(tmp_path / "own.jinja")  # type: ignore[union-attr]
    text = job("{name: supervised_finetuning, chat_template: plain}", MESSAGES)
    assert load(tmp_path, text).stages[0].objective.chat_template == "plain"  # type: ignore[union-attr]


def test_a_template_that_cannot_be_used_is_refused_by_the_file_alone(tmp_path: Path) -> None:
    (found,) = complaints(tmp_path, job("{name: supervised_finetuning, chat_template: chatml}", MESSAGES))
    assert "stages[0].objective: chat_template 'chatml' needs the tokens <|im_start|>" in found
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d') }}")
    objective = "{name: supervised_finetuning, chat_template: dated.jinja"
    (found,) = complaints(tmp_path, job(objective + "}", MESSAGES))
    assert "writes today's date (strftime_now)" in found
    load(tmp_path, job(objective + ", chat_date: 2026-12-31}", MESSAGES))
    faults = {b"\n": "is empty, so", "{{ 'é' }}".encode("latin-1"): "cannot be read ('utf-8' codec"}
    for content, message in faults.items():
        (tmp_path / "dated.jinja").write_bytes(content)
        (found,) = complaints(tmp_path, job(objective + "}", MESSAGES))
        assert message in found


def test_a_chat_date_is_a_day(tmp_path: Path) -> None:
    for day in ("2026-12-31", "'2026-12-31'"):
        text = job(f"{{name: supervised_finetuning, chat_date: {day}}}", MESSAGES)
        assert load(tmp_path, text).stages[0].objective.chat_date == "2026-12-31"  # type: ignore[union-attr]
    (found,) = complaints(tmp_path, job("{name: supervised_finetuning, chat_date: today}", MESSAGES))
    assert "chat_date: expected a day such as '2026-12-31', found 'today'" in found


def test_a_head_has_as_many_outputs_as_its_problem_needs(tmp_path: Path) -> None:
    cases = {
        "{name: sequence_classification}": 2,
        "{name: sequence_classification, problem: multi_label, num_labels: 5}": 5,
        "{name: sequence_classification, problem: regression}": 1,
    }
    for objective, outputs in cases.items():
        assert load(tmp_path, job(objective)).stages[0].objective.num_outputs == outputs  # type: ignore[union-attr]
