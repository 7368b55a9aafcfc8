"""``orchestrator predict``: answers from a finished stage's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.contracts import Head
from orchestrator.errors import PlanError
from orchestrator.models import AUTO_CLASSES
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import load_resolved

# Tokens generated after a prompt, and filled-in candidates shown for a mask.
NEW_TOKENS = 40
CANDIDATES = 5


def predict(
    run_dir: Path, *, stage: str | None, texts: list[str], max_new_tokens: int = NEW_TOKENS
) -> list[dict[str, Any]]:
    """One answer per text: label with probabilities, filled mask, or generated text.

    Raises:
        PlanError: The run has no such stage, or it has no weights yet.
    """
    job = load_resolved(RunLayout(run_dir).job)
    chosen = _choose_stage(job, run_dir, stage)
    folder = RunLayout(run_dir).stage(chosen.name).weights
    head = _head(chosen)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AUTO_CLASSES[head].from_pretrained(folder, dtype=torch.float32).eval()
    answer = ANSWERS[head]
    with torch.no_grad():
        return [answer(model, tokenizer, text, chosen, max_new_tokens) for text in texts]


def _head(stage: TrainStage) -> Head:
    """The head to answer with; next-sentence models fill masks as any masked LM does."""
    if stage.objective.name == "masked_lm":
        return "masked_lm"
    head: Head = resolve("objective", stage.objective.name).head
    return head


def _choose_stage(job: Job, run_dir: Path, name: str | None) -> TrainStage:
    """The stage asked for, or the last training stage that has weights."""
    layout = RunLayout(run_dir)
    trained = [
        stage
        for stage in job.stages
        if isinstance(stage, TrainStage) and layout.stage(stage.name).weights.exists()
    ]
    wanted = [stage for stage in trained if name in (None, stage.name)]
    if not wanted:
        found = [stage.name for stage in trained] or "none yet"
        asked = f"stage '{name}'" if name else "a training stage"
        raise PlanError(f"{run_dir}: {asked} has no weights; stages with weights: {found}")
    return wanted[-1]


def _classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    stage: TrainStage,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Label and probabilities."""
    encoded = tokenizer(text, truncation=True, max_length=stage.data.seq_len, return_tensors="pt")
    probabilities = model(**_model_inputs(encoded)).logits[0].softmax(-1).tolist()
    names = [model.config.id2label[index] for index in range(len(probabilities))]
    label = names[probabilities.index(max(probabilities))]
    return {
        "text": text,
        "label": label,
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }


def _fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    stage: TrainStage,
    max_new_tokens: int,
) -> dict[str, Any]:
    """The likeliest tokens for the first mask."""
    encoded = tokenizer(text, truncation=True, max_length=stage.data.seq_len, return_tensors="pt")
    places = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if not len(places):
        raise PlanError(f"text {text!r} has no mask; write {tokenizer.mask_token} where a token is missing")
    probabilities = model(**_model_inputs(encoded)).logits[0, places[0, 0]].softmax(-1)
    best = probabilities.topk(CANDIDATES)
    tokens = [tokenizer.decode([index]).strip() for index in best.indices.tolist()]
    filled = text.replace(str(tokenizer.mask_token), tokens[0], 1)
    return {
        "text": text,
        "filled": filled,
        "candidates": dict(zip(tokens, best.values.tolist(), strict=True)),
    }


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    stage: TrainStage,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Greedy continuation."""
    encoded = tokenizer(text or tokenizer.eos_token, return_tensors="pt")
    inputs = _model_inputs(encoded)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = max_new_tokens if positions is None else positions - inputs["input_ids"].shape[1]
    if room < 1:
        raise PlanError(
            f"text of {inputs['input_ids'].shape[1]} tokens fills the model's {positions} positions;"
            " shorten it"
        )
    output = model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"text": text, "generated": tokenizer.decode(output[0], skip_special_tokens=True)}


def _model_inputs(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the model was not trained with; one text needs no attention mask."""
    return {key: value for key, value in encoded.items() if key == "input_ids"}


ANSWERS: dict[Head, Callable[..., dict[str, Any]]] = {
    "sequence_classification": _classify,
    "masked_lm": _fill,
    "causal_lm": _generate,
}
