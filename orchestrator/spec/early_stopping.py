"""Which runs of a sweep are compared while they train: by what, in which stage and at which steps.

Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"):
at step ``grace_steps``, and then each time at ``reduction_factor`` times the steps, a run is compared with
those that were there before it. The comparison itself is Ray Tune's (``launchers/asha.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from orchestrator.counts import counted
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.metrics import LEVELS, better, comparable_metrics
from orchestrator.spec.plan import batch_complaint, count_steps, plan_batch
from orchestrator.spec.sweep import EarlyStopping
from orchestrator.spec.tree import KeyPath

Complaint = tuple[KeyPath, str]
PLACE: KeyPath = ("sweep", "early_stopping")
TRAINING_LOSS = "train/loss"
"""Written by every training stage at its ``logging.every_steps``."""


def rule_of(job: Job) -> EarlyStopping | None:
    """By what the runs of a checked job are compared, with the stage and the mode that this means."""
    rule = job.sweep.early_stopping if job.sweep else None
    if rule is None:
        return None
    stage = _compared_stage(rule, job)
    assert stage is not None
    return rule.model_copy(update={"stage": stage.name, "mode": rule.mode or _direction(stage, rule.metric)})


def compared_steps(rule: EarlyStopping, num_steps: int) -> list[int]:
    """Steps at which runs of ``num_steps`` steps are compared, each by the first value from there on."""
    steps, step = [], rule.grace_steps
    while step < num_steps:
        steps.append(step)
        step *= rule.reduction_factor
    return steps


def check_early_stopping(rule: EarlyStopping, job: Job) -> Iterator[Complaint]:
    """Stages that are compared give the metric while they train, and early enough to stop one."""
    stage = _compared_stage(rule, job)
    if stage is None:
        yield _nothing_to_compare(rule, job)
        return
    direction = _direction(stage, rule.metric)
    if direction is not None and rule.mode not in (None, direction):
        yield (
            (*PLACE, "mode"),
            f"'{rule.mode}' stops the best runs, {rule.metric} is better the {LEVELS[direction]} it is;"
            " leave mode out",
        )
    elif direction is None and rule.mode is None:
        yield (
            (*PLACE, "mode"),
            f"is missing, and only the objective '{stage.objective.name}' knows whether {rule.metric} is"
            " better when it is lower; set it to min or max",
        )
    complaint = _never_in_time(rule, stage, job)
    if complaint is not None:
        yield (*PLACE, "grace_steps"), complaint


def check_run(rule: EarlyStopping, run: Job, first: Job) -> Iterator[Complaint]:
    """A run can be compared with the others of its sweep.

    Args:
        rule: ``rule_of`` the job that the sweep is of.
        first: The first run.
    """
    yield from check_early_stopping(rule, run)
    stage, other = _compared_stage(rule, run), _compared_stage(rule, first)
    if stage is None or other is None:
        return
    length, expected = _length(stage, run), _length(other, first)
    if None not in (length, expected) and length != expected:
        yield (
            ("stages", run.stages.index(stage), "limits"),
            f"'{run.name}' ends after {length} and '{first.name}' after {expected}, and early stopping"
            " compares runs at the same step, where the shorter would be nearer its end; let all end at the"
            " same step, or leave sweep.early_stopping out",
        )


def _candidates(rule: EarlyStopping, job: Job) -> list[TrainStage]:
    """Training stages that the rule may mean, in the order of the file."""
    trained = [stage for stage in job.stages if isinstance(stage, TrainStage)]
    return [stage for stage in trained if rule.stage in (None, stage.name)]


def _compared_stage(rule: EarlyStopping, job: Job) -> TrainStage | None:
    """The stage that is compared: the one named, or the first that gives the metric while it trains."""
    candidates = _candidates(rule, job)
    if rule.metric == TRAINING_LOSS:
        return next(iter(candidates), None)
    # Plug-ins may give any; a stage that surely gives it comes first.
    evaluating = [stage for stage in candidates if stage.evaluation and stage.evaluation.every_steps]
    sure = [stage for stage in evaluating if rule.metric in (comparable_metrics(stage) or ())]
    own = [stage for stage in evaluating if comparable_metrics(stage) is None]
    return next(iter([*sure, *own]), None)


def _direction(stage: TrainStage, metric: str) -> Literal["min", "max"] | None:
    """Which value is the best; ``None``: only the stage's plug-in knows."""
    return "min" if metric == TRAINING_LOSS else better(stage, metric)


