"""By which metrics the evaluations of a stage can be compared, and in which direction each gets better.

Known before anything runs, so that no job waits for a metric that never comes, or keeps its worst checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.training import (
    MaskedLMObjective,
    Plugin,
    SequenceClassificationObjective,
    TokenClassificationObjective,
)
from orchestrator.spec.tree import KeyPath

Complaint = tuple[KeyPath, str]
LANGUAGE = ("loss", "perplexity")
PAIRS = ("loss", "mlm_loss", "mlm_perplexity", "nsp_loss")
PROBLEMS = {
    "single_label": ("loss", "accuracy", "precision", "recall", "f1", "matthews_correlation"),
    "multi_label": ("loss", "micro_f1", "macro_f1", "exact_match"),
    "regression": ("loss", "mse", "mae", "pearson", "spearman"),
}
# The last three where the tags are BIO tags.
TAGS = ("loss", "accuracy", "macro_f1", "precision", "recall", "f1")
FALLING = ("loss", "perplexity", "mse", "mae", "mlm_loss", "mlm_perplexity", "nsp_loss")
"""Metrics that are better when they are lower; all others when they are higher."""
LEVELS = {"min": "lower", "max": "higher"}


def comparable_metrics(stage: TrainStage) -> tuple[str, ...] | None:
    """Names under which a stage's evaluation may give them; ``None``: only its plug-in knows."""
    objective = stage.objective
    if isinstance(objective, Plugin) or stage.evaluation is None:
        return None
    names: tuple[str, ...] = LANGUAGE
    if isinstance(objective, MaskedLMObjective) and objective.next_sentence:
        names = PAIRS
    elif isinstance(objective, SequenceClassificationObjective):
        names = PROBLEMS[objective.problem]
    elif isinstance(objective, TokenClassificationObjective):
        names = TAGS
    datasets = stage.evaluation.datasets
    prefixes = ["eval/"] if len(datasets) == 1 else [f"eval/{dataset}/" for dataset in datasets]
    return tuple(f"{prefix}{name}" for prefix in prefixes for name in names)


def better(stage: TrainStage, metric: str) -> Literal["min", "max"] | None:
    """Whether the lowest or the highest value of a metric is the best; ``None``: only its plug-in knows."""
    names = comparable_metrics(stage)
    if names is None or metric not in names:
        return None
    return "min" if metric.rpartition("/")[2] in FALLING else "max"


def best_mode(stage: TrainStage) -> Literal["min", "max"]:
    """``keep_best.mode``, or what its metric is better at; the job is checked already."""
    best = stage.checkpoint.keep_best
    assert best is not None
    mode = best.mode or better(stage, best.metric)
    assert mode is not None
    return mode


def check_keep_best(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """Checkpoints that are compared were evaluated at their step, by a metric that there is."""
    best, place = stage.checkpoint.keep_best, (*path, "checkpoint", "keep_best")
    if best is None:
        return
    complaint = _unevaluated(stage)
    if complaint is not None:
        yield place, complaint
    names, direction = comparable_metrics(stage), better(stage, best.metric)
    if names is not None and best.metric not in names:
        yield (
            (*place, "metric"),
            f"the stage's evaluation has no metric '{best.metric}'."
            + suggestion(best.metric, list(names), plural="Metrics"),
        )
    elif direction is not None and best.mode not in (None, direction):
        yield (
            (*place, "mode"),
            f"'{best.mode}' keeps the worst, {best.metric} is better the {LEVELS[direction]} it is;"
            " leave mode out",
        )
    elif direction is None and best.mode is None and stage.evaluation is not None:
        yield (
            (*place, "mode"),
            f"is missing, and only the objective '{stage.objective.name}' knows whether {best.metric} is"
            " better when it is lower; set it to min or max",
        )


def _unevaluated(stage: TrainStage) -> str | None:
    """Why checkpoints have no evaluation of their step; ``None``: they have."""
    saved, evaluated = stage.checkpoint.every_steps, stage.evaluation and stage.evaluation.every_steps
    if not evaluated:
        found = "is missing" if stage.evaluation is None else "leaves every_steps out"
        example = f"evaluation: {{datasets: [...], every_steps: {saved}}}"
    elif saved % evaluated:
        found = f"has every_steps {evaluated}, which does not divide checkpoint.every_steps {saved}"
        example = f"evaluation.every_steps {saved}"
    else:
        return None
    return (
        f"compares evaluations at the steps of checkpoints, and the stage's evaluation {found}; set {example}"
    )
