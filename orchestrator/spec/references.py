"""Checks between sections of a job: names that must exist, and keys that must fit each other.

Each check yields key paths and messages; ``load.py`` adds files and lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.counts import counted
from orchestrator.spec.architectures import check_architecture
from orchestrator.spec.attention_heads import check_heads
from orchestrator.spec.dataset_rules import (
    check_chat_tokens,
    check_data,
    check_dataset,
    check_datasets,
    check_decontamination,
    check_evaluate,
    check_kinds,
    check_label_names,
    check_phone_regions,
    check_streaming,
)
from orchestrator.spec.early_stopping import check_early_stopping
from orchestrator.spec.float16 import check_loss_scale
from orchestrator.spec.job import EvaluateStage, Job, Stage, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.metrics import check_keep_best
from orchestrator.spec.optimization import Adafactor
from orchestrator.spec.packing_rules import check_after, check_packing
from orchestrator.spec.plan import batch_complaint, count_steps, input_stage, plan_batch, ramp_steps
from orchestrator.spec.positions import first_position
from orchestrator.spec.reproducibility import check_exact, exact_complaint
from orchestrator.spec.strategies import FSDP2Strategy, ZeROStrategy
from orchestrator.spec.sweep import check_points
from orchestrator.spec.tree import KeyPath

Complaint = tuple[KeyPath, str]
RESERVED = (
    "job.yaml",
    "submitted.yaml",
    "submission.json",
    "submission.lock",
    "plan.json",
    "pins.json",
    "environment.json",
    "events.jsonl",
    "driver.lock",
    "driver.log",
    "run_id",
    "stop",
)
"""Files of a run directory, beside which every stage has its folder."""
POSITIONS = ("max_position_embeddings", "n_positions")


def check(job: Job) -> Iterator[Complaint]:
    """Everything in ``job`` that contradicts something elsewhere in it."""
    yield from check_stage_names(job)
    yield from check_dataset_names(job)
    yield from check_fit(job)


def check_stage_names(job: Job) -> Iterator[Complaint]:
    """Names of stages that are not there, that wait for each other, or that two share."""
    yield from _check_names(job)
    yield from _check_order(job)


def check_dataset_names(job: Job) -> Iterator[Complaint]:
    """Names of datasets that are not there."""
    if job.tokenizer and job.tokenizer.train:
        yield from check_datasets(job, ("tokenizer", "train", "datasets"), job.tokenizer.train.datasets)
    for name, dataset in job.datasets.items():
        if dataset.decontaminate:
            path: KeyPath = ("datasets", name, "decontaminate", "against")
            yield from check_datasets(job, path, dataset.decontaminate.against)
    for index, stage in enumerate(job.stages):
        path = ("stages", index)
        if isinstance(stage, TrainStage):
            for name in stage.data.mixture:
                yield from check_dataset(job, (*path, "data", "mixture", name), name)
            if stage.evaluation:
                yield from check_datasets(job, (*path, "evaluation", "datasets"), stage.evaluation.datasets)
        elif isinstance(stage, EvaluateStage):
            yield from check_datasets(job, (*path, "datasets"), stage.datasets)


def check_fit(job: Job, untouched: Callable[[KeyPath], bool] = lambda path: True) -> Iterator[Complaint]:
    """Everything in ``job`` that contradicts something elsewhere in it, names aside.

    Args:
        untouched: Whether what stands at a path is what the file says; what reads anything else is left out.
    """
    yield from check_decontamination(job)
    yield from check_phone_regions(job)
    yield from check_label_names(job)
    yield from check_streaming(job)
    if untouched(("stages",)) and untouched(("tokenizer",)):
        yield from check_kinds(job)
        yield from check_chat_tokens(job)
    if job.sweep is not None and untouched(("sweep",)):
        yield from check_points(job.sweep)
    rule = job.sweep.early_stopping if job.sweep else None
    if rule is not None and untouched(("sweep",)) and untouched(("stages",)):
        yield from check_early_stopping(rule, job)
    for index, stage in enumerate(job.stages):
        path: KeyPath = ("stages", index)
        if isinstance(stage, EvaluateStage) and untouched(path):
            yield from check_evaluate(job, stage, path)
        if not isinstance(stage, TrainStage):
            continue
        for check, keys, sections in FITS:
            read = [*((*path, key) for key in keys), *((section,) for section in sections)]
            if all(untouched(key) for key in read):
                yield from check(job, stage, path)


def _check_names(job: Job) -> Iterator[Complaint]:
    seen: dict[str, int] = {}
    for index, stage in enumerate(job.stages):
        path: KeyPath = ("stages", index, "name")
        if stage.name in seen:
            yield path, f"'{stage.name}' is also the name of stages[{seen[stage.name]}]"
        seen.setdefault(stage.name, index)
        if stage.name in RESERVED:
            yield path, f"'{stage.name}' is a file of the run directory; give the stage another name"


def _check_order(job: Job) -> Iterator[Complaint]:
    """Stages that others read exist, train, and do not wait for each other."""
    # Reversed, so that of two stages of one name the first is meant.
    stages = {stage.name: stage for stage in reversed(job.stages)}
    is_clear = len(stages) == len(job.stages)
    trained = [stage.name for stage in job.stages if isinstance(stage, TrainStage)]
    for index, stage in enumerate(job.stages):
        name = input_stage(stage)
        key: KeyPath = ("init", "stage") if isinstance(stage, TrainStage) else ("from",)
        path = ("stages", index, *key)
        if name is None:
            continue
        if name not in stages:
            others = [other for other in trained if other != stage.name]
            hint = suggestion(name, list(dict.fromkeys(others)), plural="Training stages")
            yield path, f"no stage is called '{name}'.{hint}"
        elif name not in trained:
            yield path, f"'{name}' is of kind '{stages[name].kind}', which makes no weights"
        elif isinstance(stage, TrainStage) and is_clear and (chain := _cycle(stages, stage)):
            yield path, f"stages wait for each other: {' -> '.join(chain)}"


def _cycle(stages: dict[str, Stage], start: Stage) -> list[str] | None:
    """Names from ``start`` along its inputs back to itself, if they lead there."""
    chain = [start.name]
    name = input_stage(start)
    while name in stages and name not in chain:
        chain.append(name)
        name = input_stage(stages[name])
    return [*chain, start.name] if name == start.name else None


def _check_tokenizer(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """A model from scratch has a tokenizer that fits it."""
    if stage.model is None:
        return
    if job.tokenizer is None:
        yield (
            (*path, "model"),
            "a model from scratch needs a tokenizer: add a 'tokenizer' section,"
            " such as 'tokenizer: {from: gpt2}'",
        )
    vocabulary = stage.model.config.get("vocab_size")
    trained = job.tokenizer and job.tokenizer.train
    if isinstance(vocabulary, int) and trained and trained.vocab_size > vocabulary:
        yield (
            (*path, "model", "config", "vocab_size"),
            f"vocab_size {vocabulary} is smaller than the tokenizer's {trained.vocab_size};"
            " leave it out to use the tokenizer's",
        )


def _check_positions(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """A model, the stage's own or that of the stage it goes on from, has positions for its rows."""
    origin: Stage = stage
    names = {other.name: other for other in job.stages}
    for _ in job.stages:
        if isinstance(origin, TrainStage) and origin.model is None:
            origin = names.get(input_stage(origin) or "", origin)
    if not isinstance(origin, TrainStage) or origin.model is None:
        return
    config = origin.model.config
    for key in POSITIONS:
        positions = config.get(key)
        # A tokenizer's padding id is not known yet: 0 is the lowest.
        unused = first_position(config, pad_id=0)
        if isinstance(positions, int) and stage.data.seq_len > positions - unused:
            found = f"the model's {key} {positions}"
            if origin is not stage:
                found = f"{key} {positions} of the model of stage '{origin.name}'"
            rest = f", of which '{config['model_type']}' uses {positions - unused}" if unused else ""
            yield (
                (*path, "data", "seq_len"),
                f"seq_len {stage.data.seq_len} is longer than {found}{rest}",
            )


