"""predict: pairs, sets of labels, numbers, tags of words, and replies in conversations."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from launchers.predict import predict
from launchers.run import next_commands
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.chat_template import prepare_chat_template
from orchestrator.data.tokenizer import for_classification, load_tokenizer, token_info
from orchestrator.errors import PlanError
from orchestrator.heads import AUTO_CLASSES
from orchestrator.models import build_auto_model, save_weights
from orchestrator.registry import resolve
from orchestrator.spec.load import dump_resolved, load_resolved
from tests.unit.launchers.commands import Console
from tests.unit.launchers.test_predict import SIZES, finished_run, trained_tokenizer
from tests.unit.spec.jobs import VALID, first_stage, load


def finished(
    folder: Path, algorithm: str, objective: str, columns: str, names: tuple[str, ...], kind: str
) -> RunLayout:
    """A run whose only stage has random weights."""
    text = VALID.replace("{name: causal_lm}", objective).replace("label_column: label", columns)
    job = load(folder, text.replace("seq_len: 64", "seq_len: 12"))
    layout = RunLayout(folder / "run")
    layout.root.mkdir()
    layout.job.write_text(dump_resolved(job))
    tokenizer = trained_tokenizer(folder, algorithm)
    if names:
        tokenizer = for_classification(tokenizer)
    else:
        tokenizer = load_tokenizer(prepare_chat_template(folder / algorithm, "plain", folder))
    torch.manual_seed(3)
    head = resolve("objective", first_stage(job).objective.name).head
    config = {"model_type": kind, **SIZES[kind], "initializer_range": 1.0}
    model = build_auto_model(config, head, token_info(tokenizer), names)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_weights(model, weights, tokenizer, layout.stage("pretrain").weights)
    return layout


def saved(layout: RunLayout, head: Any) -> tuple[Any, Any]:
    folder = layout.stage("pretrain").weights
    return AUTO_CLASSES[head].from_pretrained(folder).eval(), load_tokenizer(folder)


def ask(layout: RunLayout, text: str, *pairs: str) -> dict[str, Any]:
    (answer,) = predict(layout.root, stage=None, texts=[text], pairs=pairs)
    return answer


PAIR = "label_column: label\n    text_pair_column: other"


@torch.no_grad()
@pytest.mark.parametrize(("algorithm", "kind"), [("wordpiece", "bert"), ("bpe", "gpt2")])
def test_a_pair_is_classified_as_the_model_does_it_alone(algorithm: str, kind: str, tmp_path: Path) -> None:
    layout = finished(tmp_path, algorithm, "{name: sequence_classification}", PAIR, ("no", "yes"), kind)
    model, tokenizer = saved(layout, "sequence_classification")
    expected = model(**tokenizer("a good film", "a bad film", return_tensors="pt")).logits[0].softmax(-1)
    answer = ask(layout, "a good film", "a bad film")
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist())
    assert (answer["text"], answer["text_pair"]) == ("a good film", "a bad film")


def test_pairs_are_asked_as_pairs_and_single_texts_alone(tmp_path: Path, console: Console) -> None:
    layout = finished(tmp_path, "bpe", "{name: sequence_classification}", PAIR, ("no", "yes"), "gpt2")
    with pytest.raises(PlanError, match="has learned pairs of texts, found 1 --text and 0 --text-pair"):
        ask(layout, "a film")
    shown = console("predict", layout.root, "--text", "a film", "--text-pair", "good")
    assert shown.output.startswith(("a film\ngood\n  no  (no ", "a film\ngood\n  yes  (no "))
    (tmp_path / "single").mkdir()
    single = finished(
        tmp_path / "single",
        "bpe",
        "{name: sequence_classification}",
        "label_column: label",
        ("a", "b"),
        "gpt2",
    )
    with pytest.raises(PlanError, match="has learned single texts, no pairs; leave --text-pair out"):
        ask(single, "a film", "good")


@torch.no_grad()
def test_a_set_has_the_labels_that_are_likelier_than_not(tmp_path: Path, console: Console) -> None:
    objective = "{name: sequence_classification, problem: multi_label, num_labels: 4}"
    names = ("a", "b", "c", "d")
    layout = finished(tmp_path, "bpe", objective, "label_column: label", names, "gpt2")
    model, tokenizer = saved(layout, "sequence_classification")
    likely = model(**tokenizer("the film", return_tensors="pt")).logits[0].sigmoid()
    answer = ask(layout, "the film")
    assert answer["labels"] == [name for name, value in zip(names, likely, strict=True) if value > 0.5]
    assert list(answer["probabilities"].values()) == pytest.approx(likely.tolist())
    shown = console("predict", layout.root, "--text", "the film").output
    assert f"  {', '.join(answer['labels']) or 'no label'}  (a " in shown


@torch.no_grad()
def test_numbers_are_the_outputs_themselves(tmp_path: Path, console: Console) -> None:
    objective = "{name: sequence_classification, problem: regression, num_values: 2}"
    layout = finished(tmp_path, "bpe", objective, "label_column: label", ("x", "y"), "gpt2")
    model, tokenizer = saved(layout, "sequence_classification")
    expected = model(**tokenizer("the film", return_tensors="pt")).logits[0].tolist()
    assert ask(layout, "the film")["values"] == pytest.approx(dict(zip(("x", "y"), expected, strict=True)))
    assert console("predict", layout.root, "--text", "the film").output.startswith("the film\n  x ")


@torch.no_grad()
@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_each_word_has_the_tag_of_its_first_token(algorithm: str, tmp_path: Path, console: Console) -> None:
    objective = "{name: token_classification, num_labels: 3}"
    columns = "words_column: w\n    label_column: label"
    kind = "gpt2" if algorithm == "bpe" else "bert"
    layout = finished(tmp_path, algorithm, objective, columns, ("O", "B-X", "I-X"), kind)
    model, tokenizer = saved(layout, "token_classification")
    text = "the  filmgood was xyz"
    words = text.split()
    row = tokenizer(" ".join(words), return_tensors="pt", truncation=True, max_length=12)
    best = model(**row).logits[0].argmax(-1).tolist()
    begins = [0, 4, 13, 17]
    expected = []
    for begin in begins:
        # Byte-level words begin with the space before them.
        token = row.char_to_token(begin - 1 if algorithm == "bpe" and begin else begin)
        expected.append(None if token is None else model.config.id2label[best[token]])
    answer = ask(layout, text)
    assert answer["words"] == words
    assert answer["tags"] == expected
    shown = console("predict", layout.root, "--text", text).output
    assert f"  the/{expected[0]}  filmgood/{expected[1]}" in shown
    cut = ask(layout, "film " * 30)["tags"]
    assert cut[0] is not None
    assert cut[-1] is None
    with pytest.raises(PlanError, match="text ' ' has no word to tag"):
        ask(layout, " ")


@torch.no_grad()
def test_a_conversation_is_answered_through_its_template(tmp_path: Path, console: Console) -> None:
    layout = finished(tmp_path, "bpe", "{name: supervised_finetuning}", "messages_column: m", (), "gpt2")
    model, tokenizer = saved(layout, "causal_lm")
    question = [{"role": "user", "content": "the film"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    assert tokenizer.decode(prompt[0]) == "User: the film\nAssistant:"
    room = 16 - prompt.shape[1]
    if room < 1:
        with pytest.raises(PlanError, match="fills the model's 16 positions"):
            ask(layout, "the film")
        return
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=room, do_sample=False
    )
    expected = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert ask(layout, "the film")["reply"] == expected
    assert console("predict", layout.root, "--text", "the film").output == f"the film\n  {expected}\n"


CLASSIFIES = "{name: sequence_classification}"
REGRESSION = "{name: sequence_classification, problem: regression, num_values: 2}"
SETS = "{name: sequence_classification, problem: multi_label, num_labels: 2}"
TAGS = "{name: token_classification, num_labels: 2}"
WORDS = "words_column: w\n    label_column: label"
LABEL = "label_column: label"
NAMES = ("a", "b")


@pytest.mark.parametrize(
    ("objective", "columns", "names", "question"),
    [
        (CLASSIFIES, LABEL, NAMES, '--text "..."'),
        (CLASSIFIES, PAIR, NAMES, '--text "..." --text-pair "..."'),
        (SETS, PAIR, NAMES, '--text "..." --text-pair "..."'),
        (REGRESSION, LABEL, NAMES, '--text "..."'),
        (REGRESSION, PAIR, NAMES, '--text "..." --text-pair "..."'),
        (TAGS, WORDS, NAMES, '--text "..."'),
        ("{name: supervised_finetuning}", "messages_column: m", (), '--text "..."'),
    ],
)
def test_what_is_suggested_after_a_run_works(
    objective: str,
    columns: str,
    names: tuple[str, ...],
    question: str,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Room for a conversation's frame.
    monkeypatch.setitem(SIZES, "gpt2", {**SIZES["gpt2"], "n_positions": 64})
    layout = finished(tmp_path, "bpe", objective, columns, names, "gpt2")
    assert_works(layout, question, console)


@pytest.mark.parametrize(
    ("objective", "algorithm", "question"),
    [
        ("masked_lm", "wordpiece", '--text "... [MASK] ..."'),
        ("masked_lm", "bpe", '--text "... <|mask|> ..."'),
        ("causal_lm", "bpe", '--text "..."'),
    ],
)
def test_what_is_suggested_of_a_language_model_works(
    objective: str, algorithm: str, question: str, tmp_path: Path, console: Console
) -> None:
    layout = finished_run(tmp_path, trained_tokenizer(tmp_path, algorithm), objective)
    assert_works(layout, question, console)


def assert_works(layout: RunLayout, question: str, console: Console) -> None:
    """The commands after a run are these, and each ends well."""
    job = load_resolved(layout.job).model_copy(update={"name": layout.root.name})
    log = layout.stage("pretrain").log(0)
    log.parent.mkdir()
    log.write_text("text")
    commands = next_commands(job, layout, layout.root.parent)
    options = f"--runs-dir {layout.root.parent}"
    assert commands == [
        f"orchestrator predict run --stage pretrain {options} {question}",
        f"orchestrator status run {options}",
        f"orchestrator logs run --stage pretrain {options}",
    ]
    for command in commands:
        ended = console(*shlex.split(command)[1:])
        assert (ended.code, ended.errors) == (0, ""), command
