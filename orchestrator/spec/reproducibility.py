"""What ``reproducibility: exact`` cannot be kept for, refused where the job is read."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.spec.job import Job, Resources, TrainStage
from orchestrator.spec.strategies import DDPStrategy, FSDP2Strategy, ZeROStrategy
from orchestrator.spec.training import Plugin
from orchestrator.spec.tree import KeyPath

# Copies of a sharded model are added by torch, and two numbers in any order are one sum.
MAX_REPLICATE_DEGREE = 2
STANDARD = "or set 'reproducibility: standard'"


def check_exact(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Each choice under which another number of workers or strategy would change bits."""
    if job.reproducibility == "standard":
        return
    complaint = exact_complaint(job, stage, job.resources)
    if complaint:
        yield ("resources", "num_workers"), complaint
    if getattr(stage.optimizer, "fused", False):
        yield (
            (*path, "optimizer", "fused"),
            "reproducibility: exact needs an update that does not depend on how parameters are sharded,"
            f" and torch's fused kernel does; set 'fused: false', {STANDARD}",
        )
    for key, message in _strategy_complaints(stage):
        yield (*path, "strategy", key), f"{message}, {STANDARD}"


def exact_complaint(job: Job, stage: TrainStage, resources: Resources) -> str | None:
    """Why workers do not fit the tree of micro-batches that the job asks for, if it does; else ``None``."""
    num_workers = resources.num_workers
    num_micro, rest = divmod(stage.global_batch_size, stage.micro_batch_size)
    fits = num_workers & (num_workers - 1) == 0 and num_micro % num_workers == 0
    if job.reproducibility == "standard" or fits or rest:
        return None
    fitting = [1 << bit for bit in range(num_micro.bit_length()) if num_micro % (1 << bit) == 0]
    below = [number for number in fitting if number < num_workers][-1:]
    above = [number for number in fitting if number > num_workers][:1]
    return (
        f"reproducibility: exact adds the {num_micro} micro-batches of a step of stage '{stage.name}' in a"
        f" binary tree, so num_workers must be a power of two that divides {num_micro}, found {num_workers}."
        f" Nearest: {' or '.join(map(str, [*below, *above]))}; {STANDARD}"
    )


def _strategy_complaints(stage: TrainStage) -> Iterator[tuple[str, str]]:
    """Key of the strategy, and why it cannot be kept."""
    strategy = stage.strategy
    if isinstance(strategy, Plugin):
        yield "name", f"reproducibility: exact is not known of your own '{strategy.name}'; use one of ours"
        return
    assert isinstance(strategy, DDPStrategy | FSDP2Strategy | ZeROStrategy)
    for key in ("param_dtype", "reduce_dtype"):
        dtype = getattr(strategy, key, "float32")
        if dtype != "float32":
            yield (
                key,
                f"reproducibility: exact is kept in float32 alone, found {dtype}, in which strategies"
                " round at different places; set it to float32",
            )
    if strategy.compile:
        yield (
            "compile",
            "reproducibility: exact is not kept by compiled models, whose kernels differ between"
            " strategies; set 'compile: false'",
        )
    if isinstance(strategy, ZeROStrategy) and strategy.config is not None:
        yield (
            "config",
            f"reproducibility: exact is not known of your own DeepSpeed settings '{strategy.config}';"
            " leave them out",
        )
    if isinstance(strategy, FSDP2Strategy) and strategy.replicate_degree > MAX_REPLICATE_DEGREE:
        yield (
            "replicate_degree",
            f"reproducibility: exact adds at most {MAX_REPLICATE_DEGREE} copies of the sharded model, found"
            f" {strategy.replicate_degree}; lower it",
        )
