"""The DeepSpeed configuration of a job, built from its section and from the user's own JSON file.

The file adds what the job leaves open; what contradicts the job is refused (``spec/deepspeed_file.py``),
since the job file is the one place where a value is set. DeepSpeed itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.contracts import EngineSetup
from orchestrator.errors import PlanError
from orchestrator.spec.deepspeed_file import Decided, read_config
from orchestrator.spec.strategies import Offload, ZeROStrategy

# DeepSpeed allocates this many elements for one bucket however small the model is, so the model bounds it.
MAX_BUCKET_NUMEL = 500_000_000


@dataclass(frozen=True)
class JobFacts:
    """What the job has decided before DeepSpeed is asked."""

    optimizer: str
    """Class name of the torch optimizer."""
    num_trained: int
    """Elements of all trained parameters."""


def build_config(section: ZeROStrategy, setup: EngineSetup, facts: JobFacts) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    Raises:
        PlanError: The user's file is unreadable, or contradicts the job.
    """
    config = {} if section.config is None else _user_config(section, setup, facts)
    for block in ("optimizer", "scheduler", "fp16", "train_batch_size"):
        config.pop(block, None)
    config |= {
        "train_micro_batch_size_per_gpu": setup.micro_batch_size,
        "gradient_accumulation_steps": setup.grad_accum_steps,
        # The engine clips itself, by the norm that is the same for every strategy.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        # With it DeepSpeed replaces an offloaded optimizer by its own, which needs a C++ compiler.
        "zero_force_ds_cpu_optimizer": False,
    }
    config["zero_optimization"] = _zero_block(config.get("zero_optimization", {}), section, facts)
    if section.param_dtype == "float16":
        # A scale of 1 that never changes: the training loop scales the loss, for every strategy.
        config["fp16"] = {"enabled": True, "loss_scale": 1.0}
        config["gradient_allreduce_op"] = "mean" if averages(section) else "sum"
    if section.param_dtype == "bfloat16":
        config["bf16"] = {**config.get("bf16", {}), "enabled": True}
    if section.param_dtype != "float32":
        # Sums of gradients over micro-batches and ranks stay in float32, as under fsdp2.
        config["data_types"] = {**config.get("data_types", {}), "grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def averages(section: ZeROStrategy) -> bool:
    """Whether DeepSpeed divides gradients by the number of ranks.

    Stage 2 does so in the working dtype, and float16 loses the last bits of small gradients to that; stage 3
    does it in the dtype of the reduction, and knows no other way.
    """
    return section.param_dtype != "float16" or section.stage == 3


def _user_config(section: ZeROStrategy, setup: EngineSetup, facts: JobFacts) -> dict[str, Any]:
    """What the user's file adds to the job.

    Raises:
        PlanError: It is unreadable, or contradicts the job: all problems at once.
    """
    decided = Decided(
        num_workers=setup.world_size,
        global_batch_size=setup.micro_batch_size * setup.grad_accum_steps * setup.world_size,
        micro_batch_size=setup.micro_batch_size,
        grad_accum_steps=setup.grad_accum_steps,
        max_grad_norm=setup.max_grad_norm,
        optimizer=facts.optimizer.lower(),
        loss_scale=setup.loss_scale,
    )
    config, problems = read_config(section, decided)
    if problems:
        raise PlanError(f"strategy.config {section.config}: " + "\n  ".join(problems))
    return config


def _zero_block(user: Mapping[str, Any], section: ZeROStrategy, facts: JobFacts) -> dict[str, Any]:
    """The ``zero_optimization`` block: the user's values, our defaults, what the section sets."""
    bucket = max(1, min(MAX_BUCKET_NUMEL, facts.num_trained))
    block: dict[str, Any] = {
        # It would replace torch's linear in the whole process, and adds in another order.
        "memory_efficient_linear": False,
        "reduce_bucket_size": bucket,
        **user,
        "stage": section.stage,
    }
    for name in ("offload_optimizer", "offload_param"):
        offload: Offload | None = getattr(section, name)
        if offload is not None:
            given = {key: value for key, value in offload.model_dump().items() if value is not None}
            block[name] = {**block.get(name, {}), **given}
    return block