def _nothing_to_compare(rule: EarlyStopping, job: Job) -> Complaint:
    """Why no stage gives the metric while it trains."""
    candidates = _candidates(rule, job)
    if not candidates:
        names = [stage.name for stage in job.stages if isinstance(stage, TrainStage)]
        hint = suggestion(str(rule.stage), names, plural="Training stages")
        return (*PLACE, "stage"), f"no training stage is called '{rule.stage}'.{hint}"
    late = [stage for stage in candidates if stage.evaluation and not stage.evaluation.every_steps]
    names = list(dict.fromkeys(name for stage in candidates for name in comparable_metrics(stage) or ()))
    stage = next((stage for stage in late if rule.metric in (comparable_metrics(stage) or ())), None)
    if stage is not None:
        return (
            (*PLACE, "metric"),
            f"stage '{stage.name}' gives {rule.metric} at its end alone, where no run is stopped; set"
            f" stages.{stage.name}.evaluation.every_steps",
        )
    if not any(stage.evaluation for stage in candidates):
        who = f"stage '{rule.stage}' has none" if rule.stage else "no stage has one"
        return (
            (*PLACE, "metric"),
            f"'{rule.metric}' would come from an evaluation, and {who}; add evaluation: {{datasets: [...],"
            f" every_steps: {rule.grace_steps}}}, or compare {TRAINING_LOSS}",
        )
    of_whom = f"the evaluation of stage '{rule.stage}'" if rule.stage else "no stage's evaluation"
    has = "has no" if rule.stage else "has a"
    return (
        (*PLACE, "metric"),
        f"{of_whom} {has} metric '{rule.metric}'."
        + suggestion(rule.metric, [*names, TRAINING_LOSS], plural="Metrics"),
    )


def _never_in_time(rule: EarlyStopping, stage: TrainStage, job: Job) -> str | None:
    """Why the first comparison is not where the rule says, or stops nobody; ``None``: it is well."""
    key, every_steps = _interval(rule, stage)
    if rule.grace_steps < every_steps:
        return (
            f"{rule.grace_steps} is below stages.{stage.name}.{key} {every_steps}, where {rule.metric} is"
            f" first known; set {every_steps} or more"
        )
    first = -(-rule.grace_steps // every_steps) * every_steps
    num_steps = _num_steps(stage, job)
    if num_steps is not None and first >= num_steps:
        return (
            f"{rule.grace_steps} makes step {first} the first comparison, and stage '{stage.name}' ends at"
            f" step {num_steps}, so no run would be stopped; lower it, or stages.{stage.name}.{key}"
        )
    return None


def _interval(rule: EarlyStopping, stage: TrainStage) -> tuple[str, int]:
    """Key and value of the steps between two values of the metric."""
    if rule.metric == TRAINING_LOSS:
        return "logging.every_steps", stage.logging.every_steps
    assert stage.evaluation is not None
    assert stage.evaluation.every_steps is not None
    return "evaluation.every_steps", stage.evaluation.every_steps


def _num_steps(stage: TrainStage, job: Job) -> int | None:
    """Steps of the stage; ``None`` where they depend on the data, or the batch cannot be split."""
    if batch_complaint(stage, job.resources) is not None:
        return None
    return count_steps(stage.limits, plan_batch(stage, job.resources), None)


def _length(stage: TrainStage, job: Job) -> str | None:
    """How long a stage trains, in words that are equal where the number of steps is."""
    if batch_complaint(stage, job.resources) is not None:
        return None
    steps = _num_steps(stage, job)
    if steps is not None:
        return counted(steps, "step")
    epochs = stage.limits.max_epochs
    assert epochs is not None
    rows = f"global_batch_size {stage.global_batch_size} and seq_len {stage.data.seq_len}"
    return f"{counted(epochs, 'epoch')} with {rows}"
