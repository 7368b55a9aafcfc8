"""What a trained model answers to one text: a label, tags, a filled mask, a continuation, or a reply.

A text is encoded by the code that made the stage's training rows, so a model is asked what it was trained
to answer. Where the weights come from is ``predict.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.contracts import Head, RowLayout
from orchestrator.data.conversations import ConversationEncoder, TemplateError
from orchestrator.data.encode import Encoded, Encoder
from orchestrator.data.tokenizer import METASPACE_STARTS
from orchestrator.data.words import WordEncoder
from orchestrator.errors import PlanError
from orchestrator.spec.job import TrainStage

# Tokens generated after a prompt and in reply to a question, and candidates shown for a mask.
NEW_TOKENS = 40
REPLY_TOKENS = 200
CANDIDATES = 5

METASPACE = METASPACE_STARTS[0]
# A label of a set is given where it is likelier than not.
LIKELY = 0.5
# What bytes decode to that are only a part of a character.
NO_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    text: str
    pair: str | None = None
    """The second text, where a model classifies pairs."""


@dataclass(frozen=True)
class Trained:
    """A stage's model, and what makes of a text the row that the stage would train on."""

    stage: TrainStage
    layout: RowLayout
    """The stage's own rows; ``encoder`` makes the same of one text alone."""
    encoder: Encoder
    tokenizer: Any
    model: PreTrainedModel

    def encode(self, question: Question) -> Encoded:
        """The question's row with its special tokens; empty where training leaves it out."""
        document = question.text if question.pair is None else (question.text, question.pair)
        (encoded,) = self.encoder.encode([document])
        return encoded if isinstance(encoded, Encoded) else Encoded([])

    def row(self, text: str) -> list[int]:
        """Token ids of one text's row."""
        return list(self.encode(Question(text)).ids)

    def logits(self, row: list[int], **inputs: Tensor) -> Tensor:
        """What the head says of a row, without the dimension of rows; one row needs no attention mask."""
        found: Tensor = self.model(input_ids=torch.tensor([row]), **inputs).logits[0]
        return found

    def output_names(self) -> list[str]:
        """Names of a classification head's outputs."""
        id2label = self.model.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones included, its spaces as the tokens have them."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def token_text(self, token_id: int) -> str:
        """A token's text with its own space, so that two tokens do not look the same."""
        name = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if name.startswith(METASPACE):
            # Decoded alone, such a token would begin the text and lose its space.
            return name.replace(METASPACE, " ")
        text = self.decode([token_id])
        return name if NO_CHARACTER in text else text


def _classify(trained: Trained, question: Question) -> dict[str, Any]:
    """Label and probabilities, the labels of a set, or numbers."""
    encoded = trained.encode(question)
    if not encoded.ids:
        raise PlanError(f"text {question.text!r} has no token to classify; give at least a word")
    logits = trained.logits(list(encoded.ids), **_segments(trained, question, encoded))
    names = trained.output_names()
    if trained.layout.labels == "numbers":
        return {"values": dict(zip(names, logits.tolist(), strict=True))}
    if trained.layout.labels == "classes":
        likely = dict(zip(names, logits.sigmoid().tolist(), strict=True))
        return {"labels": [name for name in names if likely[name] > LIKELY], "probabilities": likely}
    probabilities = logits.softmax(-1).tolist()
    label = names[probabilities.index(max(probabilities))]
    return {"label": label, "probabilities": dict(zip(names, probabilities, strict=True))}


def _segments(trained: Trained, question: Question, encoded: Encoded) -> dict[str, Tensor]:
    """Which text each token belongs to, for models that tell two texts apart."""
    if question.pair is None or getattr(trained.model.config, "type_vocab_size", 0) < 2:
        return {}
    is_second = torch.arange(len(encoded.ids)) >= encoded.second_begins
    return {"token_type_ids": is_second.long()[None]}


def _tag(trained: Trained, question: Question) -> dict[str, Any]:
    """A tag for each word that a row has room for; words are parted by space."""
    assert isinstance(trained.encoder, WordEncoder)
    words = question.text.split()
    row, first_words = trained.encoder.encode_words(words)
    tags: list[str | None] = [None] * len(words)
    if any(word is not None for word in first_words):
        names, best = trained.output_names(), trained.logits(row).argmax(-1).tolist()
        for word, output in zip(first_words, best, strict=True):
            if word is not None:
                tags[word] = names[output]
    if not words or all(tag is None for tag in tags):
        raise PlanError(f"text {question.text!r} has no word to tag; give at least a word")
    return {"words": words, "tags": tags}


