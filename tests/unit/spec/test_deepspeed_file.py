"""A user's DeepSpeed file: its shape, its keys, and what it says against the job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.deepspeed_file import Decided, complaints, read_config
from orchestrator.spec.deepspeed_keys import BLOCKS
from orchestrator.spec.strategies import ZeROStrategy
from tests.unit.spec.jobs import changed, load

DECIDED = Decided(
    num_workers=4,
    global_batch_size=64,
    micro_batch_size=8,
    grad_accum_steps=2,
    max_grad_norm=1.0,
    optimizer="adamw",
)


def read(folder: Path, config: Any, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """What a file of ``config`` (text as it is, anything else as JSON) adds, and its problems."""
    path = folder / "ds.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    section = ZeROStrategy(**{"name": "zero", "stage": 2, "config": str(path), **options})
    return read_config(section, DECIDED)


def problems(folder: Path, config: Any, **options: Any) -> list[str]:
    """What is wrong with a file of ``config``."""
    return read(folder, config, **options)[1]


def block(path: str, value: Any) -> Any:
    """The smallest configuration that has ``value`` at a dotted ``path``."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("path", BLOCKS)
@pytest.mark.parametrize("value", [True, "adamw", [1, 2], 8])
def test_a_block_that_is_no_object_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    expected = f'{path}: found {json.dumps(value)}, expected an object or "auto"'
    assert expected in problems(tmp_path, block(path, value))


@pytest.mark.parametrize("path", BLOCKS)
@pytest.mark.parametrize("value", [None, "auto"])
def test_a_block_that_is_null_or_auto_is_absent(path: str, value: Any, tmp_path: Path) -> None:
    config, found = read(tmp_path, block(path, value))
    assert found == []
    assert "null" not in json.dumps(config) and "auto" not in json.dumps(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"train_batch_size": "64"},
            'train_batch_size: found "64", expected 64 or "auto" (global_batch_size)',
        ),
        ({"train_batch_size": {}}, 'train_batch_size: found {}, expected 64 or "auto" (global_batch_size)'),
        (
            {"gradient_clipping": None},
            'gradient_clipping: found null, expected 1.0 or "auto" (optimizer.max_grad_norm)',
        ),
        ({"gradient_clipping": True}, 'gradient_clipping: found true, expected 1.0 or "auto"'),
        ({"bf16": {"enabled": 0}}, 'bf16.enabled: found 0, expected false or "auto" (strategy.param_dtype)'),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op: found "sum", expected "mean" or "auto"'),
        ({"data_types": {"param_dtype": "bf16"}}, 'data_types.param_dtype: found "bf16", expected "fp32"'),
        ({"optimizer": {"type": "Adam"}}, 'optimizer.type: found "Adam", expected "adamw" or "auto"'),
        ({"optimizer": {"type": ["AdamW"]}}, 'optimizer.type: found ["AdamW"], expected "adamw" or "auto"'),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}},
            'optimizer.params.lr: found 0.1, expected none or "auto" (optimizer)',
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            'scheduler: found {"type": "WarmupLR"}, expected none or "auto" (schedule)',
        ),
        ({"scheduler": "WarmupLR"}, 'scheduler: found "WarmupLR", expected none or "auto" (schedule)'),
        ({"zero_force_ds_cpu_optimizer": True}, "zero_force_ds_cpu_optimizer: found true, expected false"),
    ],
)
def test_a_value_of_another_kind_or_meaning_is_refused(
    config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (found,) = problems(tmp_path, config)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("stage", "name", "device", "expected"),
    [
        (2, "offload_optimizer", "nvme", 'found "nvme", expected "cpu", "none" or "auto"'),
        (2, "offload_optimizer", "gpu", 'found "gpu", expected "cpu", "none" or "auto"'),
        (0, "offload_optimizer", "cpu", "it needs stage 1 or more, and strategy.stage is 0"),
        (2, "offload_param", "cpu", "it needs stage 3 or more, and strategy.stage is 2"),
        (3, "offload_param", None, 'found null, expected "cpu", "nvme", "none" or "auto"'),
        (2, "offload_optimizer", "cpu", None),
        (3, "offload_param", "nvme", None),
        (2, "offload_param", "none", None),
    ],
)
def test_a_device_that_the_job_leaves_open_must_be_possible(
    stage: int, name: str, device: str | None, expected: str | None, tmp_path: Path
) -> None:
    found = problems(tmp_path, block(f"zero_optimization.{name}.device", device), stage=stage)
    assert len(found) == (expected is not None)
    assert expected is None or (
        found[0].startswith(f"zero_optimization.{name}.device: ") and expected in found[0]
    )


