"""A checkpoint of every strategy on every number of ranks, resumed by every other: `make test-faults`.

For all ordered pairs at 1 and 2 ranks the steps after the move, and the state they leave, are bit for bit
those of the uninterrupted run; on 3 and 4 ranks losses are within 1e-6 of it, since sums of more than two
terms depend on their order.
"""

from __future__ import annotations

import functools
import gc
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from orchestrator.checkpoint.steps import step_name
from orchestrator.checkpoint.storage import read_tensors
from tests.distributed.odd_model import spoil
from tests.distributed.test_neutral_state import load, save, wait_for
from tests.distributed.training import build_engine, build_model, different, train
from tests.support import run_ranks

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]

FLOAT32: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "hsdp": {"name": "fsdp2", "replicate_degree": 2},
    **{f"zero{stage}": {"name": "zero", "stage": stage} for stage in (0, 1, 2, 3)},
}
BFLOAT16: dict[str, dict[str, Any]] = {
    name: {**FLOAT32[name], "param_dtype": "bfloat16"} for name in ("fsdp2", "zero2", "zero3")
}
FAMILIES = {
    "gpt2": ("gpt2", FLOAT32),
    "llama": ("llama", FLOAT32),
    "bert": ("bert", FLOAT32),
    "gpt2 bfloat16": ("gpt2", BFLOAT16),
}
SAVED_STEP, LAST_STEP = 2, 4
GROUPS = (1, 2)
LARGER_GROUPS = (3, 4)
# Shared out evenly over 1 to 4 ranks.
NUM_MICRO = 12
Move = tuple[str, str]


def strategies(family: str, world_size: int) -> dict[str, dict[str, Any]]:
    """Those that run on this number of ranks, named with it."""
    _, named = FAMILIES[family]
    return {
        f"{name} on {world_size}": strategy
        for name, strategy in named.items()
        if world_size % strategy.get("replicate_degree", 1) == 0
    }


def run_group(root: str) -> dict[str, dict[Move, Any]]:
    """Write this number of ranks' checkpoints, resume those of all; what differed, by family and move."""
    try:
        return {family: dict(run_family(Path(root, family), family)) for family in FAMILIES}
    except BaseException:
        Path(root, "failed").touch()
        raise


def run_family(root: Path, family: str) -> Iterator[tuple[Move, Any]]:
    kind, _ = FAMILIES[family]
    mine = strategies(family, dist.get_world_size())
    for name, strategy in mine.items():
        engine = build_engine(build_model(kind), strategy)
        train(engine, kind, range(SAVED_STEP))
        save(engine, root / name, SAVED_STEP)
    if dist.get_world_size() == GROUPS[-1]:
        name, strategy = next(iter(mine.items()))
        engine = build_engine(build_model(kind), strategy)
        yield ("uninterrupted", ""), train(engine, kind, range(LAST_STEP)).losses
        save(engine, root / "uninterrupted", LAST_STEP)
    failed = root.parent / "failed"
    wait_for(root / "uninterrupted", LAST_STEP, failed)
    expected = read_tensors(root / "uninterrupted" / step_name(LAST_STEP))
    for source in [name for size in GROUPS for name in strategies(family, size)]:
        wait_for(root / source, SAVED_STEP, failed)
        for name, strategy in mine.items():
            engine = build_engine(spoil(build_model(kind)), strategy)
            load(engine, root / source, SAVED_STEP)
            losses = train(engine, kind, range(SAVED_STEP, LAST_STEP)).losses
            target = root / f"{source} to {name}"
            save(engine, target, LAST_STEP)
            found = read_tensors(target / step_name(LAST_STEP))
            yield (source, name), (losses, different(found, expected))
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(target)
            del engine
            gc.collect()


@functools.cache
def moves(root: Path) -> dict[str, dict[Move, list[Any]]]:
    """What every rank found, by family and move."""
    with ThreadPoolExecutor() as pool:
        groups = [pool.submit(run_ranks, run_group, size, str(root), timeout_seconds=3000) for size in GROUPS]
    found: dict[str, dict[Move, list[Any]]] = {family: {} for family in FAMILIES}
    for rank in [rank for group in groups for rank in group.result()]:
        for family, by_move in rank.items():
            for move, outcome in by_move.items():
                found[family].setdefault(move, []).append(outcome)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moves")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_ordered_pair_goes_on_bit_for_bit(root: Path, family: str) -> None:
    found = dict(moves(root)[family])
    whole = {key: loss for losses in found.pop(("uninterrupted", "")) for key, loss in losses.items()}
    names = [name for size in GROUPS for name in strategies(family, size)]
    assert sorted(found) == sorted((source, target) for source in names for target in names)
    for move, ranks in found.items():
        losses = {key: loss for rank, _ in ranks for key, loss in rank.items()}
        assert losses == {key: loss for key, loss in whole.items() if key[0] >= SAVED_STEP}, move
        assert [name for _, names in ranks for name in names] == [], move


def write_larger(root: str) -> dict[str, Any]:
    """Two steps on two ranks of every strategy, and twelve on the first of them."""
    found = {}
    for name, strategy in FLOAT32.items():
        engine = build_engine(build_model("gpt2"), strategy, num_micro=NUM_MICRO)
        train(engine, "gpt2", range(SAVED_STEP), num_micro=NUM_MICRO)
        save(engine, Path(root, name), SAVED_STEP)
        if name == "ddp":
            found = train(engine, "gpt2", range(SAVED_STEP, SAVED_STEP + 10), num_micro=NUM_MICRO).losses
    return {"ddp": found}


def resume_larger(root: str) -> dict[str, Any]:
    """The ten steps after the move, by strategy."""
    found = {}
    for name, strategy in FLOAT32.items():
        if dist.get_world_size() % strategy.get("replicate_degree", 1):
            continue
        engine = build_engine(spoil(build_model("gpt2")), strategy, num_micro=NUM_MICRO)
        load(engine, Path(root, "ddp" if name != "ddp" else "zero3"), SAVED_STEP)
        steps = range(SAVED_STEP, SAVED_STEP + 10)
        found[name] = train(engine, "gpt2", steps, num_micro=NUM_MICRO).losses
    return found


def test_ten_steps_on_three_and_four_ranks_are_within_rounding(tmp_path: Path) -> None:
    ranks = run_ranks(write_larger, 2, str(tmp_path), timeout_seconds=600)
    expected = {key: loss for rank in ranks for key, loss in rank["ddp"].items()}
    assert len(expected) == 10 * NUM_MICRO
    for world_size in LARGER_GROUPS:
        groups = run_ranks(resume_larger, world_size, str(tmp_path), timeout_seconds=900)
        for name in groups[0]:
            losses = {key: loss for rank in groups for key, loss in rank[name].items()}
            assert losses == pytest.approx(expected, abs=1e-6), (name, world_size)
