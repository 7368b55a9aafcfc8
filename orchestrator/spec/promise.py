"""What a stage's trajectory shares with the same stage on another strategy or number of workers.

Measured, not derived: ``tests/distributed`` holds the bitwise promises; the tolerances are the largest
differences seen over some tens of steps of GPT-2, Llama and BERT models.
"""

from __future__ import annotations

from orchestrator.counts import counted
from orchestrator.spec.job import Resources, TrainStage
from orchestrator.spec.plan import plan_batch
from orchestrator.spec.training import FSDP2Strategy, Plugin, Reproducibility, Strategy, ZeROStrategy

BITWISE = "bit-identical on ddp, fsdp2, zero 0-3 at 1 and 2 workers"
EXACT = "bit-identical on ddp, fsdp2, zero 0-3 at 1, 2, 4, 8, ... workers"
ORDER_OF_SUMMATION = "otherwise equal up to the order of summation (about 1e-6)"
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
    inexact = _inexact_choices(stage, strategy)
    num_terms = batch.world_size * batch.grad_accum_steps
    if num_terms <= MAX_ORDER_FREE_TERMS:
        return "; ".join(inexact) or BITWISE
    if inexact:
        return "; ".join([*inexact, ORDER_OF_SUMMATION])
    return (
        f"bit-identical among ddp, fsdp2, zero 0 and zero 1 at"
        f" {counted(batch.world_size, 'worker')},"
        f" and between zero 2 and zero 3; {ORDER_OF_SUMMATION}"
    )


def _inexact_choices(stage: TrainStage, strategy: Strategy) -> list[str]:
    """Each choice that gives up bits, and what holds instead."""
    found = []
    dtype = getattr(strategy, "param_dtype", "float32")
    if dtype == "bfloat16":
        found.append("bfloat16: bit-identical among fsdp2, zero 2 and zero 3; ddp within about 1e-4")
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
