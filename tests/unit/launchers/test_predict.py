"""predict: texts encoded as training rows are, spaces of filled masks, and stages that stand for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from launchers.predict import predict
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.loader import RowReader
from orchestrator.data.tokenizer import for_classification, load_tokenizer, save_tokenizer, token_info
from orchestrator.data.vocabulary import train_tokenizer
from orchestrator.errors import PlanError
from orchestrator.heads import AUTO_CLASSES
from orchestrator.models import build_auto_model, save_weights
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.spec.datasets import TokenizerTraining
from orchestrator.spec.load import dump_resolved, load_resolved
from tests.unit.data.corpus import prepared, section, write_jsonl
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, first_stage, load

TEXTS = [
    "a good film",
    "a bad film",
    "good films are (good)",
    "the film was good",
    "films\ngood and bad",
] * 20
HEADS = {
    "causal_lm": "gpt2",
    "masked_lm": "bert",
    "sequence_classification": "gpt2",
}
SIZES = {
    "gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16},
    "bert": {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    },
}
LATER = (
    "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc], split: validation}\n"
    "  - {name: export, kind: export, from: pretrain}\n"
)


def trained_tokenizer(folder: Path, algorithm: str) -> Any:
    """A tokenizer as this project trains it, whose vocabulary holds the words of ``TEXTS``."""
    training = {"algorithm": algorithm, "vocab_size": 340, "datasets": ["rfc"], "lowercase": False}
    if algorithm == "bpe":
        del training["lowercase"]
    tokenizer = train_tokenizer(TokenizerTraining.model_validate(training), lambda: [TEXTS])
    save_tokenizer(tokenizer, folder / algorithm)
    return load_tokenizer(folder / algorithm)


def sentencepiece_tokenizer(folder: Path) -> Any:
    """A tokenizer whose tokens carry their space as SentencePiece's do."""
    specials = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    tokens = [*specials, "\u2581a", "\u2581good", "good", "\u2581film", "\u2581"]
    backend = Tokenizer(models.Unigram([(token, -1.0) for token in tokens], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    names = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, specials, strict=True)))
    save_tokenizer(tokenizer, folder / "sentencepiece")
    return load_tokenizer(folder / "sentencepiece")


def finished_run(
    folder: Path,
    tokenizer: Any,
    objective: str,
    *,
    options: str = "",
    data: str = "seq_len: 16",
    favourites: tuple[str, ...] = (),
) -> RunLayout:
    """A run whose first stage has weights: random ones, or such that the favourites fill every mask."""
    text = VALID.replace("causal_lm", objective + options).replace("seq_len: 64", data) + LATER
    layout = RunLayout(folder / "run")
    layout.root.mkdir()
    layout.job.write_text(dump_resolved(load(folder, text)))
    labels = ("negative", "positive") if objective == "sequence_classification" else ()
    tokenizer = for_classification(tokenizer) if labels else tokenizer
    torch.manual_seed(3)
    config = {"model_type": HEADS[objective], **SIZES[HEADS[objective]], "initializer_range": 1.0}
    head = "pretraining" if "next_sentence" in options else objective
    model = build_auto_model(config, head, token_info(tokenizer), labels)
    if favourites:
        _prefer(model, [tokenizer.convert_tokens_to_ids(favourite) for favourite in favourites])
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_weights(model, weights, tokenizer, layout.stage("pretrain").weights)
    return layout


def _prefer(model: Any, token_ids: list[int]) -> None:
    """Let a masked LM predict these tokens everywhere, each e times as likely as the next."""
    for parameter in model.parameters():
        parameter.data.zero_()
    bias = model.cls.predictions.bias.data.fill_(-100.0)
    bias[token_ids] = -torch.arange(float(len(token_ids)))


def answer(layout: RunLayout, text: str, stage: str | None = None) -> dict[str, Any]:
    """The answer to one text."""
    (found,) = predict(layout.root, stage=stage, texts=[text])
    assert found["text"] == text
    return found


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens without special ones."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def saved_model(layout: RunLayout, objective: str) -> Any:
    """The model of the first stage's weights."""
    return AUTO_CLASSES[objective].from_pretrained(layout.stage("pretrain").weights).eval()


