"""What a stage's trajectory shares with the same stage on another strategy or number of workers.

Measured, not derived: ``tests/distributed`` holds the bitwise promises; the tolerances are the largest
differences seen over some tens of steps of GPT-2, Llama and BERT models.
"""

from __future__ import annotations

from orchestrator.counts import counted
from orchestrator.spec.job import Resources, TrainStage
from orchestrator.spec.plan import plan_batch
from orchestrator.spec.strategies import FSDP2Strategy, Strategy, ZeROStrategy
from orchestrator.spec.training import Plugin, Reproducibility

BITWISE = "bit-identical on ddp, fsdp2, zero 0-3 at 1 and 2 workers"
EXACT = "bit-identical on ddp, fsdp2, zero 0-3 at 1, 2, 4, 8, ... workers"
ORDER_OF_SUMMATION = "otherwise equal up to the order of summation (about 1e-6)"
SUMMATION, FUSED, COMPILED = 1e-6, 5e-7, 2e-7
"""What is promised within about as much, relative to the loss."""
# Strategies that add a step's micro-batches in one order at one number of workers.
SAME_ORDER = ({"ddp", "fsdp2", "zero 0", "zero 1"}, {"zero 2", "zero 3"})
SAME_ROUNDING = {
    "bfloat16": {"fsdp2", "zero 2", "zero 3"},
    "float16": {"fsdp2", "zero 1", "zero 2", "zero 3"},
}
"""By dtype, strategies that round at the same places; with ddp (autocast) they agree within about 1e-4."""
# Adding two numbers gives the same bits in either order; adding more does not.
MAX_ORDER_FREE_TERMS = 2


def promise(stage: TrainStage, resources: Resources, reproducibility: Reproducibility = "standard") -> str:
    """What may change without changing the result, and by how much it changes otherwise.

    Raises:
        PlanError: The global batch cannot be split.
    """
    batch = plan_batch(stage, resources)
    strategy = stage.strategy
    if reproducibility == "exact":
        # What it cannot be kept for is refused where the job is read.
        return EXACT if resources.gpus_per_worker == 0 else f"{EXACT}; measured on CPUs alone"
    if isinstance(strategy, Plugin):
        return "not promised: the strategy is your own"
    if isinstance(strategy, ZeROStrategy) and strategy.config is not None:
        return "not promised: the DeepSpeed settings are your own"
    if isinstance(strategy, FSDP2Strategy) and strategy.reduce_dtype != "float32":
        return "not promised: gradients are summed in bfloat16"
    is_order_free = batch.world_size * batch.grad_accum_steps <= MAX_ORDER_FREE_TERMS
    workers = "" if is_order_free else f" at {counted(batch.world_size, 'worker')}"
    inexact = _inexact_choices(stage, strategy, workers)
    if is_order_free:
        return "; ".join(inexact) or BITWISE
    if inexact:
        return "; ".join([*inexact, ORDER_OF_SUMMATION])
    return (
        f"bit-identical among ddp, fsdp2, zero 0 and zero 1{workers},"
        f" and between zero 2 and zero 3; {ORDER_OF_SUMMATION}"
    )


def _inexact_choices(stage: TrainStage, strategy: Strategy, workers: str) -> list[str]:
    """Each choice that gives up bits, and what holds instead; ``workers``: at how many, if that matters."""
    found = []
    dtype = getattr(strategy, "param_dtype", "float32")
    if dtype == "bfloat16":
        found.append(
            f"bfloat16: bit-identical among fsdp2, zero 2 and zero 3{workers}; ddp within about 1e-4"
        )
    if dtype == "float16":
        # Measured: near the largest scale, ddp (autocast) overflows at other steps of Llama and BERT models.
        found.append(
            "float16: bit-identical among fsdp2, zero 1, zero 2 and zero 3; ddp within about 1e-4 while the"
            " same steps overflow"
        )
    if getattr(stage.optimizer, "fused", False):
        found.append("fused AdamW: strategies agree within about 5e-7")
    if getattr(strategy, "compile", False):
        found.append("compile: strategies agree within about 2e-7")
    return found


def agreement(
    stage: TrainStage,
    other: Strategy,
    num_workers: tuple[int, int],
    reproducibility: Reproducibility = "standard",
) -> float | None:
    """How far a stage on another strategy or number of workers may be from what it is on its own.

    Args:
        num_workers: Of the stage, and of the one on ``other``.

    Returns:
        The largest difference of a loss, relative to it; 0: weights and losses are the same to the bit.
        ``None``: nothing is promised, or so little that it does not tell a defect from rounding.
    """
    same_workers = num_workers[0] == num_workers[1]
    if same_workers and stage.strategy == other:
        return 0.0
    strategies = (stage.strategy, other)
    if not all(_is_known(strategy) for strategy in strategies):
        return None
    if reproducibility == "exact":
        return 0.0
    names = {_variant(strategy) for strategy in strategies}
    is_order_free = stage.global_batch_size // stage.micro_batch_size <= MAX_ORDER_FREE_TERMS
    keeps_order = same_workers and any(names <= alike for alike in SAME_ORDER)
    fused = getattr(stage.optimizer, "fused", False)
    compiled = any(getattr(strategy, "compile", False) for strategy in strategies)
    dtypes = {getattr(strategy, "param_dtype", "float32") for strategy in strategies}
    if dtypes == {"float32"}:
        order = 0.0 if is_order_free or keeps_order else SUMMATION
        return order + FUSED * fused + COMPILED * compiled
    # An update or a kernel with other last bits is rounded to other numbers here and there.
    if fused or compiled or len(dtypes) > 1:
        return None
    is_same = len(names) == 1
    if not (is_same or names <= SAME_ROUNDING[min(dtypes)]):
        return None
    # Sums of a few numbers of bfloat16 are exact in float32.
    if is_order_free or (same_workers and dtypes == {"bfloat16"}):
        return 0.0
    return SUMMATION if is_same else None


def _is_known(strategy: Strategy) -> bool:
    """Whether anything is promised of a strategy."""
    if isinstance(strategy, FSDP2Strategy):
        return strategy.reduce_dtype == "float32"
    return not isinstance(strategy, Plugin) and getattr(strategy, "config", None) is None


def _variant(strategy: Strategy) -> str:
    """What counts as a strategy of its own."""
    if isinstance(strategy, ZeROStrategy):
        return f"zero {strategy.stage}"
    # Copies of a sharded model are added in an order of their own.
    replicated = isinstance(strategy, FSDP2Strategy) and strategy.replicate_degree > 1
    return f"{strategy.name} replicated" if replicated else strategy.name
