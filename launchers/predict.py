"""``orchestrator predict``: the stage whose weights answer, its model, and the encoder of its rows.

The answers themselves are ``answers.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launchers.answers import ANSWERS, Trained
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.contracts import Head, RowLayout
from orchestrator.data.encode import Encoder
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import PlanError
from orchestrator.models import AUTO_CLASSES
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import load_resolved


def predict(run_dir: Path, *, stage: str | None, texts: list[str]) -> list[dict[str, Any]]:
    """One answer per text: label with probabilities, filled mask, or generated text.

    Args:
        stage: A training stage, or one that reads its weights; ``None``: the last with weights.

    Raises:
        PlanError: The run has no such stage, it has no weights yet, or a text cannot be answered.
    """
    layout = RunLayout(run_dir)
    chosen = _choose_stage(load_resolved(layout.job), layout, stage)
    objective = resolve("objective", chosen.objective.name)
    # Next-sentence models fill masks as any masked LM does.
    head: Head = "masked_lm" if chosen.objective.name == "masked_lm" else objective.head
    rows = objective.row_layout(chosen.objective, chosen.data)
    trained = _load(chosen, head, rows, layout.stage(chosen.name).weights)
    with torch.no_grad():
        return [{"text": text, **ANSWERS[head](trained, text)} for text in texts]


def _choose_stage(job: Job, layout: RunLayout, name: str | None) -> TrainStage:
    """The training stage asked for or read by the one asked for, or the last that has weights."""
    trained = [
        stage
        for stage in job.stages
        if isinstance(stage, TrainStage) and layout.stage(stage.name).weights.exists()
    ]
    if name is None:
        if not trained:
            raise PlanError(f"{layout.root}: no training stage has weights yet")
        return trained[-1]
    asked = job.stage(name)
    source = asked.name if isinstance(asked, TrainStage) else asked.from_
    for stage in trained:
        if stage.name == source:
            return stage
    reader = "" if source == name else f", which {asked.kind} stage '{name}' reads,"
    found = ", ".join(stage.name for stage in trained) or "none yet"
    raise PlanError(f"{layout.root}: stage '{source}'{reader} has no weights; stages with weights: {found}")


def _load(stage: TrainStage, head: Head, layout: RowLayout, folder: Path) -> Trained:
    """The model and tokenizer of a stage's weights."""
    tokenizer = load_tokenizer(folder)
    # One text is one document: framed, and cut at seq_len. A prompt is neither, so that no token is lost;
    # only the end token of packed documents follows it.
    alone = replace(layout, kind="packed" if head == "causal_lm" else "documents")
    model = AUTO_CLASSES[head].from_pretrained(folder, dtype=torch.float32).eval()
    return Trained(stage, layout, Encoder(alone, tokenizer), tokenizer, model)
