"""The DeepSpeed configuration of a job, built from its section or from the user's own JSON file.

1. read the user's file, if the section names one;
2. refuse every value that contradicts the job: the job file is the one place where a value is set;
3. fill in ``"auto"`` values and what the job decides.

DeepSpeed itself is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contracts import EngineSetup
from orchestrator.errors import PlanError
from orchestrator.spec.training import Offload, ZeROStrategy

AUTO = "auto"
# DeepSpeed allocates this many elements for one bucket however small the model is, so the model bounds it.
MAX_BUCKET_NUMEL = 500_000_000
# What would change the meaning of a step, or keep state where a checkpoint does not look.
FORBIDDEN: Mapping[str, Any] = {
    "fp16.enabled": False,
    "amp.enabled": False,
    "torch_autocast.enabled": False,
    "bf16.bf16_master_weights_and_grads": False,
    "bf16.bf16_optimizer_states": False,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "sparse_gradients": False,
    "managed_gradient_accumulation": True,
    "sequence_parallel_size": 1,
    "tensor_parallel.autotp_size": 1,
    "checkpoint.load_universal": False,
    "zero_optimization.zero_hpz_partition_size": 1,
    "zero_optimization.zero_quantized_weights": False,
    "zero_optimization.zero_quantized_gradients": False,
    "zero_optimization.zero_quantized_nontrainable_weights": False,
    "zero_optimization.mics_shard_size": -1,
}


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
    config: dict[str, Any] = {}
    if section.config is not None:
        config = _read(Path(section.config))
        check_user_config(config, section, setup, facts)
        config = _without_auto(config)
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
    if section.param_dtype == "bfloat16":
        config["bf16"] = {**config.get("bf16", {}), "enabled": True}
        # Sums of gradients over micro-batches and ranks stay in float32, as under fsdp2.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def check_user_config(
    config: Mapping[str, Any], section: ZeROStrategy, setup: EngineSetup, facts: JobFacts
) -> None:
    """Refuse a user's configuration that says something else than the job, all differences at once.

    Raises:
        PlanError: Key, value found and value expected of each difference.
    """
    clipping = setup.max_grad_norm or 0.0
    global_batch = setup.micro_batch_size * setup.grad_accum_steps * setup.world_size
    expected: dict[str, tuple[Any, str]] = {
        "train_batch_size": (global_batch, "global_batch_size"),
        "train_micro_batch_size_per_gpu": (setup.micro_batch_size, "micro_batch_size"),
        "gradient_accumulation_steps": (
            setup.grad_accum_steps,
            "global_batch_size / (micro_batch_size x workers)",
        ),
        "gradient_clipping": (clipping, "optimizer.max_grad_norm"),
        "zero_optimization.stage": (section.stage, "strategy.stage"),
        "bf16.enabled": (section.param_dtype == "bfloat16", "strategy.param_dtype"),
        "communication_data_type": ("fp32", "float32 reductions"),
        "data_types.grad_accum_dtype": ("fp32", "float32 accumulation"),
        **{key: (value, "what this engine supports") for key, value in FORBIDDEN.items()},
    }
    for name in ("offload_optimizer", "offload_param"):
        offload: Offload | None = getattr(section, name)
        if offload is not None:
            expected[f"zero_optimization.{name}.device"] = (offload.device, f"strategy.{name}")
    problems = [
        f"{key}: found {found!r}, expected {value!r} or 'auto' ({origin})"
        for key, (value, origin) in expected.items()
        if (found := _lookup(config, key)) not in (None, AUTO, value)
    ]
    problems += _block_problems(config, facts)
    if problems:
        raise PlanError(
            f"strategy.config {section.config} contradicts the job:\n  "
            + "\n  ".join(problems)
            + "\nChange these values in it to 'auto', or change the job."
        )


def _block_problems(config: Mapping[str, Any], facts: JobFacts) -> list[str]:
    """What an optimizer or scheduler block says against the job's own."""
    problems = []
    optimizer = config.get("optimizer", AUTO)
    if optimizer != AUTO:
        fixed = {k: v for k, v in optimizer.get("params", {}).items() if v != AUTO}
        if fixed or optimizer.get("type", AUTO).lower() not in (AUTO, facts.optimizer.lower()):
            problems.append(
                f"optimizer: found {optimizer!r}, expected none, or type {facts.optimizer!r} with"
                " parameters 'auto' (optimizer)"
            )
    if config.get("scheduler", AUTO) != AUTO:
        problems.append(f"scheduler: found {config['scheduler']!r}, expected none (schedule)")
    return problems


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


def _read(path: Path) -> dict[str, Any]:
    """The user's JSON object.

    Raises:
        PlanError: No such file, or not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"strategy.config {path}: {error.strerror}; name a readable file") from error
    except ValueError as error:
        raise PlanError(f"strategy.config {path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PlanError(f"strategy.config {path}: found a {type(config).__name__}, expected a JSON object")
    return config


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted ``key``, ``None`` where it is not set."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without its ``"auto"`` values, so that defaults take their place."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != AUTO
    }
