"""Metrics are known before anything runs: those that objectives give, and which checkpoint is the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from orchestrator.registry import resolve
from orchestrator.spec.metrics import best_mode, comparable_metrics
from tests.unit.objectives.test_objectives import token_info
from tests.unit.spec.jobs import VALID, complaints, first_stage, load

# Each with the shape of the statistics that its metrics are made of, for three labels.
OBJECTIVES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "causal_lm"}, (2,)),
    ({"name": "masked_lm"}, (2,)),
    ({"name": "masked_lm", "next_sentence": True}, (4,)),
    ({"name": "sequence_classification", "num_labels": 3}, (10,)),
    ({"name": "sequence_classification", "num_labels": 3, "problem": "multi_label"}, (12,)),
    ({"name": "sequence_classification", "problem": "regression", "num_values": 3}, (5, 6)),
    ({"name": "token_classification", "num_labels": 3}, (13,)),
    ({"name": "supervised_finetuning"}, (3,)),
]
SECTIONS: dict[str, dict[str, Any]] = {
    "token_classification": {"words_column": "words"},
    "supervised_finetuning": {"messages_column": "messages"},
}


def job(objective: dict[str, Any], best: dict[str, Any] | None = None, datasets: int = 1) -> str:
    """A job with one stage of this objective, evaluated on one dataset or more."""
    keys = yaml.safe_load(VALID)
    rows = {"source": "json", "files": "rows.jsonl", "validation_fraction": 0.1, "label_column": "y"}
    rows |= SECTIONS.get(objective["name"], {})
    keys["datasets"] |= {f"rows{number}": rows for number in range(datasets)}
    (stage,) = keys["stages"]
    stage |= {"objective": objective, "data": {"mixture": {"rows0": 1.0}, "seq_len": 64}}
    if objective["name"] in ("masked_lm", "token_classification"):
        stage["model"] = {"config": {"model_type": "bert"}}
        keys["tokenizer"]["train"]["algorithm"] = "wordpiece"
    if objective["name"] == "supervised_finetuning":
        objective["chat_template"] = "plain"
    stage["evaluation"] = {"datasets": [f"rows{number}" for number in range(datasets)], "every_steps": 4}
    stage["checkpoint"] = {"every_steps": 4} | ({"keep_best": best} if best else {})
    return yaml.safe_dump(keys, sort_keys=False)


@pytest.mark.parametrize(("section", "shape"), OBJECTIVES, ids=lambda value: str(value))
def test_the_metrics_are_those_that_the_objective_gives(
    section: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    stage = first_stage(load(tmp_path, job(section)))
    objective = resolve("objective", stage.objective.name)(stage.objective, token_info(), ["O", "B-x", "I-x"])
    found = objective.metrics(torch.ones(shape, dtype=torch.float64))
    # Which part of the tokens is learned is the same at every step.
    assert {f"eval/{name}" for name in found if name != "target_fraction"} == set(
        comparable_metrics(stage) or ()
    )


def test_each_dataset_of_several_has_its_own(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, job({"name": "causal_lm"}, datasets=2)))
    assert comparable_metrics(stage) == tuple(
        f"eval/rows{number}/{name}" for number in range(2) for name in ("loss", "perplexity")
    )


@pytest.mark.parametrize(
    ("metric", "mode"), [("eval/loss", "min"), ("eval/accuracy", "max"), ("eval/f1", "max")]
)
def test_the_best_is_what_the_metric_is_better_at(metric: str, mode: str, tmp_path: Path) -> None:
    section = {"name": "sequence_classification", "num_labels": 3}
    for best in ({"metric": metric}, {"metric": metric, "mode": mode}):
        assert best_mode(first_stage(load(tmp_path, job(section, best)))) == mode


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (
            {"metric": "eval/acuracy"},
            "metric: the stage's evaluation has no metric 'eval/acuracy'. Did you mean 'eval/accuracy'?",
        ),
        (
            {"metric": "train/x"},
            "metric: the stage's evaluation has no metric 'train/x'. Metrics: eval/loss, eval/accuracy,"
            " eval/precision, eval/recall, eval/f1, eval/matthews_correlation.",
        ),
        (
            {"metric": "eval/f1", "mode": "min"},
            "mode: 'min' keeps the worst, eval/f1 is better the higher it is; leave mode out",
        ),
        (
            {"metric": "eval/loss", "mode": "max"},
            "mode: 'max' keeps the worst, eval/loss is better the lower it is; leave mode out",
        ),
    ],
)
def test_a_metric_that_never_comes_and_the_worst_as_the_best_are_refused(
    best: dict[str, str], expected: str, tmp_path: Path
) -> None:
    (found,) = complaints(tmp_path, job({"name": "sequence_classification", "num_labels": 3}, best))
    assert found.partition("checkpoint.keep_best.")[2] == expected


def test_an_objective_of_ones_own_says_what_is_better(tmp_path: Path) -> None:
    section = {"name": "mine:Objective"}
    (found,) = complaints(tmp_path, job(section, {"metric": "eval/taste"}))
    assert found.endswith(
        "checkpoint.keep_best.mode: is missing, and only the objective 'mine:Objective' knows whether"
        " eval/taste is better when it is lower; set it to min or max"
    )
    stage = first_stage(load(tmp_path, job(section, {"metric": "eval/taste", "mode": "max"})))
    assert best_mode(stage) == "max"
