"""Tokens per second of the training loop against a plain PyTorch loop on the same model and batches.

Both train in one process and take turns of a few steps, ours first in every other pair. The ratio is
the median over the pairs of turns, so that whatever else the machine does slows both sides of a pair, or
spoils that pair alone. Ours reads and collates its rows; the plain loop's batches are ready-made. Then ours
runs alone for a while, and its own metrics say how long a step waits for its rows.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from orchestrator.contracts import EngineSetup
from orchestrator.data.stream import MixtureReader
from orchestrator.spec.job import Resources, TrainStage
from orchestrator.spec.plan import plan_batch
from orchestrator.spec.strategies import DDPStrategy
from orchestrator.strategies.ddp import DDPEngine
from orchestrator.train.anomalies import AnomalyWatch
from orchestrator.train.loop import Loop
from orchestrator.train.optim import make_optimizer
from orchestrator.train.phases import PhaseClock
from orchestrator.train.stop import StopRequest
from tests.benchmarks.loader import causal_lm, open_ours

VOCAB, SEQ_LEN, MICRO, ACCUM = 8192, 128, 8, 2
STEPS_PER_TURN, TURNS = 2, 25
STEPS_ALONE = 40
NUM_ROWS = 4096


def make_stage() -> TrainStage:
    return TrainStage.model_validate(
        {
            "name": "bench",
            "objective": {"name": "causal_lm"},
            "model": {"config": {"model_type": "gpt2"}},
            "data": {"mixture": {"a": 1.0}, "seq_len": SEQ_LEN},
            "global_batch_size": MICRO * ACCUM,
            "micro_batch_size": MICRO,
            "strategy": {"name": "ddp"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant"},
            "limits": {"max_steps": STEPS_PER_TURN * TURNS},
            "logging": {"every_steps": STEPS_PER_TURN},
            "checkpoint": {"every_steps": 10**6},
        }
    )


def make_model() -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2",
        n_layer=4,
        n_head=4,
        n_embd=256,
        vocab_size=VOCAB,
        n_positions=SEQ_LEN,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(config)


class Remembered:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)

    def finish(self, outcome: str) -> None:
        """Nothing is open."""


def our_loop(stage: TrainStage, reader: MixtureReader, tracker: Remembered) -> Callable[..., None]:
    """Some steps of ``Loop`` on DDP with one worker, from the given one on."""
    model, device = make_model(), torch.device("cpu")
    batch_plan = plan_batch(stage, Resources())
    setup = EngineSetup(
        device=device,
        rank=0,
        world_size=1,
        micro_batch_size=MICRO,
        grad_accum_steps=ACCUM,
        max_grad_norm=1.0,
        make_optimizer=lambda made: make_optimizer(made, stage.optimizer),
        blocks=list(model.transformer.h),
    )
    loop = Loop(
        stage=stage,
        seed=0,
        rank=0,
        device=device,
        batch_plan=batch_plan,
        max_steps=0,
        engine=DDPEngine(model, DDPStrategy(name="ddp"), setup),
        objective=causal_lm(),
        reader=reader,
        trackers=[tracker],
        evaluate=dict,
        save=lambda step, evaluated: None,
        roll_back=lambda: 0,
        watch=AnomalyWatch(stage.anomalies),
        clock=PhaseClock(),
        record=lambda event, **fields: None,
        before_update=lambda: None,
        goodput=dict,
        stop=StopRequest(Path("no such file")),
    )
    return lambda step, steps=STEPS_PER_TURN: loop_turn(loop, step, steps)


def loop_turn(loop: Loop, step: int, steps: int) -> None:
    replace(loop, max_steps=step + steps).run(step)


def plain_loop(stage: TrainStage, tokens_RS: np.ndarray) -> Callable[[int], None]:
    """One turn of the loop a person would write by hand."""
    model = make_model()
    optimizer = make_optimizer(model, stage.optimizer)
    batches = torch.from_numpy(tokens_RS.astype(np.int64)).view(-1, MICRO, SEQ_LEN)

    def turn(step: int) -> None:
        model.train()
        for number in range(step, step + STEPS_PER_TURN):
            for accum in range(ACCUM):
                ids = batches[(number * ACCUM + accum) % len(batches)]
                logits = model(input_ids=ids).logits[:, :-1]
                loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                (loss / ACCUM).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return turn


def measure_step_loop(turns: int = TURNS) -> dict[str, float]:
    """Median tokens per second of each loop, and the median ratio of a pair of turns.

    ``data_wait`` and ``step`` are seconds of one step of ours alone, but for the first, before which
    nothing could be read ahead.
    """
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    stage = make_stage()
    tokens_RS = np.random.default_rng(0).integers(0, VOCAB, (NUM_ROWS, SEQ_LEN), dtype=np.uint16)
    tracker = Remembered()
    with tempfile.TemporaryDirectory() as folder:
        ours = our_loop(stage, open_ours(Path(folder), tokens_RS), tracker)
        seconds = take_turns({"ours": ours, "plain": plain_loop(stage, tokens_RS)}, turns)
        tracker.metrics.clear()
        ours(turns * STEPS_PER_TURN, STEPS_ALONE)
    dist.destroy_process_group()
    tokens = STEPS_PER_TURN * ACCUM * MICRO * SEQ_LEN
    ratios = [theirs / our for our, theirs in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        **{name: tokens / statistics.median(turns) for name, turns in seconds.items()},
        "ratio": statistics.median(ratios),
        **{
            name: statistics.mean(logged[f"train/{name}_seconds"] for logged in tracker.metrics[1:])
            for name in ("data_wait", "step")
        },
    }


def take_turns(loops: dict[str, Callable[[int], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each loop's turns."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns):
        order = list(loops) if turn % 2 else list(reversed(loops))
        for name in order:
            began = time.perf_counter()
            loops[name](turn * STEPS_PER_TURN)
            seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    print(measure_step_loop())
