"""``reproducibility: exact``: the same bits on 1, 2 and 4 ranks, whatever the strategy, and when moving."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.checkpoint.steps import step_name
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.spec.training import Reproducibility
from orchestrator.train.meter import over_ranks
from tests.distributed.odd_model import spoil
from tests.distributed.test_neutral_state import load, save, wait_for
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KINDS = ("gpt2", "bert")
GROUPS = (1, 2, 4)
NUM_MICRO = 8
STEPS_PER_LEG = 1
NUM_STEPS = 3 * STEPS_PER_LEG
CPU_OFFLOAD = {"device": "cpu"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "hsdp": {"name": "fsdp2", "replicate_degree": 2},
    **{f"zero {stage}": {"name": "zero", "stage": stage} for stage in range(4)},
    "zero 2 offload": {"name": "zero", "stage": 2, "offload_optimizer": CPU_OFFLOAD},
    "zero 3 offload": {
        "name": "zero",
        "stage": 3,
        "offload_optimizer": CPU_OFFLOAD,
        "offload_param": CPU_OFFLOAD,
    },
}
# Number of ranks of each leg, and by name the strategy of each.
LEGS = (2, 1, 4)
CHAINS: dict[str, tuple[str, str, str]] = {
    **{name: (name, name, name) for name in ("ddp", "fsdp2", "zero 2", "zero 3")},
    "all": ("zero 3", "ddp", "fsdp2"),
}


@dataclass
class Found:
    """What one number of ranks left, on one rank."""

    trajectories: dict[str, dict[str, Trajectory]] = field(default_factory=dict)
    """By model and strategy."""
    standard: Trajectory = field(default_factory=Trajectory)
    """Of ddp on GPT-2, without ``exact``."""
    logged: list[float] = field(default_factory=list)
    """A loss of two terms."""


def build(kind: str, name: str, reproducibility: Reproducibility = "exact", *, spoiled: bool = False) -> Any:
    model = build_model(kind)
    return build_engine(
        spoil(model) if spoiled else model,
        STRATEGIES[name],
        num_micro=NUM_MICRO,
        reproducibility=reproducibility,
    )


def run_group(root: str) -> Found:
    """All strategies on this number of ranks, and the legs of the chains that belong to it."""
    try:
        found = Found(logged=log_loss())
        for kind in KINDS:
            run_chains(Path(root, kind), kind)
            found.trajectories[kind] = {
                name: train(build(kind, name), kind, range(NUM_STEPS), num_micro=NUM_MICRO)
                for name, strategy in STRATEGIES.items()
                if dist.get_world_size() % strategy.get("replicate_degree", 1) == 0
            }
        engine = build("gpt2", "ddp", "standard")
        found.standard = train(engine, "gpt2", range(NUM_STEPS), num_micro=NUM_MICRO)
        return found
    except BaseException:
        Path(root, "failed").touch()
        raise


def run_chains(root: Path, kind: str) -> None:
    for chain, names in CHAINS.items():
        folder = root / chain
        for number, (world_size, name) in enumerate(zip(LEGS, names, strict=True)):
            if world_size != dist.get_world_size():
                continue
            begin = number * STEPS_PER_LEG
            engine = build(kind, name, spoiled=number > 0)
            if number:
                wait_for(folder, begin)
                load(engine, folder, begin)
            train(engine, kind, range(begin, begin + STEPS_PER_LEG), num_micro=NUM_MICRO)
            save(engine, folder, begin + STEPS_PER_LEG)
    if dist.get_world_size() == 1:
        engine = build(kind, "ddp")
        train(engine, kind, range(NUM_STEPS), num_micro=NUM_MICRO)
        save(engine, root / "uninterrupted", NUM_STEPS)


def log_loss() -> list[float]:
    """The mean of losses that depend on the global micro-batch alone, as it is logged."""
    losses = torch.rand(NUM_MICRO, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return over_ranks(losses[dist.get_rank() :: dist.get_world_size()]).tolist()


@functools.cache
def groups(root: Path) -> dict[int, list[Found]]:
    """What every rank found, by number of ranks."""
    with ThreadPoolExecutor() as pool:
        running = {
            size: pool.submit(run_ranks, run_group, size, str(root), timeout_seconds=800) for size in GROUPS
        }
    return {size: ranks.result() for size, ranks in running.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("world_size", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_strategy_on_1_2_and_4_ranks_is_one_trajectory(
    root: Path, kind: str, world_size: int, name: str
) -> None:
    if world_size % STRATEGIES[name].get("replicate_degree", 1):
        pytest.skip("two copies need two ranks")
    found = merge([rank.trajectories[kind][name] for rank in groups(root)[world_size]])
    expected = merge([rank.trajectories[kind]["ddp"] for rank in groups(root)[1]])
    assert len(expected.losses) == NUM_MICRO * NUM_STEPS
    assert max(expected.norms) > MAX_GRAD_NORM, "clipping was never active"
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    assert different(found.weights, expected.weights) == []


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_moves_from_2_to_1_to_4_ranks_is_the_uninterrupted_one(
    root: Path, kind: str, chain: str
) -> None:
    groups(root)
    expected = read_tensors(root / kind / "uninterrupted" / step_name(NUM_STEPS))
    assert different(read_tensors(root / kind / chain / step_name(NUM_STEPS)), expected) == []
    assert any(name.startswith("optim.exp_avg_sq.") for name in expected)


def test_without_exact_4_ranks_end_with_other_bits_than_1(root: Path) -> None:
    one, four = (merge([rank.standard for rank in groups(root)[size]]) for size in (1, 4))
    assert different(four.weights, one.weights) != []
    exact = groups(root)[1][0].trajectories["gpt2"]["ddp"]
    for name, weight in exact.weights.items():
        torch.testing.assert_close(one.weights[name], weight, rtol=0, atol=1e-5)


def test_the_logged_loss_does_not_depend_on_the_number_of_ranks(root: Path) -> None:
    assert len({tuple(rank.logged) for ranks in groups(root).values() for rank in ranks}) == 1
