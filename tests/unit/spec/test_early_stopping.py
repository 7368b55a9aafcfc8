"""Early stopping of a sweep: what it compares, at which steps, and why it could not."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.early_stopping import compared_steps, rule_of
from orchestrator.spec.expand import expand
from orchestrator.spec.load import load_job
from orchestrator.spec.sweep import EarlyStopping
from tests.unit.spec.jobs import VALID, complaints, load, write_job

EVALUATED = VALID + "    evaluation: {datasets: [rfc], every_steps: 2}\n"
SECOND = """\
  - name: classify
    objective: {name: sequence_classification, num_labels: 3}
    init: {stage: pretrain}
    data: {mixture: {rfc: 1.0}, seq_len: 64}
    global_batch_size: 16
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer: {name: adamw, lr: 1e-3}
    schedule: {name: cosine, warmup_steps: 2}
    limits: {max_steps: 20}
    evaluation: {datasets: [rfc], every_steps: 4}
  - {name: test, kind: evaluate, from: classify, datasets: [rfc], split: validation}
"""


def swept(text: str, early_stopping: str, grid: str = "{seed: [1, 2]}") -> str:
    return f"{text}sweep: {{grid: {grid}, early_stopping: {early_stopping}}}\n"


@pytest.mark.parametrize(
    ("text", "keys", "stage", "mode"),
    [
        (EVALUATED, "{metric: eval/perplexity, grace_steps: 2}", "pretrain", "min"),
        (EVALUATED + SECOND, "{metric: eval/loss, grace_steps: 4}", "pretrain", "min"),
        (EVALUATED + SECOND, "{metric: eval/loss, grace_steps: 4, stage: classify}", "classify", "min"),
        # The first that gives it while it trains.
        (EVALUATED + SECOND, "{metric: eval/accuracy, grace_steps: 4}", "classify", "max"),
        (VALID + SECOND, "{metric: eval/loss, grace_steps: 4}", "classify", "min"),
        (
            VALID + "    logging: {every_steps: 3}\n",
            "{metric: train/loss, grace_steps: 3}",
            "pretrain",
            "min",
        ),
        (
            EVALUATED.replace("{name: causal_lm}", "{name: 'mine:Objective'}"),
            "{metric: eval/taste, mode: max, grace_steps: 2}",
            "pretrain",
            "max",
        ),
    ],
)
def test_a_rule_means_a_stage_and_a_direction(
    text: str, keys: str, stage: str, mode: str, tmp_path: Path
) -> None:
    rule = rule_of(load(tmp_path, swept(text, keys)))
    assert rule is not None
    assert (rule.stage, rule.mode, rule.reduction_factor) == (stage, mode, 4)


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        (
            EVALUATED,
            "{metric: eval/los, grace_steps: 2}",
            "metric: no stage's evaluation has a metric 'eval/los'. Did you mean 'eval/loss'?",
        ),
        (
            VALID,
            "{metric: quality, grace_steps: 2}",
            "metric: 'quality' would come from an evaluation, and no stage has one; add evaluation:"
            " {datasets: [...], every_steps: 2}, or compare train/loss",
        ),
        (
            EVALUATED + SECOND,
            "{metric: eval/accuracy, stage: pretrain, grace_steps: 4}",
            "metric: the evaluation of stage 'pretrain' has no metric 'eval/accuracy'."
            " Metrics: eval/loss, eval/perplexity, train/loss.",
        ),
        (
            VALID + "    evaluation: {datasets: [rfc]}\n",
            "{metric: eval/loss, grace_steps: 2}",
            "metric: stage 'pretrain' gives eval/loss at its end alone, where no run is stopped; set"
            " stages.pretrain.evaluation.every_steps",
        ),
        (
            EVALUATED + SECOND,
            "{metric: eval/loss, stage: clasify, grace_steps: 4}",
            "stage: no training stage is called 'clasify'. Did you mean 'classify'?",
        ),
        (
            EVALUATED + SECOND,
            "{metric: eval/loss, stage: test, grace_steps: 4}",
            "stage: no training stage is called 'test'. Training stages: pretrain, classify.",
        ),
        (
            EVALUATED,
            "{metric: eval/loss, mode: max, grace_steps: 2}",
            "mode: 'max' stops the best runs, eval/loss is better the lower it is; leave mode out",
        ),
        (
            EVALUATED.replace("{name: causal_lm}", "{name: 'mine:Objective'}"),
            "{metric: eval/taste, grace_steps: 2}",
            "mode: is missing, and only the objective 'mine:Objective' knows whether eval/taste is better"
            " when it is lower; set it to min or max",
        ),
        (
            EVALUATED,
            "{metric: eval/loss, grace_steps: 1}",
            "grace_steps: 1 is below stages.pretrain.evaluation.every_steps 2, where eval/loss is first "
            "known; set 2 or more",
        ),
        (
            EVALUATED,
            "{metric: eval/loss, grace_steps: 9}",
            "grace_steps: 9 makes step 10 the first comparison, and stage 'pretrain' ends at step 10, so no"
            " run would be stopped; lower it, or stages.pretrain.evaluation.every_steps",
        ),
        (
            VALID,
            "{metric: train/loss, grace_steps: 5}",
            "grace_steps: 5 is below stages.pretrain.logging.every_steps 10, where train/loss is first "
            "known; set 10 or more",
        ),
        (
            EVALUATED,
            "{metric: eval/loss, grace_steps: 2, reduction_factor: 1}",
            "reduction_factor: expected at least 2, found 1",
        ),
        (EVALUATED, "{metric: eval/loss}", "grace_steps: required, but missing; expected a whole number"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_line(
    text: str, keys: str, expected: str, tmp_path: Path
) -> None:
    text = swept(text, keys)
    (found,) = complaints(tmp_path, text)
    assert found == f"job.yaml:{len(text.splitlines())}: sweep.early_stopping.{expected}"


def test_it_is_not_judged_by_stages_that_are_wrong_themselves(tmp_path: Path) -> None:
    text = swept(EVALUATED.replace("every_steps: 2", "every_steps: 0"), "{metric: eval/loss, grace_steps: 2}")
    (found,) = complaints(tmp_path, text)
    assert found.endswith("stages[0].evaluation.every_steps: expected at least 1, found 0")


@pytest.mark.parametrize(
    ("grid", "place", "expected"),
    [
        (
            "{stages.pretrain.limits.max_steps: [10, 20]}",
            "job.yaml:23: stages[0].limits",
            "'tiny-1' ends after 20 steps and 'tiny-0' after 10 steps, and early stopping compares runs"
            " at the same step, where the shorter would be nearer its end; let all end at the same step, or"
            " leave sweep.early_stopping out",
        ),
        (
            "{stages.pretrain.limits: [{max_epochs: 2}], stages.pretrain.global_batch_size: [16, 8]}",
            "sweep, run 1: stages[0].limits",
            "'tiny-1' ends after 2 epochs with global_batch_size 8 and seq_len 64 and 'tiny-0' after",
        ),
        (
            "{stages.pretrain.evaluation: [{datasets: [rfc], every_steps: 2}, null]}",
            "sweep, run 1: sweep.early_stopping.metric",
            "'eval/loss' would come from an evaluation, and stage 'pretrain' has none; add evaluation:"
            " {datasets: [...], every_steps: 2}, or compare train/loss",
        ),
    ],
)
def test_a_run_that_cannot_be_compared_with_the_first_is_refused(
    grid: str, place: str, expected: str, tmp_path: Path
) -> None:
    path = write_job(tmp_path, swept(EVALUATED, "{metric: eval/loss, grace_steps: 2}", grid))
    with pytest.raises(SpecError) as raised:
        expand(load_job(path, env={}), path, lambda job: (), overrides=())
    (problem,) = raised.value.problems
    assert place in str(problem)
    assert problem.message.startswith(expected)


def test_other_batches_of_the_same_number_of_steps_are_compared(tmp_path: Path) -> None:
    grid = "{stages.pretrain.global_batch_size: [16, 8]}"
    path = write_job(tmp_path, swept(EVALUATED, "{metric: eval/loss, grace_steps: 2}", grid))
    assert len(expand(load_job(path, env={}), path, lambda job: (), overrides=())) == 2


@pytest.mark.parametrize(
    ("grace", "factor", "num_steps", "expected"),
    [(200, 3, 1000, [200, 600]), (10, 2, 80, [10, 20, 40]), (10, 2, 81, [10, 20, 40, 80]), (5, 4, 5, [])],
)
def test_steps_of_comparison_end_before_the_last_step(
    grace: int, factor: int, num_steps: int, expected: list[int]
) -> None:
    rule = EarlyStopping(metric="eval/loss", grace_steps=grace, reduction_factor=factor)
    assert compared_steps(rule, num_steps) == expected


def test_no_early_stopping_is_null(tmp_path: Path) -> None:
    path = write_job(tmp_path, swept(EVALUATED, "{metric: eval/loss, grace_steps: 2}"))
    job = load_job(path, overrides=["sweep.early_stopping=null"], env={})
    assert job.sweep is not None
    assert rule_of(job) is None
    assert rule_of(load(tmp_path)) is None
