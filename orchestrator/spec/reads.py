"""What a stage reads, as its job says it: datasets, tokenizer and chat template, its own or inherited.

Rows are read as one of three kinds: a text (or a pair of them), a list of words, or a conversation.
"""

from __future__ import annotations

from typing import Literal

from orchestrator.spec.datasets import DatasetSection, Tokenizer
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.training import Plugin, SupervisedFinetuningObjective, TokenClassificationObjective

RowKind = Literal["texts", "words", "conversations"]


def dataset_names(job: Job, stage: TrainStage | EvaluateStage) -> list[str]:
    """Datasets that a stage reads, or that its tokenizer learns from."""
    trained = stage if isinstance(stage, TrainStage) else trained_stage(job, stage.from_)
    training = tokenizer_section(job, trained).train
    learned = training.datasets if training else ()
    if isinstance(stage, EvaluateStage):
        read = tuple(stage.datasets)
    else:
        read = (*stage.data.mixture, *(stage.evaluation.datasets if stage.evaluation else ()))
    return list(dict.fromkeys([*learned, *read]))


def row_kind(stage: TrainStage) -> RowKind | None:
    """As what a training stage reads rows; ``None``: its objective is the user's own, which alone knows."""
    if isinstance(stage.objective, SupervisedFinetuningObjective):
        return "conversations"
    if isinstance(stage.objective, TokenClassificationObjective):
        return "words"
    return None if isinstance(stage.objective, Plugin) else "texts"


def whole_kind(dataset: DatasetSection) -> RowKind:
    """As what rows are read by a tokenizer that learns from them and by what is compared with them."""
    if dataset.messages_column is not None or dataset.prompt_column is not None:
        return "conversations"
    return "texts" if dataset.words_column is None else "words"


def trained_stage(job: Job, name: str) -> TrainStage:
    """The training stage called ``name``; the job's references are already checked."""
    stage = job.stage(name)
    assert isinstance(stage, TrainStage)
    return stage


def read_before(job: Job, stage: TrainStage) -> dict[str, str]:
    """Datasets that a stage begins with the same rows as a stage before it, and the nearest such stage."""
    found: dict[str, str] = {}
    name = stage.init.stage if stage.init else None
    known = stage.data.after
    going_on = set() if known is None else set(trained_stage(job, known).data.mixture)
    while name is not None:
        earlier = trained_stage(job, name)
        for dataset in stage.data.mixture:
            if dataset in earlier.data.mixture and dataset not in going_on:
                found.setdefault(dataset, name)
        name = earlier.init.stage if earlier.init else None
    return found


def tokenizer_section(job: Job, stage: TrainStage) -> Tokenizer:
    """The tokenizer that a stage's first weights were made with, or the job's for a stage from scratch."""
    if stage.init is not None and stage.init.stage is not None:
        return tokenizer_section(job, trained_stage(job, stage.init.stage))
    if stage.init is not None and stage.init.pretrained is not None:
        origin = {"from": stage.init.pretrained, "revision": stage.init.revision}
        return Tokenizer.model_validate(origin)
    assert job.tokenizer is not None
    return job.tokenizer


def chat_template(job: Job, stage: TrainStage) -> str | None:
    """The chat template that a stage names, or else the nearest stage that its weights come from."""
    named: str | None = getattr(stage.objective, "chat_template", None)
    if named is None and stage.init is not None and stage.init.stage is not None:
        return chat_template(job, trained_stage(job, stage.init.stage))
    return named
