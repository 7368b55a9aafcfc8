"""The user's own DeepSpeed JSON file, which a ``zero`` strategy names: read, and compared with the job.

1. read it: one JSON object, no key twice;
2. its shape: objects where DeepSpeed expects objects, and only keys that DeepSpeed reads;
3. its values: what the job decides is absent, ``"auto"``, or says the same.

All problems are collected. An object that is ``null`` is absent, and so is a value of ``NULLABLE``;
``null`` for anything else that the job decides is a contradiction. Commands that look at a job file and the
workers that train from it both come here; neither DeepSpeed nor torch is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spec.deepspeed_keys import BLOCKS, KEYS, NULLABLE
from orchestrator.spec.float16 import loss_scale_of
from orchestrator.spec.job import Job, Resources, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.optimization import LossScale
from orchestrator.spec.plan import batch_complaint
from orchestrator.spec.strategies import Offload, ZeROStrategy
from orchestrator.spec.tree import KeyPath

AUTO = "auto"
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""DeepSpeed's words for them."""
ABSENT: Any = object()
MAX_SHOWN = 60
# What would change the meaning of a step, or keep state where a checkpoint does not look.
REQUIRED: Mapping[str, Any] = {
    "torch_autocast.enabled": False,
    "bf16.bf16_master_weights_and_grads": False,
    "bf16.bf16_optimizer_states": False,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    # The loss is scaled for an average over workers.
    "gradient_allreduce_op": "mean",
    "managed_gradient_accumulation": True,
    "sequence_parallel_size": 1,
    "tensor_parallel.autotp_size": 0,
    "checkpoint.load_universal": False,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization.zero_hpz_partition_size": 1,
    "zero_optimization.zero_quantized_weights": False,
    "zero_optimization.zero_quantized_gradients": False,
    "zero_optimization.zero_quantized_nontrainable_weights": False,
}


@dataclass(frozen=True)
class Decided:
    """What the job decides, and its DeepSpeed file may repeat."""

    num_workers: int
    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int | None
    """``None``: the batch cannot be split over the workers, which is a problem of its own."""
    max_grad_norm: float | None
    optimizer: str
    """As ``optimizer.name`` says it."""
    loss_scale: LossScale | None = None
    """``None``: the job does not compute in float16."""


def decided_by(stage: TrainStage, resources: Resources) -> Decided:
    """What ``stage`` decides when it runs on ``resources``."""
    is_even = batch_complaint(stage, resources) is None
    micro_rows = stage.micro_batch_size * resources.num_workers
    return Decided(
        num_workers=resources.num_workers,
        global_batch_size=stage.global_batch_size,
        micro_batch_size=stage.micro_batch_size,
        grad_accum_steps=stage.global_batch_size // micro_rows if is_even else None,
        max_grad_norm=stage.optimizer.max_grad_norm,
        optimizer=stage.optimizer.name,
        loss_scale=loss_scale_of(stage),
    )


def complaints(job: Job) -> Iterator[tuple[KeyPath, str]]:
    """Every problem of every DeepSpeed file that ``job`` names, with the key path that names it."""
    for index, stage in enumerate(job.stages):
        if not isinstance(stage, TrainStage) or not isinstance(stage.strategy, ZeROStrategy):
            continue
        if stage.strategy.config is not None:
            _, problems = read_config(stage.strategy, decided_by(stage, job.resources))
            for problem in problems:
                yield ("stages", index, "strategy", "config"), f"{stage.strategy.config}: {problem}"


def read_config(section: ZeROStrategy, decided: Decided) -> tuple[dict[str, Any], list[str]]:
    """What the file of ``section.config`` adds to the job, and everything that is wrong with it.

    Returns:
        The configuration without what it leaves to the job, to be used only if there are no problems;
        and the problems, each with key, value found and value expected.
    """
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        block = dict(pairs)
        keys = [key for key, _ in pairs]
        repeated.extend(key for key in block if keys.count(key) > 1)
        return block

    try:
        text = Path(str(section.config)).read_text(encoding="utf-8-sig")
        config = json.loads(text, object_pairs_hook=unique)
    except OSError as error:
        return {}, [f"{error.strerror}; name a readable file"]
    except (ValueError, RecursionError) as error:
        return {}, [f"not JSON: {error}"]
    if not isinstance(config, dict):
        return {}, [f"found {_shown(config)}, expected a JSON object"]
    problems = [f"{key}: given twice in one object, expected once" for key in repeated]
    problems += [*_shape_problems(config), *_key_problems(config), *_contradictions(config, section, decided)]
    return _without_unset(config), problems


def _shape_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for path in BLOCKS:
        found = _lookup(config, path)
        if found not in (ABSENT, None, AUTO) and not isinstance(found, Mapping):
            yield f'{path}: found {_shown(found)}, expected an object or "auto"'


def _key_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for path, known in KEYS.items():
        block = _lookup(config, path) if path else config
        for key in block if isinstance(block, Mapping) else ():
            if key not in known:
                hint = suggestion(key, list(known), plural="Valid keys")
                yield f"{path}{'.' if path else ''}{key}: not a key of DeepSpeed 0.19.{hint}"


