"""A model of which a part is trained moves between strategies and numbers of ranks, bit for bit."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from orchestrator.checkpoint.steps import step_name
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.contracts import Engine
from orchestrator.trained_part import TrainedPart
from tests.distributed.odd_model import spoil
from tests.distributed.test_neutral_state import load, save, wait_for
from tests.distributed.training import build_engine, build_model, different, train
from tests.support import run_ranks

DDP, FSDP2 = {"name": "ddp"}, {"name": "fsdp2"}
ZERO2, ZERO3 = {"name": "zero", "stage": 2}, {"name": "zero", "stage": 3}
# Strategy and number of ranks of each leg of one step; every leg but the first goes on from the one before.
LEGS: list[tuple[dict[str, Any], int]] = [
    (DDP, 2),
    (ZERO3, 1),
    (FSDP2, 2),
    (ZERO2, 1),
    (ZERO3, 2),
    (DDP, 1),
    (ZERO2, 2),
    (FSDP2, 1),
    (DDP, 2),
]
# GPT-2 ties its input and output embeddings: once they are trained, once they are frozen.
PARTS = {
    "tied weights trained": TrainedPart(freeze=("transformer.wpe.*", "transformer.h.0.*", "*.bias")),
    "tied weights frozen": TrainedPart(trainable=("transformer.h.1.*", "transformer.ln_f.*")),
}


def build(strategy: dict[str, Any], part: TrainedPart, *, spoiled: bool = False) -> Engine:
    model = build_model("gpt2")
    part.apply(model)
    return build_engine(spoil(model) if spoiled else model, strategy)


def run_group(root: str) -> None:
    """The legs that belong to this number of ranks, and on two ranks the uninterrupted run."""
    try:
        for name, part in PARTS.items():
            folder = Path(root, name)
            for number, (strategy, world_size) in enumerate(LEGS):
                if world_size != dist.get_world_size():
                    continue
                engine = build(strategy, part, spoiled=number > 0)
                if number:
                    wait_for(folder, number)
                    load(engine, folder, number)
                train(engine, "gpt2", range(number, number + 1))
                save(engine, folder, number + 1)
            if dist.get_world_size() == 2:
                engine = build(DDP, part)
                train(engine, "gpt2", range(len(LEGS)))
                save(engine, Path(root, f"{name} uninterrupted"), len(LEGS))
    except BaseException:
        Path(root, "failed").touch()
        raise


@functools.cache
def run_chains(root: Path) -> None:
    """From two starts that hand checkpoints to each other."""
    with ThreadPoolExecutor() as pool:
        for group in [pool.submit(run_ranks, run_group, size, str(root)) for size in (1, 2)]:
            group.result()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("partial")


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_weights_and_moments_are_those_of_the_uninterrupted_run(root: Path, name: str) -> None:
    run_chains(root)
    expected = read_tensors(root / f"{name} uninterrupted" / step_name(len(LEGS)))
    assert different(read_tensors(root / name / step_name(len(LEGS))), expected) == []
    model = build_model("gpt2")
    first = {key: value.clone() for key, value in model.named_parameters()}
    PARTS[name].apply(model)
    for key, parameter in model.named_parameters():
        moved = different({key: expected[f"model.{key}"]}, {key: first[key].detach()}) == [key]
        assert moved == parameter.requires_grad, key
        assert (f"optim.exp_avg.{key}" in expected) == parameter.requires_grad
