"""Does a model look ahead? Does it keep attention inside a document? Tried out before a stage begins.

An encoder such as BERT with a head for the next token sees that token, and its loss goes to 0 without a word.
An architecture may ignore the mask, count positions from the start of the row all the same, or mix
neighbours by something that is not attention; it would train without a word. So two documents are put in
one row, and the second one's logits must be those it has alone and must not depend on the first one.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.contracts import Batch, Head, Row, TokenInfo
from orchestrator.errors import ModelError
from orchestrator.objectives.document_heads import document_logits, document_places
from orchestrator.objectives.documents import document_fields, model_inputs
from orchestrator.objectives.language import pad_rows

# Enough to see every kind of leak; longer only where a window is told about, which could hide one.
NUM_TOKENS = 12
# Architectures that heed documents are off by 1e-6 to 5e-5 of what the missing mask changes, those that
# do not by 4e-3 and more (40 and 18 of transformers 5.23, float32). bfloat16 rounds to 4e-3 in itself.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# Change without a mask, relative to the logits, below which rounding could be mistaken for it.
SMALLEST_EFFECT = 1e-5
# Of logits that a later token changes, relative to the largest. Decoders have 0 in float32; BERT with fresh
# weights, whose attention is nearly even, 5e-4.
ROUNDING = {torch.float32: SMALLEST_EFFECT, torch.bfloat16: 2e-2}
ON_A_CPU = ("sdpa", "eager")


def check_confined(
    model: PreTrainedModel, tokens: TokenInfo, *, head: Head, seq_len: int, where: str
) -> None:
    """Refuse a model whose documents would influence each other, or whose positions would not begin anew.

    Args:
        model: float32, on the CPU; it is tried there, or as a copy on the GPU where its attention runs
            there only.
        head: Its head, which says how it is told of documents.
        where: What the message calls the stage.

    Raises:
        ModelError: It does not confine documents, cannot be called so, or the trial cannot tell.
    """
    attention = model.config._attn_implementation
    named = f"{where}: model_type '{model.config.model_type}' with attn_implementation '{attention}'"
    advice = "Set data.document_mask to false, or use an architecture such as gpt2, llama, qwen3 or bert"
    tried = model if attention in ON_A_CPU else _on_gpu(model, attention, named)
    was_training = tried.training
    tried.eval()
    try:
        with torch.no_grad():
            found = _try_out(tried, tokens, head=head, seq_len=seq_len)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{named} cannot be told where documents begin: {type(error).__name__}: {error}. {advice}."
        ) from error
    finally:
        tried.train(was_training)
    leak, shift, effect, scale = found
    if effect <= SMALLEST_EFFECT * scale:
        raise ModelError(
            f"{named}: cannot tell whether data.document_mask holds, as another document in the row changes"
            f" nothing (logits of {scale:.2g} by {effect:.2g}) even without it. {advice}."
        )
    if max(leak, shift) > TOLERANCE[tried.dtype] * effect:
        raise ModelError(
            f"{named} does not keep attention inside a document: another document before it changes"
            f" its logits by {leak:.2g}, and they are {shift:.2g} off those of the document alone, expected"
            f" about 0 (without the mask: {effect:.2g}). {advice}."
        )


def check_causal(model: PreTrainedModel, tokens: TokenInfo, *, seq_len: int, where: str) -> None:
    """Refuse a model whose logits depend on later tokens, one of which it is to predict.

    Args:
        model: As of ``check_confined``.
        where: As of ``check_confined``.

    Raises:
        ModelError: It looks ahead.
    """
    attention = model.config._attn_implementation
    named = f"{where}: model_type '{model.config.model_type}'"
    tried = model if attention in ON_A_CPU else _on_gpu(model, attention, named)
    length = min(NUM_TOKENS, seq_len)
    ordinary = np.setdiff1d(np.arange(tokens.vocab_size), tokens.special_ids)
    ids = np.random.default_rng(0).choice(ordinary, length, replace=length > len(ordinary))
    other = ids.copy()
    other[-1] = ids[0]
    was_training = tried.training
    tried.eval()
    try:
        with torch.no_grad():
            rows = torch.from_numpy(np.stack([ids, other])).to(tried.device)
            logits: Tensor = tried(input_ids=rows).logits.float()
    finally:
        tried.train(was_training)
    moved = (logits[0] - logits[1]).abs().amax(dim=-1)
    if length > 1 and moved[:-1].max() > ROUNDING[tried.dtype] * logits.abs().max():
        raise ModelError(
            f"{named} looks ahead: the last of {length} tokens changes its logits at those before by"
            f" {moved[:-1].max():.2g}, expected 0 (its own: {moved[-1]:.2g}), so it would see what it is to"
            " predict. Set model.config.is_decoder to true if its architecture can, take one for the next"
            " token such as gpt2 or llama, or use objective masked_lm."
        )


def _on_gpu(model: PreTrainedModel, attention: str, named: str) -> PreTrainedModel:
    """A copy on this process's GPU, in a dtype that the implementation takes."""
    if not torch.cuda.is_available():
        raise ModelError(f"{named} needs a GPU, and there is none. Use 'sdpa'.")
    dtype = torch.float32 if attention == "flex_attention" else torch.bfloat16
    return copy.deepcopy(model).to("cuda", dtype)


