"""The contract of all strategies: one trajectory, bit for bit, and what each promises besides."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.registry import REGISTRY
from tests.distributed.training import (
    MAX_GRAD_NORM,
    Trajectory,
    build_engine,
    build_model,
    different,
    merge,
    train,
)
from tests.support import run_ranks

# Variants of a registered strategy that count as strategies of their own; without an entry: as it is.
VARIANTS: dict[str, list[dict[str, Any]]] = {"zero": [{"stage": stage} for stage in range(4)]}
STRATEGIES = {
    " ".join([name, *map(str, options.values())]): {"name": name, **options}
    for name in REGISTRY["strategy"]
    for options in VARIANTS.get(name, [{}])
}
MODELS = ("gpt2", "llama", "bert")
BF16 = {"param_dtype": "bfloat16"}
NUM_STEPS = 8


def run_all(kind: str, num_micro: int, strategies: dict[str, dict[str, Any]]) -> dict[str, Trajectory]:
    """Each strategy's trajectory on this rank."""
    return {
        name: train(
            build_engine(build_model(kind), strategy, num_micro=num_micro),
            kind,
            range(NUM_STEPS),
            num_micro=num_micro,
        )
        for name, strategy in strategies.items()
    }


def run_models() -> dict[str, dict[str, Trajectory]]:
    """Every strategy's trajectory on this rank, for each model, and one with accumulation on two ranks."""
    found = {kind: run_all(kind, 2, STRATEGIES) for kind in MODELS}
    if dist.get_world_size() == 2:
        found["gpt2 accumulated"] = run_all("gpt2", 4, STRATEGIES)
    return found


@functools.cache
def trajectories(world_size: int) -> dict[str, dict[str, Trajectory]]:
    """By model and strategy, from one start of processes."""
    ranks = run_ranks(run_models, world_size)
    return {
        kind: {name: merge([rank[kind][name] for rank in ranks]) for name in STRATEGIES} for kind in ranks[0]
    }


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    assert different(found.weights, expected.weights) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("world_size", [2, 1])
@pytest.mark.parametrize("kind", MODELS)
def test_every_strategy_on_any_number_of_ranks_is_bitwise_ddp(kind: str, world_size: int, name: str) -> None:
    reference = trajectories(2)[kind]["ddp"]
    assert len(reference.losses) == 2 * NUM_STEPS
    assert max(reference.norms) > MAX_GRAD_NORM, "clipping was never active"
    assert_same(trajectories(world_size)[kind][name], reference)


@pytest.mark.slow
def test_accumulating_on_two_ranks_keeps_two_bitwise_classes_within_rounding() -> None:
    # Ranks that reduce once per step add micro-batches first; ZeRO 2 and 3 add ranks first.
    found = trajectories(2)["gpt2 accumulated"]
    for name in ("fsdp2", "zero 0", "zero 1"):
        assert_same(found[name], found["ddp"])
    assert_same(found["zero 3"], found["zero 2"])
    for key, loss in found["ddp"].losses.items():
        assert found["zero 2"].losses[key] == pytest.approx(loss, abs=1e-6)


def run_variants(folder: str) -> dict[str, Trajectory]:
    """Options of strategies, each under a name."""
    config = Path(folder, f"ds-{dist.get_rank()}.json")
    config.write_text(json.dumps(USER_CONFIG))
    cpu = {"device": "cpu"}
    options: dict[str, dict[str, Any]] = {
        "ddp": {"name": "ddp"},
        "ddp checkpointing": {"name": "ddp", "activation_checkpointing": True},
        "fsdp2 checkpointing": {"name": "fsdp2", "activation_checkpointing": True},
        "zero 3 checkpointing": {"name": "zero", "stage": 3, "activation_checkpointing": True},
        "fsdp2 hsdp": {"name": "fsdp2", "replicate_degree": 2},
        "fsdp2 no reshard": {"name": "fsdp2", "reshard_after_forward": False},
        "fsdp2 offload": {"name": "fsdp2", "cpu_offload": True},
        "zero 1 offload": {"name": "zero", "stage": 1, "offload_optimizer": cpu},
        "zero 2 offload": {"name": "zero", "stage": 2, "offload_optimizer": cpu},
        "zero 3 offload": {"name": "zero", "stage": 3, "offload_optimizer": cpu, "offload_param": cpu},
        "zero 3 user config": {"name": "zero", "stage": 3, "config": str(config)},
        "fsdp2 bf16": {"name": "fsdp2", **BF16},
        "zero 2 bf16": {"name": "zero", "stage": 2, **BF16},
        "zero 3 bf16": {"name": "zero", "stage": 3, **BF16},
        "ddp bf16": {"name": "ddp", **BF16},
    }
    return run_all("llama", 2, options)


USER_CONFIG = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "sub_group_size": 20_000,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": 100,
    },
}


@functools.cache
def variants(folder: Path) -> dict[str, Trajectory]:
    ranks = run_ranks(run_variants, 2, str(folder))
    return {name: merge([rank[name] for rank in ranks]) for name in ranks[0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ddp checkpointing",
        "fsdp2 checkpointing",
        "zero 3 checkpointing",
        "fsdp2 hsdp",
        "fsdp2 no reshard",
        "fsdp2 offload",
        "zero 1 offload",
        "zero 2 offload",
        "zero 3 offload",
        "zero 3 user config",
    ],
)
def test_options_that_save_memory_do_not_change_a_bit(folder: Path, name: str) -> None:
    assert_same(variants(folder)[name], variants(folder)["ddp"])


@pytest.mark.slow
def test_bfloat16_engines_with_float32_reduction_are_bitwise_equal(folder: Path) -> None:
    found = variants(folder)
    assert_same(found["zero 3 bf16"], found["zero 2 bf16"])
    assert_same(found["fsdp2 bf16"], found["zero 2 bf16"])
    assert found["ddp bf16"].losses != found["ddp"].losses
    for name in ("ddp bf16", "zero 2 bf16"):
        for key, loss in found["ddp"].losses.items():
            assert found[name].losses[key] == pytest.approx(loss, rel=2e-2)
        assert {tensor.dtype for tensor in found[name].weights.values()} == {torch.float32}
