"""Which ways of putting documents into rows an objective allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.strategies import DDPStrategy, ZeROStrategy
from orchestrator.spec.training import (
    MaskedLMObjective,
    SequenceClassificationObjective,
    SupervisedFinetuningObjective,
    TokenClassificationObjective,
)
from orchestrator.spec.tree import KeyPath

Complaint = tuple[KeyPath, str]
CHAT_TEMPLATES = ("plain", "chatml")
CLASSIFICATION = (SequenceClassificationObjective, TokenClassificationObjective)


def check_packing(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """What an objective's own way of laying out rows allows."""
    objective, data = stage.objective, stage.data
    if isinstance(objective, SupervisedFinetuningObjective):
        yield from _check_conversations(stage, path)
        return
    if isinstance(objective, SequenceClassificationObjective) and data.packing_mode == "best_fit":
        yield from _check_packed_labels(job, stage, path)
        return
    if isinstance(objective, CLASSIFICATION):
        rows = f"{objective.name} puts one document in each row"
    elif isinstance(objective, MaskedLMObjective) and objective.next_sentence:
        rows = "masked_lm with next_sentence puts one pair of segments in each row"
    else:
        return
    if data.packing_mode == "best_fit":
        yield (*path, "data", "packing"), f"{rows}, which 'best_fit' cannot pack; leave packing out"
    elif data.document_mask:
        yield (*path, "data", "document_mask"), f"{rows}: there is nothing to confine; leave it out"


def check_after(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """A stage goes on in the rows of one that has trained before it, and reads the same rows."""
    place, after = (*path, "data", "after"), stage.data.after
    if after is None:
        return
    earlier, name = None, stage.init.stage if stage.init else None
    origins: list[str] = []
    while name is not None and name not in origins:
        origins.append(name)
        found = next((found for found in job.stages if found.name == name), None)
        if not isinstance(found, TrainStage):
            break
        earlier, name = found if name == after else earlier, found.init.stage if found.init else None
    if earlier is None:
        names = ", ".join(f"'{origin}'" for origin in origins) or "none: set init: {stage: ...}"
        yield place, f"'{after}' is no stage that the weights come from; those are {names}"
        return
    if not set(stage.data.mixture) & set(earlier.data.mixture):
        yield place, f"'{after}' reads none of the datasets {', '.join(stage.data.mixture)}; leave it out"
    for key in ("seq_len", "packing_mode"):
        ours, theirs = getattr(stage.data, key), getattr(earlier.data, key)
        if ours != theirs:
            yield (
                place,
                f"rows of '{after}' have {key.removesuffix('_mode')} {theirs} and these {ours}, so none of"
                " these is one of those; leave it out",
            )


def _check_packed_labels(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """Packed rows of sequence_classification: documents apart, with one label each."""
    objective, data, strategy = stage.objective, stage.data, stage.strategy
    assert isinstance(objective, SequenceClassificationObjective)
    read = [*data.mixture, *(stage.evaluation.datasets if stage.evaluation else ())]
    for other in job.stages:
        read += other.datasets if isinstance(other, EvaluateStage) and other.from_ == stage.name else ()
    paired = [
        name for name in dict.fromkeys(read) if getattr(job.datasets.get(name), "text_pair_column", None)
    ]
    if objective.problem != "single_label" or paired:
        found = f"datasets {paired} have pairs of texts" if paired else f"problem is '{objective.problem}'"
        yield (
            (*path, "data", "packing"),
            f"'best_fit' packs texts with one label each, and {found}; leave packing out",
        )
    if not data.confines_documents:
        yield (
            (*path, "data", "document_mask"),
            "sequence_classification needs its packed documents apart; leave document_mask out",
        )
    if isinstance(strategy, DDPStrategy | ZeROStrategy) and strategy.compile:
        yield (
            (*path, "strategy", "compile"),
            "a model compiled as a whole cannot take sequence_classification's packed rows; set compile to"
            " false, use strategy fsdp2, which compiles blocks, or leave packing out",
        )


def _check_conversations(stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """Conversations are rows, whole ones side by side at most; their template is a name or a file."""
    assert isinstance(stage.objective, SupervisedFinetuningObjective)
    data, template = stage.data, stage.objective.chat_template
    if data.packing == "cut":
        yield (
            (*path, "data", "packing"),
            "supervised_finetuning keeps conversations whole, which 'cut' would cut anywhere; set"
            " 'best_fit' to put several in a row, or 'none'",
        )
    elif data.packing_mode == "best_fit" and data.document_mask is False:
        yield (
            (*path, "data", "document_mask"),
            "supervised_finetuning keeps conversations that share a row apart; leave document_mask out",
        )
    elif data.packing_mode != "best_fit" and data.document_mask:
        yield (
            (*path, "data", "document_mask"),
            "supervised_finetuning puts one conversation in each row unless packing is 'best_fit': there is"
            " nothing to confine; leave it out",
        )
    if template is not None and template not in CHAT_TEMPLATES:
        for message in _faults_of_template(template, stage.objective.chat_date):
            yield (*path, "objective", "chat_template"), message


def _faults_of_template(template: str, day: str | None) -> Iterator[str]:
    """What is wrong with the file of a chat template, as far as that is seen without Jinja."""
    if not os.path.exists(template):
        names = " nor ".join(map(repr, CHAT_TEMPLATES))
        yield f"'{template}' is neither {names}, and there is no such file"
        return
    try:
        text = Path(template).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        yield f"'{template}' cannot be read ({error}), expected a file of UTF-8 text"
        return
    if not text.strip():
        yield f"'{template}' is empty, so conversations would have no tokens"
    if "strftime_now" in text and day is None:
        yield (
            f"'{template}' writes today's date (strftime_now), so rows would differ from day to day; set"
            " chat_date to the day that it is told instead, such as '2026-12-31'"
        )