def _contradictions(config: Mapping[str, Any], section: ZeROStrategy, decided: Decided) -> Iterator[str]:
    for key, (value, origin) in _expected(section, decided).items():
        found = _lookup(config, key)
        is_unset = found in (ABSENT, AUTO) or (found is None and key in NULLABLE)
        if not is_unset and not _agrees(found, value):
            yield f'{key}: found {_shown(found)}, expected {_shown(value)} or "auto" ({origin})'
    yield from _offload_problems(config, section)
    yield from _optimizer_problems(config, decided)
    scheduler = _lookup(config, "scheduler")
    if scheduler not in (ABSENT, None, AUTO):
        yield f'scheduler: found {_shown(scheduler)}, expected none or "auto" (schedule)'


def _expected(section: ZeROStrategy, decided: Decided) -> dict[str, tuple[Any, str]]:
    """By key, the one value that agrees with the job, and what decides it."""
    expected: dict[str, tuple[Any, str]] = {
        "train_batch_size": (decided.global_batch_size, "global_batch_size"),
        "train_micro_batch_size_per_gpu": (decided.micro_batch_size, "micro_batch_size"),
        "data_parallel_size": (decided.num_workers, "resources.num_workers"),
        "gradient_clipping": (decided.max_grad_norm or 0.0, "optimizer.max_grad_norm"),
        "zero_optimization.stage": (section.stage, "strategy.stage"),
        "bf16.enabled": (section.param_dtype == "bfloat16", "strategy.param_dtype"),
        "fp16.enabled": (section.param_dtype == "float16", "strategy.param_dtype"),
        "data_types.param_dtype": (DTYPES[section.param_dtype], "strategy.param_dtype"),
        "communication_data_type": ("fp32", "float32 reductions"),
        "data_types.grad_accum_dtype": ("fp32", "float32 accumulation"),
        **{key: (value, "what this engine supports") for key, value in REQUIRED.items()},
    }
    if decided.grad_accum_steps is not None:
        origin = "global_batch_size / (micro_batch_size x workers)"
        expected["gradient_accumulation_steps"] = (decided.grad_accum_steps, origin)
    if decided.loss_scale is not None:
        expected |= _expected_scaling(decided.loss_scale)
    for name in ("offload_optimizer", "offload_param"):
        offload: Offload | None = getattr(section, name)
        for key, value in offload.model_dump().items() if offload else ():
            if value is not None:
                expected[f"zero_optimization.{name}.{key}"] = (value, f"strategy.{name}.{key}")
    return expected


def _expected_scaling(loss_scale: LossScale) -> dict[str, tuple[Any, str]]:
    """What a block ``fp16`` may say of the loss scale, which is the training loop's and not DeepSpeed's."""
    return {
        # DeepSpeed's word for a scale that changes.
        "fp16.loss_scale": (0, "the scale is dynamic"),
        "fp16.initial_scale_power": (
            int(math.log2(loss_scale.initial)),
            "loss_scale.initial, 2 to this power",
        ),
        "fp16.loss_scale_window": (loss_scale.growth_interval, "loss_scale.growth_interval"),
        "fp16.hysteresis": (1, "every overflow halves the scale"),
        "fp16.min_loss_scale": (1, "the smallest scale"),
        "fp16.auto_cast": (False, "what this engine supports"),
        "fp16.fp16_master_weights_and_grads": (False, "what this engine supports"),
    }


def _offload_problems(config: Mapping[str, Any], section: ZeROStrategy) -> Iterator[str]:
    """What is wrong with a device that the file chooses and the job leaves open."""
    for name, lowest, devices in (
        # On NVMe neither the clip nor a checkpoint could reach gradients and optimizer state.
        ("offload_optimizer", 1, ("cpu",)),
        ("offload_param", 3, ("cpu", "nvme")),
    ):
        key = f"zero_optimization.{name}.device"
        device = _lookup(config, key)
        if device in (ABSENT, AUTO, "none") or getattr(section, name) is not None:
            continue
        if device not in devices:
            choices = ", ".join(f'"{choice}"' for choice in devices)
            yield f'{key}: found {_shown(device)}, expected {choices}, "none" or "auto"'
        elif section.stage < lowest:
            yield (
                f'{key}: found {_shown(device)}, expected "none" or "auto": it needs stage {lowest} or'
                f" more, and strategy.stage is {section.stage}"
            )


def _optimizer_problems(config: Mapping[str, Any], decided: Decided) -> Iterator[str]:
    kind = _lookup(config, "optimizer.type")
    if kind not in (ABSENT, None) and str(kind).lower() not in (AUTO, decided.optimizer):
        yield (
            f"optimizer.type: found {_shown(kind)}, expected {_shown(decided.optimizer)}"
            ' or "auto" (optimizer.name)'
        )
    params = _lookup(config, "optimizer.params")
    for key, value in params.items() if isinstance(params, Mapping) else ():
        if value != AUTO:
            yield f'optimizer.params.{key}: found {_shown(value)}, expected none or "auto" (optimizer)'


def _agrees(found: Any, expected: Any) -> bool:
    """Equal, and not 1 where true is meant."""
    return bool(found == expected) and isinstance(found, bool) == isinstance(expected, bool)


def _lookup(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted ``path``, ``ABSENT`` where there is none."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value


def _shown(value: Any) -> str:
    """``value`` as the file has it, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _without_unset(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``config`` without ``"auto"`` and objects that are null, so that defaults take their place."""
    return {
        key: _without_unset(value, f"{above}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != AUTO and not (value is None and f"{above}{key}" in BLOCKS)
    }