@torch.no_grad()
def logits_of(layout: RunLayout, objective: str, row: list[int]) -> torch.Tensor:
    """What the model says of a row, without its dimension of rows."""
    found: torch.Tensor = saved_model(layout, objective)(input_ids=torch.tensor([row])).logits[0]
    return found


def greedy(layout: RunLayout, ids: list[int], num_tokens: int) -> list[int]:
    """The likeliest continuation, one token after the other."""
    model = saved_model(layout, "causal_lm")
    ids = list(ids)
    for _ in range(num_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.config.eos_token_id:
            break
    return ids


def assert_refused(layout: RunLayout, messages: dict[Any, str]) -> None:
    """Each stage asked for is refused with its message."""
    for stage, message in messages.items():
        with pytest.raises(PlanError) as raised:
            answer(layout, "a film", stage=stage)
        assert str(raised.value) == f"{layout.root}: {message}"


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize("options", ["", ", next_sentence: true"])
def test_a_mask_is_asked_in_the_frame_and_with_the_tokens_of_training(
    algorithm: str, options: str, tmp_path: Path
) -> None:
    tokenizer = trained_tokenizer(tmp_path, algorithm)
    layout = finished_run(tmp_path, tokenizer, "masked_lm", options=options)
    found = answer(layout, f"the film {tokenizer.mask_token} good")
    # The row of the whole text with the token of " was" masked, as training masks it.
    row = [tokenizer.cls_token_id, *plain_ids(tokenizer, "the film was good"), tokenizer.sep_token_id]
    assert len(row) == 6
    row[3] = tokenizer.mask_token_id
    expected = logits_of(layout, "masked_lm", row)[3].softmax(-1).topk(5).values
    assert [each["probability"] for each in found["candidates"]] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_prompt_is_continued_without_special_tokens(algorithm: str, packing: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(tmp_path, algorithm)
    layout = finished_run(tmp_path, tokenizer, "causal_lm", data=f"seq_len: 4, packing: {packing}")
    # Longer than seq_len: a prompt is not cut, it has the model's positions.
    ids = plain_ids(tokenizer, "the film was good and bad")
    expected = greedy(layout, ids, 16 - len(ids))
    found = answer(layout, "the film was good and bad")
    assert found["generated"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert found["generated"].startswith("the film was good and bad")


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize("text", ["a good film", "a good film " * 20])
def test_a_text_is_classified_as_the_row_that_training_makes_of_it(
    algorithm: str, text: str, tmp_path: Path
) -> None:
    tokenizer = trained_tokenizer(tmp_path, algorithm)
    layout = finished_run(tmp_path, tokenizer, "sequence_classification")
    stage = first_stage(load_resolved(layout.job))
    rows = SequenceClassification.row_layout(stage.objective, stage.data)
    corpus = section(
        source="json",
        files=str(write_jsonl(tmp_path / "rows.jsonl", [{"text": text, "label": 1}])),
        label_column="label",
    )
    folder = prepared("rfc", corpus, "train", rows, tmp_path / algorithm, tmp_path / "cache")
    (row,) = RowReader.open(folder, seed=0, source_name="rfc").read(np.array([0]), 0)
    assert len(row.input_ids) <= 16
    logits = logits_of(layout, "sequence_classification", row.input_ids.tolist())
    found = answer(layout, text)
    assert list(found["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist())
    assert found["label"] == ("negative", "positive")[int(logits.argmax())]


def test_tokens_that_differ_by_a_space_are_two_candidates(tmp_path: Path, console: Console) -> None:
    tokenizer = trained_tokenizer(tmp_path, "bpe")
    names = ("\u0120good", "good", "\u00c3")
    layout = finished_run(tmp_path, tokenizer, "masked_lm", favourites=names)
    found = answer(layout, "a <|mask|> film")
    # The last one is the first byte of many letters, and no text by itself.
    assert [each["token"] for each in found["candidates"]][:3] == [" good", "good", "\u00c3"]
    shown = console("predict", layout.root, "--text", "a <|mask|> film")
    listed = "' good' 0.6652  'good' 0.2447  '\u00c3' 0.09003  "
    assert shown.output.startswith(f"a <|mask|> film\n  a good film  ({listed}")
    document = console("predict", layout.root, "--text", "a <|mask|> film", "--json").json()
    assert document == {"name": "run", "predictions": [found]}


def test_tokens_of_sentencepiece_keep_their_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer(tmp_path)
    layout = finished_run(tmp_path, tokenizer, "masked_lm", favourites=("\u2581good", "good"))
    found = answer(layout, "a <mask> film")
    assert found["filled"] == "a good film"
    assert [each["token"] for each in found["candidates"]][:2] == [" good", "good"]


@pytest.mark.parametrize(
    ("algorithm", "favourite", "text", "filled"),
    [
        ("bpe", "\u0120good", "A  fine, MASK film", "A  fine, good film"),
        ("bpe", "\u0120good", "a filmMASK", "a film good"),
        ("bpe", "\u0120good", "MASK film", "good film"),
        ("bpe", "\u0120good", "(MASK)", "(good)"),
        ("bpe", "\u0120good", "film\nMASK film", "film\ngood film"),
        ("bpe", "good", "film\nMASK film", "film\ngood film"),
        ("bpe", "s", "the film MASK", "the films"),
        ("bpe", "\u010a", "a film MASK good", "a film\n good"),
        ("wordpiece", "good", "A  fine, MASK film", "A  fine, good film"),
        ("wordpiece", "good", "a filmMASK", "a film good"),
        ("wordpiece", "good", "MASK film", "good film"),
        ("wordpiece", "good", "(MASK)", "(good)"),
        ("wordpiece", "good", "film\nMASK MASK", "film\ngood MASK"),
        ("wordpiece", "##s", "the film MASK", "the films"),
        ("wordpiece", "[UNK]", "the MASK", "the [UNK]"),
    ],
)
def test_a_filled_text_has_the_spaces_of_the_text_and_of_the_token(
    algorithm: str, favourite: str, text: str, filled: str, tmp_path: Path
) -> None:
    tokenizer = trained_tokenizer(tmp_path, algorithm)
    layout = finished_run(tmp_path, tokenizer, "masked_lm", favourites=(favourite,))
    mask = tokenizer.mask_token
    assert answer(layout, text.replace("MASK", mask))["filled"] == filled.replace("MASK", mask)


def test_a_mask_past_the_end_of_a_row_is_told_from_a_text_without_one(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(tmp_path, "wordpiece")
    layout = finished_run(tmp_path, tokenizer, "masked_lm")
    assert answer(layout, "a " * 13 + "[MASK] film")["candidates"]
    with pytest.raises(PlanError) as raised:
        answer(layout, "a " * 14 + "[MASK] film")
    assert str(raised.value) == (
        "text of 16 tokens is longer than stage 'pretrain' reads, and its mask is token 15: rows end at"
        " data.seq_len 16, special tokens included. Shorten what stands before [MASK]."
    )
    for text in ("a film", "a " * 20, ""):
        with pytest.raises(PlanError, match=r"has no mask; write \[MASK\] where a token is missing"):
            answer(layout, text)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_an_empty_prompt_begins_a_document_as_packed_rows_do(algorithm: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(tmp_path, algorithm)
    layout = finished_run(tmp_path, tokenizer, "causal_lm")
    assert (tokenizer.eos_token is None) == (algorithm == "wordpiece")
    end = tokenizer.sep_token_id if tokenizer.eos_token is None else tokenizer.eos_token_id
    expected = tokenizer.decode(greedy(layout, [end], 15), skip_special_tokens=True)
    assert answer(layout, "")["generated"] == expected


def test_an_empty_text_is_refused_where_no_row_looks_like_it(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(tmp_path, "wordpiece")
    (tmp_path / "whole").mkdir()
    layout = finished_run(tmp_path / "whole", tokenizer, "causal_lm", data="seq_len: 16, packing: false")
    with pytest.raises(PlanError, match=r"text '' has no token to continue, .* \(data.packing: false\)"):
        answer(layout, "")
    layout = finished_run(tmp_path, tokenizer, "sequence_classification")
    with pytest.raises(PlanError, match="text ' ' has no token to classify; give at least a word"):
        answer(layout, " ")


def test_a_prompt_that_fills_the_positions_is_refused(tmp_path: Path) -> None:
    layout = finished_run(tmp_path, trained_tokenizer(tmp_path, "wordpiece"), "causal_lm")
    assert answer(layout, "a " * 15)["generated"]
    with pytest.raises(PlanError, match="text of 16 tokens fills the model's 16 positions; shorten it"):
        answer(layout, "a " * 16)


def test_a_stage_that_reads_weights_answers_with_them(tmp_path: Path) -> None:
    layout = finished_run(tmp_path, trained_tokenizer(tmp_path, "bpe"), "causal_lm")
    expected = answer(layout, "a film", stage="pretrain")
    layout.stage("export").weights.mkdir(parents=True)
    for stage in ("test", "export", None):
        assert answer(layout, "a film", stage=stage) == expected


def test_a_stage_without_weights_is_refused_with_the_stage_that_would_make_them(tmp_path: Path) -> None:
    layout = finished_run(tmp_path, trained_tokenizer(tmp_path, "bpe"), "causal_lm")
    with pytest.raises(PlanError, match=r"no stage 'exprt'\. Did you mean 'export'\? Its stages: pretrain"):
        answer(layout, "a film", stage="exprt")
    layout.stage("pretrain").weights.rename(tmp_path / "elsewhere")
    weightless = (
        "has no weights; stages with weights: none yet. Run the job again, or name one of them with --stage"
    )
    messages = {
        "pretrain": f"stage 'pretrain' {weightless}",
        "test": f"stage 'pretrain', which evaluate stage 'test' reads, {weightless}",
        "export": f"stage 'pretrain', which export stage 'export' reads, {weightless}",
        None: f"stage 'pretrain' {weightless}",
    }
    assert_refused(layout, messages)


PLUGIN = """
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.spec.training import MaskedLMObjective

INNER = MaskedLMObjective(name="masked_lm", next_sentence=True)

class Mine(MaskedLM):
    def __init__(self, section, tokens, label_names):
        super().__init__(INNER, tokens, label_names)

    @classmethod
    def row_layout(cls, section, data):
        return super().row_layout(INNER, data)
"""


def test_weights_of_an_objective_of_ones_own_say_what_they_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = finished_run(
        tmp_path, trained_tokenizer(tmp_path, "wordpiece"), "masked_lm", options=", next_sentence: true"
    )
    expected = answer(layout, "the film [MASK] good")
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    text = VALID.replace("causal_lm", '"mine:Mine"').replace("seq_len: 64", "seq_len: 16")
    layout.job.write_text(dump_resolved(load(tmp_path, text)))
    assert answer(layout, "the film [MASK] good") == expected


def test_weights_that_answer_no_text_are_refused_by_name(tmp_path: Path) -> None:
    layout = finished_run(tmp_path, trained_tokenizer(tmp_path, "bpe"), "causal_lm")
    config = layout.stage("pretrain").weights / "config.json"
    config.write_text(config.read_text().replace("GPT2LMHeadModel", "GPT2DoubleHeadsModel"))
    with pytest.raises(PlanError, match="stage 'pretrain' trained a GPT2DoubleHeadsModel, which predict"):
        answer(layout, "a film")


def test_a_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"text 2: found bytes that are no UTF-8, expected UTF-8: 'a\\udcff'"):
        predict(tmp_path, stage=None, texts=["fine", "a\udcff"])
