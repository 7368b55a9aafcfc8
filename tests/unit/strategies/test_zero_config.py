"""The DeepSpeed configuration: what a job decides, what a user's file may add, what it may not say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.contracts import EngineSetup
from orchestrator.errors import PlanError
from orchestrator.spec.optimization import LossScale
from orchestrator.spec.strategies import ZeROStrategy
from orchestrator.strategies.zero_config import JobFacts, build_config
from orchestrator.strategies.zero_start import check_version

FACTS = JobFacts(optimizer="AdamW", num_trained=1000)
SETUP = EngineSetup(
    device=torch.device("cpu"),
    rank=0,
    world_size=4,
    micro_batch_size=8,
    grad_accum_steps=2,
    max_grad_norm=1.0,
    make_optimizer=lambda model: torch.optim.AdamW(model.parameters()),
    blocks=[],
)
FLOAT16 = replace(SETUP, loss_scale=LossScale())
# The shape of what users bring: every value left to the tool that runs it.
AUTO_CONFIG: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "ignore_unused_parameters": True,
    },
}


def write(folder: Path, config: Any) -> str:
    path = folder / "ds.json"
    path.write_text(json.dumps(config))
    return str(path)


def section(**options: Any) -> ZeROStrategy:
    return ZeROStrategy(name="zero", **options)


def test_without_a_file_the_job_alone_decides() -> None:
    config = build_config(section(stage=1), SETUP, FACTS)
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.0
    assert config["zero_optimization"] == {
        "stage": 1,
        "memory_efficient_linear": False,
        "reduce_bucket_size": 1000,
    }
    assert "bf16" not in config


def test_bfloat16_accumulates_and_communicates_in_float32() -> None:
    config = build_config(section(stage=2, param_dtype="bfloat16"), SETUP, FACTS)
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"


@pytest.mark.parametrize(("stage", "operation"), [(1, "sum"), (2, "sum"), (3, "mean")])
def test_float16_has_no_second_scaler_and_adds_in_float32(stage: int, operation: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**AUTO_CONFIG, "zero_optimization": "auto"})
    for options in ({}, {"config": path}):
        config = build_config(section(stage=stage, param_dtype="float16", **options), FLOAT16, FACTS)
        assert config["fp16"] == {"enabled": True, "loss_scale": 1.0}
        assert config.get("bf16", {}) == {}
        assert config["data_types"] == {"grad_accum_dtype": "fp32"}
        assert config["communication_data_type"] == "fp32"
        assert config["gradient_allreduce_op"] == operation


def test_a_scale_in_the_file_that_contradicts_the_job_is_refused_by_workers_too(tmp_path: Path) -> None:
    path = write(tmp_path, {"fp16": {"loss_scale_window": 7}})
    with pytest.raises(PlanError, match=r"loss_scale_window: found 7, expected 2000 .*growth_interval"):
        build_config(section(stage=2, param_dtype="float16", config=path), FLOAT16, FACTS)


def test_auto_values_are_filled_in_and_other_values_kept(tmp_path: Path) -> None:
    config = build_config(section(stage=2, config=write(tmp_path, AUTO_CONFIG)), SETUP, FACTS)
    assert "auto" not in json.dumps(config)
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "ignore_unused_parameters": True,
        "memory_efficient_linear": False,
        "reduce_bucket_size": 1000,
    }
    assert not config.keys() & {"optimizer", "fp16", "train_batch_size"}


def test_values_that_agree_with_the_job_are_accepted(tmp_path: Path) -> None:
    agreeing = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 3},
    }
    config = build_config(section(stage=3, config=write(tmp_path, agreeing)), SETUP, FACTS)
    assert config["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train_batch_size", 32, 64),
        ("train_micro_batch_size_per_gpu", 4, 8),
        ("gradient_accumulation_steps", 1, 2),
        ("gradient_clipping", 0.3, 1.0),
        ("zero_optimization", {"stage": 3}, 2),
        ("zero_optimization", {"zero_quantized_weights": True}, False),
        ("zero_optimization", {"offload_optimizer": {"device": "nvme"}}, "cpu"),
        ("bf16", {"enabled": True}, False),
        ("fp16", {"enabled": True}, False),
        ("communication_data_type", "bf16", "fp32"),
        ("managed_gradient_accumulation", False, True),
    ],
)
def test_contradiction_names_key_found_and_expected(
    tmp_path: Path, key: str, value: Any, expected: Any
) -> None:
    path = write(tmp_path, {key: value})
    with pytest.raises(PlanError) as caught:
        build_config(section(stage=2, config=path, offload_optimizer={"device": "cpu"}), SETUP, FACTS)
    message = str(caught.value)
    found = value
    while isinstance(found, dict):
        ((part, found),) = found.items()
        key = f"{key}.{part}"
    assert path in message
    assert f"{key}: found {json.dumps(found)}, expected {json.dumps(expected)}" in message


def test_all_problems_are_shown_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"gradient_clipping": 5, "train_batch_size": 1, "fp16": True})
    with pytest.raises(PlanError, match=r"(?s)fp16: .*train_batch_size: .*gradient_clipping: "):
        build_config(section(stage=2, config=path), SETUP, FACTS)


def test_objects_that_are_null_are_absent(tmp_path: Path) -> None:
    nulls = dict.fromkeys(["zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "data_types"])
    with_file = section(stage=2, param_dtype="bfloat16", config=write(tmp_path, nulls))
    without = section(stage=2, param_dtype="bfloat16")
    assert build_config(with_file, SETUP, FACTS) == build_config(without, SETUP, FACTS)


def test_dtypes_of_buffers_stay_beside_that_of_accumulation(tmp_path: Path) -> None:
    path = write(tmp_path, {"data_types": {"buffer_dtype": "fp32"}})
    config = build_config(section(stage=2, param_dtype="bfloat16", config=path), SETUP, FACTS)
    assert config["data_types"] == {"buffer_dtype": "fp32", "grad_accum_dtype": "fp32"}


def test_offload_sections_are_passed_through(tmp_path: Path) -> None:
    offload = {"device": "nvme", "nvme_path": "/scratch"}
    config = build_config(
        section(stage=3, offload_optimizer={"device": "cpu"}, offload_param=offload), SETUP, FACTS
    )
    zero = config["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["offload_param"] == {**offload, "pin_memory": False}
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", r"found \[\], expected a JSON object"), (None, "No such file")],
)
def test_unreadable_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PlanError, match=rf"ds\.json.*{message}"):
        build_config(section(stage=2, config=str(path)), SETUP, FACTS)


def test_version_whose_internals_are_unknown_is_refused() -> None:
    check_version("0.19.8")
    for version in ("0.18.9", "0.20.0", "1.19.0"):
        with pytest.raises(PlanError, match=rf"found deepspeed {version}, expected 0\.19\.x"):
            check_version(version)


def test_deepspeed_is_imported_only_by_an_engine_that_starts() -> None:
    code = (
        "import sys, orchestrator.strategies.zero, orchestrator.strategies.fsdp2;"
        "sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
