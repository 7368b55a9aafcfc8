"""One checkpoint for all strategies: whatever wrote it, any other on any number of ranks goes on, exactly."""

from __future__ import annotations

import functools
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.contracts import Engine
from orchestrator.errors import CheckpointError
from tests.distributed.odd_model import OPTIMIZERS, build_odd, spoil, step_odd
from tests.distributed.training import build_engine, build_model, different, train
from tests.support import run_ranks

KINDS = ("gpt2", "llama", "bert")
STEPS_PER_LEG = 2
# Strategy and number of ranks of each leg; every leg but the first goes on from the one before.
LEGS: list[tuple[dict[str, Any], int]] = [
    ({"name": "ddp"}, 2),
    ({"name": "zero", "stage": 3}, 1),
    ({"name": "fsdp2"}, 2),
    ({"name": "zero", "stage": 2}, 1),
    ({"name": "zero", "stage": 1}, 2),
    ({"name": "fsdp2"}, 1),
    ({"name": "zero", "stage": 0}, 2),
]
NUM_STEPS = STEPS_PER_LEG * len(LEGS)
Losses = dict[tuple[int, int], float]


def save(engine: Engine, folder: Path, step: int) -> None:
    CheckpointManager(folder).save(step, engine.neutral_state(), {"step": step})


def load(engine: Engine, folder: Path, step: int) -> None:
    tensors = engine.neutral_state()
    state = CheckpointManager(folder).load(folder / step_name(step), tensors)
    assert state == {"step": step}
    engine.neutral_state_loaded(tensors)


def wait_for(folder: Path, step: int, failed: Path | None = None) -> None:
    """Until the other group of ranks has committed ``step``, or has failed and left the file ``failed``."""
    failed = failed or folder.parent / "failed"
    while not any(found.step == step and found.is_complete for found in list_steps(folder)):
        assert not failed.exists(), "the other group of ranks failed"
        time.sleep(0.02)


def run_group(root: str) -> dict[str, Losses]:
    """``run_legs``, telling the other group of a failure."""
    try:
        return run_legs(root)
    except BaseException:
        Path(root, "failed").touch()
        raise


def run_legs(root: str) -> dict[str, Losses]:
    """The legs that belong to this number of ranks, and on two ranks the uninterrupted run."""
    losses: dict[str, Losses] = {}
    for kind in KINDS:
        folder = Path(root, kind)
        losses[kind] = {}
        for number, (strategy, world_size) in enumerate(LEGS):
            if world_size != dist.get_world_size():
                continue
            begin = number * STEPS_PER_LEG
            model = build_model(kind)
            engine = build_engine(spoil(model) if number else model, strategy)
            if number:
                wait_for(folder, begin)
                load(engine, folder, begin)
            losses[kind] |= train(engine, kind, range(begin, begin + STEPS_PER_LEG)).losses
            save(engine, folder, begin + STEPS_PER_LEG)
        if dist.get_world_size() == 2:
            engine = build_engine(build_model(kind), {"name": "ddp"})
            losses[f"{kind} uninterrupted"] = train(engine, kind, range(NUM_STEPS)).losses
            save(engine, Path(root, f"{kind} uninterrupted"), NUM_STEPS)
    return losses


@functools.cache
def chains(root: Path) -> dict[str, Losses]:
    """Losses of all ranks, from two starts that hand checkpoints to each other."""
    with ThreadPoolExecutor() as pool:
        groups = [pool.submit(run_ranks, run_group, size, str(root)) for size in (1, 2)]
    losses: dict[str, Losses] = {}
    for rank in [rank for group in groups for rank in group.result()]:
        for name, found in rank.items():
            losses.setdefault(name, {}).update(found)
    return losses


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chains")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_chain_of_strategies_and_ranks_is_bitwise_the_uninterrupted_run(root: Path, kind: str) -> None:
    losses = chains(root)
    assert losses[kind] == losses[f"{kind} uninterrupted"]
    assert len(losses[kind]) == 2 * NUM_STEPS
    expected = read_tensors(root / f"{kind} uninterrupted" / step_name(NUM_STEPS))
    assert different(read_tensors(root / kind / step_name(NUM_STEPS)), expected) == []
    num_parameters = len([name for name in expected if name.startswith("model.")])
    assert len(expected) == 4 * num_parameters


SLOTS = {
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
    "plain sgd": set(),
    "adafactor": {"step", "row_var", "col_var", "variance"},
}
BF16 = {"param_dtype": "bfloat16"}
REPLICATED = [{"name": "fsdp2"}, {"name": "zero", "stage": 0}, {"name": "ddp"}]
PARTITIONED = [
    {"name": "zero", "stage": 3},
    {"name": "zero", "stage": 1},
    {"name": "zero", "stage": 2},
    {"name": "zero", "stage": 3, "offload_optimizer": {"device": "cpu"}},
]