def _try_out(
    model: PreTrainedModel, tokens: TokenInfo, *, head: Head, seq_len: int
) -> tuple[float, float, float, float]:
    """How far the second document's logits move, at most, and how large they are.

    Returns:
        When the first document is another one; from those of the document alone; from those without a
        mask to those alone; and the largest logit.
    """
    first_length = min(NUM_TOKENS, seq_len // 2)
    second_length = min(NUM_TOKENS + 2 * _longest_window(model), seq_len - first_length)
    ordinary = np.setdiff1d(np.arange(tokens.vocab_size), tokens.special_ids)
    draw = np.random.default_rng(0).choice
    first, other, second = (draw(ordinary, length) for length in (first_length, first_length, second_length))
    document_ids = np.repeat([0, 1], [first_length, second_length])

    def confined(before: np.ndarray) -> Tensor:
        row = Row(np.concatenate([before, second]), document_ids=document_ids)
        batch = {
            "input_ids": pad_rows([row.input_ids], tokens.pad_id),
            "places": document_places([row]),
            **document_fields([row]),
        }
        batch = {name: value.to(model.device) for name, value in batch.items()}
        return _confined_logits(model, batch, tokens, head)[-second_length:]

    def plain(ids: np.ndarray) -> Tensor:
        logits: Tensor = model(input_ids=torch.from_numpy(ids)[None].to(model.device)).logits
        return logits[0].float()[-second_length:] if head != "sequence_classification" else logits.float()

    packed, alone = confined(first), plain(second)
    return (
        _distance(packed, confined(other)),
        _distance(packed, alone),
        _distance(plain(np.concatenate([first, second])), alone),
        alone.abs().max().item(),
    )


def _confined_logits(model: PreTrainedModel, batch: Batch, tokens: TokenInfo, head: Head) -> Tensor:
    """Logits of the only row's tokens, float32 ``(S, V)``; or of its second document, ``(1, C)``."""
    if head == "sequence_classification":
        return document_logits(model, batch, tokens.pad_id)[0, 1:]
    logits: Tensor = model(**model_inputs(model, batch, is_causal=head == "causal_lm")).logits
    return logits[0].float()


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    return (found - expected).abs().max().item()


def _longest_window(model: PreTrainedModel) -> int:
    """The longest span that local attention or chunks may be limited to, as the configuration has it."""
    keys = model.config.get_text_config().to_dict()
    spans = [
        value
        for key, value in keys.items()
        if isinstance(value, int) and any(word in key for word in ("window", "local", "chunk"))
    ]
    return max(spans, default=0)
