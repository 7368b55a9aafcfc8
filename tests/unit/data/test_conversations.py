"""Conversations become tokens by a chat template; the assistant's tokens are told exactly, or refused."""

from __future__ import annotations

import datetime
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from orchestrator.contracts import RowLayout
from orchestrator.data.chat_template import CHATML, DIRECTIVES, prepare_chat_template
from orchestrator.data.conversations import ConversationEncoder, TemplateError
from orchestrator.data.encode import Encoded, Unfit
from orchestrator.data.loader import RowReader
from orchestrator.data.prepared import Meta
from orchestrator.data.sources import Source
from orchestrator.data.tokenizer import load_tokenizer, tokenizer_digest, vocabulary_digest
from orchestrator.errors import DataError
from tests.unit.data.corpus import make_texts, prepared, section, write_csv, write_jsonl

ALONE = RowLayout("documents", 200, framed=False, labelled=False, document="conversation")
# {% generation %} marks the assistant's text, so that transformers itself can tell its tokens.
MARKED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ 'Bot:' }}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.role + ': ' + message.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Bot:' }}{% endif %}"
)
# Forgets earlier answers, as templates that hide reasoning do.
FORGETFUL = (
    "{% for message in messages %}"
    "{{ message.role + ': ' + (message.content if loop.last or message.role == 'user' else '...') + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# A space at the end of the prompt, which byte-level tokenizers join to the answer's first word.
SPACED = MARKED.replace("'Bot:'", "'Bot: '").replace("' ' + message", "message")
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}" + MARKED
)


def say(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]


def encoder(folder: Path, template: str, layout: RowLayout = ALONE) -> ConversationEncoder:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return ConversationEncoder(layout, tokenizer)


def plain(folder: Path, cache: Path) -> Any:
    return load_tokenizer(prepare_chat_template(folder, "plain", cache))