def _check_batch(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """The global batch can be split over the workers."""
    complaint = batch_complaint(stage, job.resources)
    # That of 'exact' names the numbers of workers that fit it as well.
    if complaint and exact_complaint(job, stage, job.resources) is None:
        yield (*path, "global_batch_size"), complaint


def _check_optimization(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    strategy, workers = stage.strategy, job.resources.num_workers
    if isinstance(strategy, FSDP2Strategy) and workers % strategy.replicate_degree:
        yield (
            (*path, "strategy", "replicate_degree"),
            f"replicate_degree {strategy.replicate_degree} does not divide num_workers {workers}",
        )
    shards = isinstance(strategy, ZeROStrategy) and strategy.stage >= 1
    if shards and isinstance(stage.optimizer, Adafactor):
        yield (
            (*path, "optimizer", "name"),
            "adafactor factors matrices, which zero 1 to 3 flatten; use strategy zero with"
            " stage 0, ddp or fsdp2, or the optimizer adamw",
        )
    warmup_steps, decay_steps = ramp_steps(stage.schedule)
    length = warmup_steps + decay_steps
    if batch_complaint(stage, job.resources) is None:
        num_steps = count_steps(stage.limits, plan_batch(stage, job.resources), None)
        if num_steps is not None and length > num_steps:
            parts = "warmup_steps + decay_steps" if decay_steps else "warmup_steps"
            yield (
                (*path, "schedule"),
                f"{parts} = {length} is longer than the stage, which has {counted(num_steps, 'step')}",
            )


Check = Callable[[Job, TrainStage, KeyPath], Iterator[Complaint]]
FITS: Sequence[tuple[Check, Sequence[str], Sequence[str]]] = (
    (check_data, ("objective", "data", "evaluation"), ()),
    (check_packing, ("objective", "data", "strategy"), ()),
    (check_after, ("data", "init"), ()),
    (check_architecture, ("model",), ()),
    (check_heads, ("model",), ()),
    (_check_tokenizer, ("model",), ("tokenizer",)),
    (_check_positions, ("model", "data", "init"), ()),
    (_check_batch, ("global_batch_size", "micro_batch_size"), ("resources",)),
    (
        _check_optimization,
        ("global_batch_size", "micro_batch_size", "strategy", "optimizer", "schedule", "limits"),
        ("resources",),
    ),
    (check_loss_scale, ("strategy", "loss_scale"), ()),
    (check_keep_best, ("checkpoint", "evaluation", "objective"), ()),
    (
        check_exact,
        ("global_batch_size", "micro_batch_size", "strategy", "optimizer"),
        ("resources", "reproducibility"),
    ),
)
"""Checks of a training stage, the keys of it that each reads, and the sections of the job."""