def test_a_device_that_the_job_chooses_is_compared_with_all_its_keys(tmp_path: Path) -> None:
    config = block("zero_optimization.offload_optimizer", {"device": "none", "pin_memory": True})
    assert problems(tmp_path, config, offload_optimizer={"device": "cpu"}) == [
        'zero_optimization.offload_optimizer.device: found "none", expected "cpu" or "auto"'
        " (strategy.offload_optimizer.device)",
        'zero_optimization.offload_optimizer.pin_memory: found true, expected false or "auto"'
        " (strategy.offload_optimizer.pin_memory)",
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"gradient_cliping": 0.3}, "gradient_cliping: .* Did you mean 'gradient_clipping'?"),
        ({"bfloat16": {"enabled": True}}, "bfloat16: .* Did you mean 'bf16'?"),
        ({"amp": {"enabled": False}}, "amp: .*"),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge: .* Did you mean 'stage'?"),
        (
            {"zero_optimization": {"offload_param": {"devise": "cpu"}}},
            "zero_optimization.offload_param.devise: .* Did you mean 'device'?",
        ),
        ({"zero_optimization": {"mics_shard_size": -1}}, "zero_optimization.mics_shard_size: .*"),
        ({"bf16": {"on": True}}, "bf16.on: .* Valid keys: enabled, immediate_grad_update"),
        ({"data_types": {"grad_dtype": "fp32"}}, "data_types.grad_dtype: .*"),
        ({"optimizer": {"parms": {"lr": 1}}}, "optimizer.parms: .* Did you mean 'params'?"),
    ],
)
def test_a_key_that_deepspeed_does_not_read_is_refused(
    config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (found,) = problems(tmp_path, config)
    assert found.startswith(expected.replace(".*", "not a key of DeepSpeed 0.19.").rstrip())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON: "),
        ("{// a comment\n}", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("null", "found null, expected a JSON object"),
        ('["stage"]', 'found ["stage"], expected a JSON object'),
        ('{"bf16": {}, "bf16": {}}', "bf16: given twice in one object, expected once"),
    ],
)
def test_a_file_that_is_no_plain_object_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(expected)


def test_everything_wrong_is_found_at_once_and_long_values_are_cut(tmp_path: Path) -> None:
    config = {"bf16": True, "stage": 2, "train_batch_size": 1, "optimizer": {"type": "A" * 100}}
    found = problems(tmp_path, config)
    assert [line.partition(":")[0] for line in found] == [
        "bf16",
        "stage",
        "train_batch_size",
        "optimizer.type",
    ]
    assert len(found[-1]) < 200


@pytest.mark.parametrize(
    "key", ["train_batch_size", "gradient_accumulation_steps", "communication_data_type"]
)
def test_null_says_nothing_where_it_is_the_default(key: str, tmp_path: Path) -> None:
    assert problems(tmp_path, {key: None}) == []


SCALING = {
    "enabled": True,
    "loss_scale": 0,
    "initial_scale_power": 10,
    "loss_scale_window": 500,
    "hysteresis": 1,
    "min_loss_scale": 1,
    "auto_cast": False,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        (dict.fromkeys(SCALING, "auto"), None),
        ({"enabled": False}, 'enabled: found false, expected true or "auto" (strategy.param_dtype)'),
        ({"loss_scale": 128}, 'loss_scale: found 128, expected 0 or "auto" (the scale is dynamic)'),
        (
            {"initial_scale_power": 16},
            'initial_scale_power: found 16, expected 10 or "auto" (loss_scale.initial, 2 to this power)',
        ),
        (
            {"loss_scale_window": 1000},
            'loss_scale_window: found 1000, expected 500 or "auto" (loss_scale.growth_interval)',
        ),
        ({"hysteresis": 2}, 'hysteresis: found 2, expected 1 or "auto" (every overflow halves the scale)'),
        ({"min_loss_scale": 4}, 'min_loss_scale: found 4, expected 1 or "auto" (the smallest scale)'),
        ({"auto_cast": True}, 'auto_cast: found true, expected false or "auto" (what this engine supports)'),
    ],
)
def test_a_loss_scale_of_the_file_is_that_of_the_job(
    changes: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"fp16": {**SCALING, **changes}}))
    text = changed(
        "{name: ddp}",
        "{name: zero, param_dtype: float16, config: ds.json}\n"
        "    loss_scale: {initial: 1024, growth_interval: 500}",
    )
    found = [
        message.removeprefix(f"{tmp_path}/ds.json: fp16.") for _, message in complaints(load(tmp_path, text))
    ]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bf16": {"enabled": True}}, "bf16.enabled: found true, expected false"),
        ({"data_types": {"param_dtype": "fp32"}}, 'data_types.param_dtype: found "fp32", expected "fp16"'),
        ({"data_types": {"param_dtype": "fp16"}, "bf16": {"enabled": False}}, None),
    ],
)
def test_the_other_dtypes_of_the_file_are_those_of_a_float16_job(
    config: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    found = problems(tmp_path, config, param_dtype="float16")
    assert len(found) == (expected is not None)
    assert expected is None or found[0].startswith(expected)


def test_a_block_that_is_off_may_say_what_it_wants_of_the_loss_scale(tmp_path: Path) -> None:
    assert problems(tmp_path, {"fp16": {"enabled": False, "loss_scale": 128, "hysteresis": 2}}) == []


def test_complaints_carry_the_key_path_of_the_stage_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": 8, "gradient_accumulation_steps": 4}')
    job = load(tmp_path, changed("{name: ddp}", "{name: zero, config: ds.json}"))
    path = ("stages", 0, "strategy", "config")
    message = f'{tmp_path}/ds.json: train_batch_size: found 8, expected 16 or "auto" (global_batch_size)'
    assert list(complaints(job)) == [(path, message)]


def test_a_batch_that_cannot_be_split_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"fp16": true, "gradient_accumulation_steps": 4}')
    text = changed("{name: ddp}", "{name: zero, config: ds.json}")
    job = load(tmp_path, text)
    job = job.model_copy(update={"resources": job.resources.with_workers(3)})
    ((_, message),) = complaints(job)
    assert "fp16: found true" in message