def learned_text(tokenizer: Any, encoded: Any) -> list[str]:
    """The text of each run of learned tokens."""
    assert isinstance(encoded, Encoded)
    is_learned = np.array(encoded.targets) == 1
    runs = np.split(np.arange(len(is_learned)), np.flatnonzero(np.diff(is_learned)) + 1)
    return [tokenizer.decode([encoded.ids[i] for i in run]) for run in runs if is_learned[run[0]]]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_the_plain_template_learns_answers_and_their_end(
    algorithm: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = plain(request.getfixturevalue(algorithm), tmp_path)
    end = tokenizer.eos_token or tokenizer.sep_token
    made = ConversationEncoder(ALONE, tokenizer)
    (encoded,) = made.encode([say("who", "me", "why", "")])
    space = " " if algorithm == "bpe" else ""
    joint = "" if algorithm == "bpe" else " "
    assert learned_text(tokenizer, encoded) == [f"{space}me{joint}{end}", f"{space}{end}"]
    if algorithm == "bpe":
        assert tokenizer.decode(encoded.ids) == f"User: who\nAssistant: me{end}\nUser: why\nAssistant: {end}"
    assert tokenizer.convert_tokens_to_ids(end) in made.end_of_turn_ids()


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_an_answer_may_begin_a_conversation(template: str, bpe: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(prepare_chat_template(bpe, "plain", tmp_path))
    if template == "chatml":
        tokenizer.chat_template = CHATML
    made = ConversationEncoder(ALONE, tokenizer)
    messages = [{"role": "assistant", "content": "hello"}, *say("who", "me")]
    (encoded,) = made.encode([messages])
    found = [text.strip() for text in learned_text(tokenizer, encoded)]
    assert [text.partition("<")[0].strip() for text in found] == ["hello", "me"]


contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(contents, min_size=2, max_size=6))
def test_answers_are_those_that_transformers_finds_by_the_generation_mark(
    turns: list[str], bpe: Path
) -> None:
    made = encoder(bpe, MARKED)
    messages = say(*turns)
    tokenizer = load_tokenizer(bpe)
    expected = tokenizer.apply_chat_template(
        messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = np.array(expected["input_ids"])
    found = made._answers(messages, made.tokens(messages))
    assert made.tokens(messages).tolist() == ids.tolist()
    # A character of several tokens belongs to all of them, which transformers leaves to the first.
    missed = np.flatnonzero(found != np.array(expected["assistant_masks"]))
    assert all(found[place] == 1 and found[place - 1] == 1 for place in missed)
    if all(turn.isascii() for turn in turns):
        assert len(missed) == 0


def test_space_after_the_end_of_a_turn_is_not_learned(bpe: Path) -> None:
    made = encoder(bpe, MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    (encoded,) = made.encode([say("a", "b", "c", "d")])
    tokenizer = load_tokenizer(bpe)
    assert learned_text(tokenizer, encoded) == [" b<|endoftext|>", " d<|endoftext|>"]


@pytest.mark.parametrize(
    ("template", "messages", "problem"),
    [
        (FORGETFUL, say("a", "b", "c", "d"), "message 1 .* assistant's turn ends are not the first tokens"),
        (SPACED, say("a", "word"), "message 1 .* assistant's turn begins are not the first tokens"),
        (STRICT, say("a", "b")[1:], r"cannot render 1 messages \(roles: assistant\): the user speaks first"),
        (
            "{{ messages | nonsense }}",
            say("a", "b"),
            "cannot render 2 messages .*: No filter named 'nonsense'",
        ),
    ],
)
def test_a_template_by_which_turns_cannot_be_told_is_refused(
    template: str, messages: list[dict[str, str]], problem: str, bpe: Path
) -> None:
    (found,) = encoder(bpe, template).encode([messages])
    assert isinstance(found, Unfit)
    assert found.is_fault
    with pytest.raises(TemplateError, match=problem):
        raise TemplateError(found.problem)


def test_all_tokens_may_be_learned_by_any_template(bpe: Path) -> None:
    layout = RowLayout(
        "documents", 200, framed=False, labelled=False, document="conversation", train_on="all"
    )
    (found,) = encoder(bpe, FORGETFUL, layout).encode([say("a", "b", "c", "d")])
    assert isinstance(found, Encoded)
    assert set(found.targets or ()) == {1}


@pytest.mark.parametrize("seq_len", [2, 5, 8, 9, 10, 40])
def test_rows_are_cut_from_the_right_and_left_out_without_a_target(
    seq_len: int, tmp_path: Path, bpe: Path
) -> None:
    tokenizer = plain(bpe, tmp_path)
    (whole,) = ConversationEncoder(ALONE, tokenizer).encode([say("a", "bc de fg")])
    assert isinstance(whole, Encoded)
    first = list(whole.targets or ()).index(1)
    layout = RowLayout("documents", seq_len, framed=False, labelled=False, document="conversation")
    (found,) = ConversationEncoder(layout, tokenizer).encode([say("a", "bc de fg")])
    if seq_len <= first:
        assert found == Unfit(
            f"none of the first {seq_len} of {len(whole.ids)} tokens is to be learned", False
        )
        return
    assert isinstance(found, Encoded)
    assert (found.ids, found.targets) == (whole.ids[:seq_len], (whole.targets or ())[:seq_len])
    assert found.is_truncated == (seq_len < len(whole.ids))


def test_a_tokenizer_without_a_template_needs_one_to_be_named(tmp_path: Path, bpe: Path) -> None:
    with pytest.raises(DataError, match=r"needs a chat template, and the tokenizer in .* has none"):
        prepare_chat_template(bpe, None, tmp_path)
    with pytest.raises(DataError, match=r"'chatml' needs the tokens .* lacks <\|im_end\|>, <\|im_start\|>"):
        prepare_chat_template(bpe, "chatml", tmp_path)
    with pytest.raises(DataError, match=r"'no\.jinja' is neither 'plain' nor 'chatml'"):
        prepare_chat_template(bpe, "no.jinja", tmp_path)
    path = tmp_path / "own.jinja"
    path.write_text(MARKED)
    made = prepare_chat_template(bpe, str(path), tmp_path)
    assert load_tokenizer(made).chat_template == MARKED
    # It has one: nothing to make.
    assert prepare_chat_template(made, None, tmp_path) == made
    assert tokenizer_digest(made) != tokenizer_digest(prepare_chat_template(bpe, "plain", tmp_path))
    assert vocabulary_digest(made) == vocabulary_digest(prepare_chat_template(bpe, "plain", tmp_path))


def test_chatml_of_a_tokenizer_with_its_tokens(tmp_path: Path, bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path / "chat")
    tokenizer = load_tokenizer(prepare_chat_template(tmp_path / "chat", "chatml", tmp_path))
    made = ConversationEncoder(ALONE, tokenizer)
    (encoded,) = made.encode([[{"role": "system", "content": "be"}, *say("a", "b c", "d", "e")]])
    assert learned_text(tokenizer, encoded) == ["b c<|im_end|>", "e<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in made.end_of_turn_ids()


def conversations(path: Path, rows: list[dict[str, Any]], **keys: Any) -> Any:
    return section(source="json", files=str(write_jsonl(path, rows)), **keys)


@pytest.mark.parametrize("kind", ["documents", "best_fit"])
def test_prepared_rows_hold_the_mask_of_each_conversation(kind: Any, tmp_path: Path, bpe: Path) -> None:
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    texts = make_texts(60, longest=6)
    rows = [{"messages": say(*texts[at : at + 2 + at % 4])} for at in range(50)]
    dataset = conversations(tmp_path / "rows.jsonl", rows, messages_column="messages")
    layout = RowLayout(kind, 64, framed=False, labelled=False, document="conversation")
    made = prepared("chat", dataset, "train", layout, folder, tmp_path)
    reader = RowReader.open(made, seed=1, source_name="chat", document_mask=kind == "best_fit")
    found = []
    for row in reader.read(np.arange(reader.num_rows), 0):
        assert row.is_learned is not None
        ids = row.document_ids if row.document_ids is not None else np.zeros(len(row.input_ids))
        cuts = np.flatnonzero(np.diff(ids)) + 1
        found += list(zip(np.split(row.input_ids, cuts), np.split(row.is_learned, cuts), strict=True))
    encoded = ConversationEncoder(layout, load_tokenizer(folder)).encode([row["messages"] for row in rows])
    expected = [(one.ids, one.targets) for one in encoded if isinstance(one, Encoded)]
    assert sorted((ids.tolist(), mask.astype(int).tolist()) for ids, mask in found) == sorted(
        (list(ids), list(targets)) for ids, targets in expected
    )
    meta = Meta.open(made)
    assert meta.num_documents + meta.num_unfit == 50
    assert meta.num_split == 0
    assert meta.num_truncated > 0


def test_a_prompt_and_its_completion_are_a_conversation(tmp_path: Path, bpe: Path) -> None:
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    pairs = [(f"question {n}", f"answer {n}") for n in range(5)]
    columns = {"prompt_column": "q", "completion_column": "a"}
    both = conversations(tmp_path / "a.jsonl", [{"q": q, "a": a} for q, a in pairs], **columns)
    same = conversations(tmp_path / "b.jsonl", [{"m": say(*pair)} for pair in pairs], messages_column="m")
    found = []
    for dataset in (both, same):
        made = prepared("chat", dataset, "train", ALONE, folder, tmp_path)
        found.append([(made / name).read_bytes() for name in ("tokens.bin", "targets.bin")])
    assert found[0] == found[1]


def test_messages_may_hold_what_json_has_no_place_for(tmp_path: Path, bpe: Path) -> None:
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    rows = [
        [{"at": datetime.datetime(2024, 1, day), **turn} for turn in say("a", "b")] for day in (1, 2, 1, 1)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"m": rows}), path)
    dataset = section(source="parquet", files=str(path), messages_column="m", deduplicate=True)
    timed = prepared("timed", dataset, "train", ALONE, folder, tmp_path)
    untimed = conversations(tmp_path / "b.jsonl", [{"m": say("a", "b")}] * 2, messages_column="m")
    made = prepared("chat", untimed, "train", ALONE, folder, tmp_path)
    # The time tells two of them apart, and is no part of their tokens.
    assert (timed / "tokens.bin").read_bytes() == (made / "tokens.bin").read_bytes()


def test_calls_that_the_template_leaves_out_are_no_empty_answers(tmp_path: Path, bpe: Path) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    question, answer = say("where", "there")
    rows = [{"m": [question, calls, {"role": "tool", "content": "x"}, answer]}, {"m": [question, answer]}]
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    keys = {"messages_column": "m"}
    with pytest.raises(DataError, match=r"row 0 .*: message 1 \(counted from 0\) calls a tool, and the chat"):
        dataset = conversations(tmp_path / "a.jsonl", rows, **keys)
        prepared("chat", dataset, "train", ALONE, folder, tmp_path)
    dataset = conversations(tmp_path / "b.jsonl", rows, on_bad_row="skip", **keys)
    assert Meta.open(prepared("chat", dataset, "train", ALONE, folder, tmp_path)).num_documents == 1


def test_a_template_that_refuses_a_conversation_without_its_calls_is_one_that_reads_them(
    tmp_path: Path, bpe: Path
) -> None:
    template = tmp_path / "strict.jinja"
    empty = (
        "{% if not message.content and not message.tool_calls %}{{ raise_exception('nothing') }}{% endif %}"
    )
    call = "{% if message.tool_calls %}{{ message.tool_calls[0].function.name }}{% endif %}"
    marked = MARKED.replace("message.content + eos_token }}", "message.content }}" + call + "{{ eos_token }}")
    template.write_text(
        marked.replace("{% if message.role == 'assistant' %}", empty + "{% if message.role == 'assistant' %}")
    )
    folder = prepare_chat_template(bpe, str(template), tmp_path)
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    rows = [
        {"m": [*say("where"), calls, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}
    ]
    dataset = conversations(tmp_path / "rows.jsonl", rows, messages_column="m")
    assert Meta.open(prepared("chat", dataset, "train", ALONE, folder, tmp_path)).num_documents == 1


def test_the_place_of_a_row_is_looked_up_for_the_one_that_is_named(
    tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"m": say("a", "b")}, *[{"m": [{"role": "assistant", "content": "b"}] * 2}] * 5]
    folder = prepare_chat_template(bpe, str(strict_file(tmp_path)), tmp_path)
    dataset = conversations(tmp_path / "rows.jsonl", rows, messages_column="m", on_bad_row="skip")
    looked_up: list[int] = []
    place_of = Source.place_of
    monkeypatch.setattr(Source, "place_of", lambda self, row: (looked_up.append(row), place_of(self, row))[1])
    assert Meta.open(prepared("chat", dataset, "train", ALONE, folder, tmp_path)).num_documents == 1
    assert looked_up == [1]


def strict_file(folder: Path) -> Path:
    """A template that refuses conversations in which the user does not speak first."""
    path = folder / "user_first.jinja"
    path.write_text(STRICT)
    return path


BAD = {
    "no list": ("hello", "column 'm' holds 'hello', expected a list of messages"),
    "empty": ([], "column 'm' holds [], expected a list of messages"),
    "no content": (
        [{"role": "user", "content": None}],
        "column 'm', message 0 (counted from 0) has content None, expected a string",
    ),
    "another name for the assistant": (
        [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}],
        "column 'm', message 1 (counted from 0) has role 'gpt', of which nothing would be learned, expected"
        " 'assistant'",
    ),
}


def test_who_calls_a_tool_may_say_nothing(tmp_path: Path, bpe: Path) -> None:
    template = tmp_path / "tools.jinja"
    call = "{% if message.tool_calls %}{{ message.tool_calls[0].function.name }}{% endif %}"
    template.write_text(
        MARKED.replace("message.content + eos_token }}", "message.content }}" + call + "{{ eos_token }}")
    )
    folder = prepare_chat_template(bpe, str(template), tmp_path)
    question = {"role": "user", "content": "where"}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    says = {"role": "assistant", "content": "look"}
    rows = [{"m": [question, calls]}, {"m": [question, says]}]
    dataset = conversations(tmp_path / "rows.jsonl", rows, messages_column="m")
    reader = RowReader.open(
        prepared("chat", dataset, "train", ALONE, folder, tmp_path), seed=1, source_name="chat"
    )
    first, second = reader.read(np.arange(2), 0)
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.is_learned is not None
    assert first.is_learned.any()


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_is_no_conversation_is_named_or_skipped(case: str, tmp_path: Path, bpe: Path) -> None:
    value, problem = BAD[case]
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    good = [{"m": say("a", "b")}, {"m": say("c", "d")}]
    if case == "no list":
        rows, good = [{"m": value}], []
    else:
        rows = [*good, {"m": value}]
    path = tmp_path / "rows.jsonl"
    dataset = conversations(path, rows, messages_column="m")
    with pytest.raises(DataError) as caught:
        prepared("chat", dataset, "train", ALONE, folder, tmp_path)
    assert f"{path}: line {len(rows)}, row {len(rows) - 1} (counted from 0): {problem}." in str(caught.value)
    if good:
        dataset = conversations(path, rows, messages_column="m", on_bad_row="skip")
        assert Meta.open(prepared("chat", dataset, "train", ALONE, folder, tmp_path)).num_documents == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (json.dumps(say("\ud83d", "b")), "column 'm': the surrogate 0xd83d after 30 characters is not UTF-8"),
        (
            json.dumps([*say("a", "b"), {"role": "tool", "content": "c", "x": {"\ud83d": 1}}]),
            "column 'm': the surrogate 0xd83d after 114 characters is not UTF-8",
        ),
        ("[" * 100_000, "column 'm' holds '[[[[[[[["),
        ("[" * 900 + "]" * 900, "column 'm', message 0 (counted from 0) has role None, expected a string"),
        (
            '[{"role": "user", "content": "a", "x": ' + "[" * 600 + "]" * 600 + "}]",
            'column \'m\' holds \'[{"role": "user", "content": "a", "x": [[[',
        ),
        ("[" + "9" * 5000 + "]", "column 'm' holds '[99999"),
    ],
)
def test_json_text_that_is_no_conversation_is_named_or_skipped(
    text: str, problem: str, kind: str, tmp_path: Path, bpe: Path
) -> None:
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    path = tmp_path / f"rows.{kind}"
    texts = [json.dumps(say("a\U0001f600", "b")), text]
    if kind == "csv":
        write_csv(path, {"m": texts})
    else:
        parquet.write_table(pyarrow.table({"m": texts}), path)
    keys = {"source": kind, "files": str(path), "messages_column": "m"}
    with pytest.raises(DataError) as caught:
        prepared("chat", section(**keys), "train", ALONE, folder, tmp_path)
    place = "line 3, row 1" if kind == "csv" else "row 1"
    assert f"{path}: {place} (counted from 0): {problem}" in str(caught.value)
    made = prepared("chat", section(on_bad_row="skip", **keys), "train", ALONE, folder, tmp_path)
    assert Meta.open(made).num_documents == 1


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ 10 // (m.content | length) }}", "integer division or modulo by zero"),
        ("{{ 10.0 ** (400 if not m.content else 1) }}", "out of range"),
        ("{{ m.content + (1 if not m.content else '') }}", "can only concatenate str"),
        ("{{ m.content[0].nothing.more if not m.content }}", "str object has no element 0"),
        ("{% if not m.content %}{{ '%d' | format('x') }}{% endif %}", "%d format"),
        ("{% if not m.content %}{{ '\\ud83d' }}{% endif %}", "must be str"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{% if not m.content %}{{ f(1) }}{% endif %}", "recursion"),
    ],
)
def test_a_template_that_fails_on_a_row_leaves_that_row_out(template: str, problem: str, bpe: Path) -> None:
    loop = f"{{% for m in messages %}}{template}{{{{ '\n' + m.role + ':' }}}}"
    made = encoder(bpe, loop + "{{ m.content + eos_token }}{% endfor %}")
    layout = RowLayout("documents", 9, framed=False, labelled=False, document="conversation", train_on="all")
    made.layout = layout
    good, bad = made.encode([say("a", "b"), say("", "b")])
    assert isinstance(good, Encoded)
    assert isinstance(bad, Unfit)
    assert bad.is_fault
    assert bad.problem.startswith("the chat template cannot render 2 messages (roles: user, assistant): ")
    assert problem in bad.problem