def _fill(trained: Trained, question: Question) -> dict[str, Any]:
    """The likeliest tokens for the first mask, each with its own space."""
    text = question.text
    mask = str(trained.tokenizer.mask_token)
    # In training a mask stands for a token together with the space that the token begins with.
    spaceless = text.replace(f" {mask}", mask)
    row = trained.row(spaceless)
    if trained.tokenizer.mask_token_id not in row:
        raise PlanError(_missing_mask(trained, text, spaceless))
    place = row.index(trained.tokenizer.mask_token_id)
    best = trained.logits(row)[place].softmax(-1).topk(CANDIDATES)
    ids, probabilities = best.indices.tolist(), best.values.tolist()
    return {
        "filled": _filled(text, mask, _text_after(trained, row[:place], ids[0])),
        "candidates": [
            {"token": trained.token_text(token_id), "probability": probability}
            for token_id, probability in zip(ids, probabilities, strict=True)
        ],
    }


def _missing_mask(trained: Trained, text: str, spaceless: str) -> str:
    """Why the text's row has no mask."""
    mask, seq_len = trained.tokenizer.mask_token, trained.layout.seq_len
    whole = trained.tokenizer.backend_tokenizer.encode(spaceless, add_special_tokens=False).ids
    if trained.tokenizer.mask_token_id not in whole:
        return f"text {text!r} has no mask; write {mask} where a token is missing"
    return (
        f"text of {len(whole)} tokens is longer than stage '{trained.stage.name}' reads, and its mask is"
        f" token {whole.index(trained.tokenizer.mask_token_id) + 1}: rows end at data.seq_len {seq_len},"
        f" special tokens included. Shorten what stands before {mask}."
    )


def _text_after(trained: Trained, before: list[int], token_id: int) -> str:
    """The text that a token adds to that of the tokens before it, a space included."""
    start, both = trained.decode(before), trained.decode([*before, token_id])
    # Bytes of one character in two tokens: the first one's text changes.
    return both[len(start) :] if both.startswith(start) else trained.token_text(token_id)


def _filled(text: str, mask: str, token: str) -> str:
    """The text with its first mask replaced, a word being parted from the one before it once.

    A token without a space of its own continues the word before it, whatever stands before the mask;
    one with a space follows brackets and line breaks as the mask did.
    """
    before, _, after = text.partition(mask)
    start = before.removesuffix(" ")
    is_parted = start != before or start[-1:].isalnum()
    space = " " if token.startswith(" ") and is_parted else ""
    return start + space + token.removeprefix(" ") + after


def _continue(trained: Trained, question: Question) -> dict[str, Any]:
    """Greedy continuation."""
    prompt = _prompt(trained, question.text)
    output = _generate(trained, prompt, NEW_TOKENS)
    return {"generated": trained.tokenizer.decode(prompt + output, skip_special_tokens=True)}


def _reply(trained: Trained, question: Question) -> dict[str, Any]:
    """What the assistant replies to the text as a user's only message."""
    assert isinstance(trained.encoder, ConversationEncoder)
    try:
        prompt = trained.encoder.tokens([{"role": "user", "content": question.text}], asks=True).tolist()
        ends = trained.encoder.end_of_turn_ids()
    except TemplateError as error:
        raise PlanError(f"text {question.text!r}: {error}") from error
    output = _generate(trained, prompt, REPLY_TOKENS, eos_token_id=ends)
    return {"reply": trained.tokenizer.decode(output, skip_special_tokens=True).strip()}


def _generate(trained: Trained, prompt: list[int], num_tokens: int, **options: Any) -> list[int]:
    """The likeliest tokens after the prompt, as far as the model has positions.

    Raises:
        PlanError: It has none left.
    """
    config = trained.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    room = num_tokens if positions is None else positions - len(prompt)
    if room < 1:
        raise PlanError(f"text of {len(prompt)} tokens fills the model's {positions} positions; shorten it")
    input_ids = torch.tensor([prompt])
    output = trained.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=min(num_tokens, room),
        do_sample=False,
        pad_token_id=trained.tokenizer.pad_token_id,
        **options,
    )
    generated: list[int] = output[0, len(prompt) :].tolist()
    return generated


def _prompt(trained: Trained, text: str) -> list[int]:
    """The text's tokens without the end token; of an empty text, what stands before packed documents."""
    row = trained.row(text)
    if row:
        return row[:-1]
    if trained.layout.kind == "packed":
        return [trained.encoder.info.eos_id]
    raise PlanError(
        f"text {text!r} has no token to continue, and stage '{trained.stage.name}' has documents as rows"
        " (data.packing: false), which no token begins; give at least a word"
    )


ANSWERS: dict[Head | Literal["conversation"], Callable[[Trained, Question], dict[str, Any]]] = {
    "sequence_classification": _classify,
    "token_classification": _tag,
    "masked_lm": _fill,
    "causal_lm": _continue,
    "conversation": _reply,
}
"""By head; a causal model of conversations replies."""
