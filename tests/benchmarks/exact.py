"""Time of a step with ``reproducibility: exact`` against the standard one, on two gloo processes.

Both engines are in the same processes and take turns, the exact one first in every other pair; the ratio is
the median over the pairs.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.contracts import Engine, EngineSetup
from orchestrator.registry import resolve
from orchestrator.spec.training import Reproducibility
from tests.benchmarks.step_loop import MICRO, SEQ_LEN, VOCAB, make_model, make_stage
from tests.distributed.training import STRATEGY
from tests.support import run_ranks

WORLD_SIZE, ACCUM = 2, 4
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero 2": {"name": "zero", "stage": 2},
    "zero 3": {"name": "zero", "stage": 3},
}
TURNS = 4


def build(strategy: dict[str, Any], reproducibility: Reproducibility) -> Engine:
    from orchestrator.train.optim import make_optimizer

    model, stage = make_model(), make_stage()
    setup = EngineSetup(
        device=torch.device("cpu"),
        rank=dist.get_rank(),
        world_size=WORLD_SIZE,
        micro_batch_size=MICRO,
        grad_accum_steps=ACCUM,
        max_grad_norm=1.0,
        make_optimizer=lambda made: make_optimizer(made, stage.optimizer),
        blocks=list(model.transformer.h),
        reproducibility=reproducibility,
    )
    engine: Engine = resolve("strategy", strategy["name"])(model, STRATEGY.validate_python(strategy), setup)
    engine.model.train()
    return engine


def step(engine: Engine, ids: torch.Tensor) -> float:
    """Seconds of one optimizer step."""
    dist.barrier()
    began = time.perf_counter()
    for index in range(ACCUM):
        with engine.micro_step(last=index == ACCUM - 1):
            logits = engine.model(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            engine.backward(loss / (ACCUM * WORLD_SIZE))
    engine.step(1e-3, engine.gradient_norm())
    dist.barrier()
    return time.perf_counter() - began


def measure_rank(turns: int) -> dict[str, dict[str, float]]:
    ids = torch.randint(0, VOCAB, (MICRO, SEQ_LEN), generator=torch.Generator().manual_seed(dist.get_rank()))
    found = {}
    for name, strategy in STRATEGIES.items():
        engines = {"standard": build(strategy, "standard"), "exact": build(strategy, "exact")}
        seconds: dict[str, list[float]] = {kind: [] for kind in engines}
        for turn in range(turns + 1):
            for kind in sorted(engines, reverse=bool(turn % 2)):
                seconds[kind].append(step(engines[kind], ids))
        # The first turn allocates.
        pairs = list(zip(seconds["exact"][1:], seconds["standard"][1:], strict=True))
        found[name] = {
            "exact": statistics.median(exact for exact, _ in pairs),
            "standard": statistics.median(standard for _, standard in pairs),
            "ratio": statistics.median(exact / standard for exact, standard in pairs),
        }
    return found


def measure_exact(turns: int = TURNS) -> dict[str, dict[str, float]]:
    """By strategy: median seconds of a step of each kind, and the median ratio of a pair."""
    found: dict[str, dict[str, float]] = run_ranks(measure_rank, WORLD_SIZE, turns, timeout_seconds=900)[0]
    return found


if __name__ == "__main__":
    print(measure_exact())
