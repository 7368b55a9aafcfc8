"""``orchestrator predict``: the stage whose weights answer, its model, and the encoder of its rows.

The answers themselves are ``answers.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from launchers.answers import ANSWERS, Question, Trained
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.weights import check_weights
from orchestrator.contracts import Head, RowLayout
from orchestrator.data.encoders import encoder_for
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import PlanError
from orchestrator.heads import AUTO_CLASSES
from orchestrator.models import errors_only
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import load_resolved

HEADS: Mapping[str, Head] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForMaskedLM": "masked_lm",
    # Next-sentence models fill masks as any masked LM does.
    "ForPreTraining": "masked_lm",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
}
"""By the end of an architecture's name."""


def predict(
    run_dir: Path, *, stage: str | None, texts: Sequence[str], pairs: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One answer per text: labels, numbers, tags, a filled mask, generated text, or a reply.

    Args:
        stage: A training stage, or one that reads its weights; ``None``: the last training stage.
        pairs: Second texts, one for each text, where the stage classifies pairs.

    Raises:
        PlanError: The run has no such stage, it has no weights yet, or a text cannot be answered.
        CheckpointError: The weights are damaged.
    """
    _refuse_broken([*texts, *pairs])
    layout = RunLayout(run_dir)
    job = load_resolved(layout.job)
    chosen = _choose_stage(job, layout, stage)
    objective = resolve("objective", chosen.objective.name)
    check_weights(layout.stage(chosen.name))
    weights = layout.stage(chosen.name).weights
    head = _head_of(chosen, weights)
    rows = objective.row_layout(chosen.objective, chosen.data)
    questions = _questions(job, chosen, rows, texts, pairs)
    answer = ANSWERS["conversation" if rows.document == "conversation" else head]
    trained = _load(chosen, head, rows, weights)
    with torch.no_grad():
        return [{**_asked(question), **answer(trained, question)} for question in questions]


def _head_of(stage: TrainStage, weights: Path) -> Head:
    """What the written model predicts; a user's own objective need not say it.

    Raises:
        PlanError: Nothing that can be asked with a text.
    """
    architecture = (AutoConfig.from_pretrained(weights).architectures or ["unnamed model"])[0]
    for ending, head in HEADS.items():
        if architecture.endswith(ending):
            return head
    raise PlanError(
        f"stage '{stage.name}' trained a {architecture}, which predict cannot ask; expected a name that ends"
        f" with one of {', '.join(HEADS)}. Load {weights} with transformers"
    )


def _refuse_broken(texts: Sequence[str]) -> None:
    """Refuse what the command line could not decode.

    Raises:
        PlanError: Naming the text.
    """
    for number, text in enumerate(texts, start=1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PlanError(f"text {number}: found bytes that are no UTF-8, expected UTF-8: {text!r}")


def _asked(question: Question) -> dict[str, str]:
    """The texts of a question."""
    pair = {} if question.pair is None else {"text_pair": question.pair}
    return {"text": question.text, **pair}


def _questions(
    job: Job, stage: TrainStage, layout: RowLayout, texts: Sequence[str], pairs: Sequence[str]
) -> list[Question]:
    """Texts, each with its second one where the stage has learned pairs.

    Raises:
        PlanError: Second texts are missing, too many, or not what the stage has learned.
    """
    columns = [job.datasets[name].text_pair_column for name in stage.data.mixture]
    reads_pairs = layout.labelled and layout.document == "text" and any(columns)
    if pairs and not reads_pairs:
        raise PlanError(
            f"--text-pair: stage '{stage.name}' has learned single texts, no pairs; leave --text-pair out"
        )
    if not reads_pairs:
        return [Question(text) for text in texts]
    # A mixture of single texts and pairs has learned both.
    if len(pairs) != len(texts) and (pairs or all(columns)):
        raise PlanError(
            f"stage '{stage.name}' has learned pairs of texts, found {len(texts)} --text and {len(pairs)}"
            " --text-pair; give each text its second one, in the same order"
        )
    if not pairs:
        return [Question(text) for text in texts]
    return [Question(text, pair) for text, pair in zip(texts, pairs, strict=True)]


def _choose_stage(job: Job, layout: RunLayout, name: str | None) -> TrainStage:
    """The training stage asked for or read by the one asked for, or the last one; it has weights."""
    trained = [
        stage
        for stage in job.stages
        if isinstance(stage, TrainStage) and layout.stage(stage.name).weights.exists()
    ]
    if name is None:
        name = [stage.name for stage in job.stages if isinstance(stage, TrainStage)][-1]
    asked = job.stage(name)
    source = asked.name if isinstance(asked, TrainStage) else asked.from_
    for stage in trained:
        if stage.name == source:
            return stage
    reader = "" if source == name else f", which {asked.kind} stage '{name}' reads,"
    found = ", ".join(stage.name for stage in trained) or "none yet"
    raise PlanError(
        f"{layout.root}: stage '{source}'{reader} has no weights; stages with weights: {found}."
        " Run the job again, or name one of them with --stage"
    )


def _load(stage: TrainStage, head: Head, layout: RowLayout, folder: Path) -> Trained:
    """The model and tokenizer of a stage's weights."""
    tokenizer = load_tokenizer(folder)
    # One text is one document: framed, and cut at seq_len. A prompt is neither, so that no token is lost;
    # only the end token of packed documents follows it.
    alone = replace(layout, kind="packed" if head == "causal_lm" else "documents")
    # A head that no text asks for, such as that of the next sentence, stays out, and need not be told of.
    with errors_only():
        model = AUTO_CLASSES[head].from_pretrained(folder, dtype=torch.float32).eval()
    return Trained(stage, layout, encoder_for(alone, tokenizer, ()), tokenizer, model)