@dataclass
class Handed:
    """What handing state from strategy to strategy left, on one rank."""

    root: Path
    misfits: list[str]
    full_disk: tuple[str, list[str]]


def hand_over(root: str) -> Handed:
    """Each strategy in turn loads, makes one step and saves; beside it ddp makes all steps."""
    for optimizer in OPTIMIZERS:
        strategies = REPLICATED if optimizer == "adafactor" else [*PARTITIONED, *REPLICATED]
        folder = Path(root, optimizer)
        first = build_odd({"name": "ddp"}, optimizer)
        save(first, folder, 0)
        for step, strategy in enumerate(strategies):
            engine = build_odd(strategy, optimizer, spoiled=True)
            load(engine, folder, step)
            step_odd(engine, step)
            save(engine, folder, step + 1)
        reference = build_odd({"name": "ddp"}, optimizer)
        for step in range(len(strategies)):
            step_odd(reference, step)
        save(reference, Path(root, f"{optimizer} reference"), len(strategies))
    save_bfloat16(Path(root, "bfloat16"))
    misfits = load_misfits(Path(root, "misfits"))
    return Handed(Path(root), misfits, save_without_room(Path(root, "full disk")))


def save_bfloat16(folder: Path) -> None:
    """Engines whose working weights are bfloat16 save what they were given, before any step."""
    for step, strategy in enumerate(
        [{"name": "ddp"}, {"name": "zero", "stage": 2, **BF16}, {"name": "zero", "stage": 3, **BF16}]
    ):
        save(build_odd(strategy, "adamw"), folder, step)


def load_misfits(folder: Path) -> list[str]:
    """Messages of loading a checkpoint of another optimizer, and of another model."""
    save(build_odd({"name": "zero", "stage": 3}, "sgd"), folder, 1)
    messages = []
    for engine in (
        build_odd({"name": "zero", "stage": 3}, "adamw"),
        build_engine(build_model("gpt2"), {"name": "ddp"}),
    ):
        with pytest.raises(CheckpointError) as caught:
            load(engine, folder, 1)
        messages.append(str(caught.value))
    return messages


def save_without_room(folder: Path) -> tuple[str, list[str]]:
    """Message of a save for which rank 1 has no room, and what the folder holds then."""
    engine = build_engine(build_model("gpt2"), {"name": "fsdp2"})
    save(engine, folder, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    with pytest.raises(CheckpointError) as caught:
        save(engine, folder, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = sorted(path.name for path in folder.iterdir())
    save(engine, folder, 3)
    return str(caught.value), names


@functools.cache
def handed_over(root: Path) -> list[Handed]:
    """By rank; from one start of processes."""
    return run_ranks(hand_over, 2, str(root))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_odd_parameters_passes_through_every_strategy(root: Path, optimizer: str) -> None:
    folder = handed_over(root)[0].root
    (reference,) = list_steps(folder / f"{optimizer} reference")
    expected = read_tensors(reference.path)
    assert different(read_tensors(folder / optimizer / reference.path.name), expected) == []
    names = {"embedding.weight", "block.mix.weight", "block.mix.bias", "scale"}
    frozen = {"block.frozen", "outside"}
    weights = {name.removeprefix("model.") for name in expected if name.startswith("model.")}
    assert weights == names | frozen
    assert {name.split(".")[1] for name in expected if name.startswith("optim.")} == SLOTS[optimizer]
    assert not any(name.endswith(suffix) for name in expected if "optim" in name for suffix in frozen)


@pytest.mark.slow
def test_bfloat16_engines_keep_the_float32_weights_they_were_given(root: Path) -> None:
    first, *others = (read_tensors(s.path) for s in list_steps(handed_over(root)[0].root / "bfloat16"))
    assert len(others) == 2
    for found in others:
        assert different(found, first) == []


@pytest.mark.slow
def test_checkpoint_of_another_optimizer_or_model_is_refused_on_every_rank(root: Path) -> None:
    for rank in handed_over(root):
        assert "'optim.exp_avg.block.mix.bias' is not in it" in rank.misfits[0]
        assert "'model.transformer.h.0.attn.c_attn.bias' is not in it" in rank.misfits[1]


@pytest.mark.slow
def test_no_room_on_one_rank_fails_the_save_on_all_and_leaves_the_step_before(root: Path) -> None:
    for rank in handed_over(root):
        message, names = rank.full_disk
        assert "step-00000002: could not be saved: rank 1: [Errno 27]" in message
        assert "It needs 1," in message and "are free" in message
        assert names == ["step-00000001"]