def test_a_row_that_the_template_refuses_is_named_or_skipped(
    tmp_path: Path, bpe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT)
    folder = prepare_chat_template(bpe, str(template), tmp_path)
    path = tmp_path / "rows.jsonl"
    rows = [{"m": say("a", "b")}, {"m": say("a", "b")[1:]}]
    with pytest.raises(DataError) as caught:
        prepared("chat", conversations(path, rows, messages_column="m"), "train", ALONE, folder, tmp_path)
    assert f"{path}: line 2, row 1 (counted from 0): the chat template cannot render" in str(caught.value)
    dataset = conversations(path, rows, messages_column="m", on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        meta = Meta.open(prepared("chat", dataset, "train", ALONE, folder, tmp_path))
    assert (meta.num_documents, meta.num_unfit, meta.num_empty) == (1, 1, 0)
    assert "row 1 (counted from 0)" in caplog.text
    assert "1 more have nothing to learn within a row and were left out" in meta.summary()


def test_when_no_conversation_has_a_target_the_length_is_named(tmp_path: Path, bpe: Path) -> None:
    folder = prepare_chat_template(bpe, "plain", tmp_path)
    dataset = conversations(tmp_path / "rows.jsonl", [{"m": say("a " * 20, "b")}], messages_column="m")
    layout = RowLayout("documents", 10, framed=False, labelled=False, document="conversation")
    with pytest.raises(
        DataError, match=r"none of 1 rows has anything to learn in its first 10 tokens. Raise"
    ):
        prepared("chat", dataset, "train", layout, folder, tmp_path)


def test_datasets_without_conversations_are_refused(tmp_path: Path, bpe: Path) -> None:
    dataset = conversations(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"datasets\.chat: it has no conversations. Set messages_column"):
        prepared("chat", dataset, "train", ALONE, bpe, tmp_path)


def test_a_template_that_writes_the_date_is_told_the_jobs(bpe: Path) -> None:
    template = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + MARKED
    layout = replace(ALONE, chat_date="2026-12-31")
    made = encoder(bpe, template, layout)
    (found,) = made.encode([say("who", "me")])
    assert isinstance(found, Encoded)
    assert load_tokenizer(bpe).decode(found.ids).startswith("Today: 31 Dec 2026\n")
    begun = made.tokens([], asks=True)
    assert load_tokenizer(bpe).decode(begun).startswith("Today: 31 Dec 2026\n")
    with pytest.raises(DataError, match=r"writes today's date .* set objective\.chat_date"):
        encoder(bpe, template)


def test_a_template_without_an_end_of_turn_is_known(bpe: Path) -> None:
    assert encoder(bpe, MARKED).has_end_of_turn()
    assert not encoder(bpe, MARKED.replace("+ eos_token", "+ '<|end|>'")).has_end_of_turn()
    assert encoder(bpe, "{{ raise_exception('no') }}").has_end_of_turn(), "it cannot be told"


@given(
    day=st.dates(min_value=datetime.date(1990, 1, 1)),
    form=st.lists(st.sampled_from([*(f"%{code}" for code in DIRECTIVES), " ", "of", "-"]), max_size=6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_form_of_a_date_is_that_of_strftime(bpe: Path, day: datetime.date, form: list[str]) -> None:
    # A line break before the first block shows that nothing around it is trimmed.
    text = "".join(form)
    template = f"\n{{% if strftime_now is defined %}}<{{{{ strftime_now({text!r}) }}}}>{{% endif %}}" + MARKED
    made = encoder(bpe, template, replace(ALONE, chat_date=str(day)))
    expected = f"\n<{day.strftime(text)}>user: who\n"
    assert load_tokenizer(bpe).decode(made.tokens(say("who"))) == expected
