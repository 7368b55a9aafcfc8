"""What a checkpoint in the background costs the training that goes on beside it.

1. stall: seconds for which ``save`` holds up the loop, over those of a plain copy of the same bytes into
   memory that is there already; the first save of a saver by itself, and the median of later ones;
2. digests: seconds by which hashing on the way (xxh3-128) prolongs the writing of a shard through to the
   disk, over those of a whole save, from the copy to ``COMPLETE``;
3. slowdown: seconds of a default interval's steps with a save in them, over those without. Turns of few
   steps with and without a save alternate; what a save costs beyond them is spread over the interval.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor
from torch.nn import functional

from orchestrator.checkpoint.background import BackgroundSaver
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.shard_file import WRITE_BYTES, HostBuffer, write_shard
from orchestrator.checkpoint.shard_plan import plan_shards
from orchestrator.contracts import EngineSetup
from orchestrator.spec.job import Checkpoint
from orchestrator.spec.strategies import DDPStrategy
from orchestrator.strategies.ddp import DDPEngine
from orchestrator.train.optim import make_optimizer
from tests.benchmarks.step_loop import ACCUM, MICRO, SEQ_LEN, VOCAB, make_model, make_stage

FIRSTS, SAVES, WRITES, TURNS, STEPS_PER_TURN = 5, 3, 11, 6, 2
INTERVAL = Checkpoint().every_steps
# The optimizer states of a model of 40 million parameters.
STATE_TENSORS, ROWS, COLUMNS = 120, 1024, 1000
CPU = torch.device("cpu")


def measure_saving(turns: int = TURNS, rows: int = ROWS) -> dict[str, float]:
    """``first_stall``, ``stall``, ``digest`` and ``slowdown``, each a ratio, and seconds beside them.

    Files are written to the folder that ``BENCH_DIR`` names, or to that for temporary files.

    Args:
        rows: Of each matrix of the state whose saves are measured.
    """
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        measured = _measure_stall(Path(folder, "stall"), rows)
        measured |= _measure_digest(Path(folder, "shard"), rows)
        measured["digest"] = measured["digest_seconds"] / measured["save_seconds"]
        measured |= _measure_slowdown(Path(folder, "slowdown"), turns)
    dist.destroy_process_group()
    return measured


def _state(rows: int) -> dict[str, Tensor]:
    """Matrices and vectors, as a model has them; every page written."""
    state = {f"model.{n}": torch.full((rows, COLUMNS), float(n)) for n in range(STATE_TENSORS)}
    return state | {f"model.bias.{n}": torch.full((COLUMNS,), float(n)) for n in range(STATE_TENSORS)}


def _seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _measure_stall(folder: Path, rows: int) -> dict[str, float]:
    """The time until ``save`` returns, and of one copy of as many bytes."""
    state = _state(rows)
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    copies: list[float] = []
    stalls: list[float] = []
    saves: list[float] = []
    for number in range(FIRSTS):
        saver = BackgroundSaver.start(folder / str(number), Retention(2), state, CPU)
        for step in range(SAVES):
            copies.append(_seconds(lambda: target.copy_(source)))
            stalls.append(_seconds(lambda step=step, saver=saver: saver.save(step, state, {}, lambda: None)))
            # Writing would take from the copy that is measured next.
            saves.append(stalls[-1] + _seconds(saver.wait))
        saver.close()
    ratios = [stall / copy for stall, copy in zip(stalls, copies, strict=True)]
    return {
        "first_stall_seconds": statistics.median(stalls[::SAVES]),
        "stall_seconds": statistics.median(stalls),
        "copy_seconds": statistics.median(copies),
        "first_stall": statistics.median(ratios[::SAVES]),
        "first_stall_worst": max(ratios[::SAVES]),
        "stall": statistics.median(ratios),
        "save_seconds": statistics.median(saves),
        "bytes": float(num_bytes),
    }


def _measure_digest(path: Path, rows: int) -> dict[str, float]:
    """A shard's write through to the disk, and the same calls on the same bytes without hashing."""
    state = _state(rows)
    plan = plan_shards(state)
    buffer = HostBuffer(plan, CPU)
    buffer.fill(state)
    hashed: list[float] = []
    plain: list[float] = []
    for turn in range(WRITES):
        sides = [(hashed, write_shard), (plain, _write_plainly)]
        for seconds, write in sides if turn % 2 else reversed(sides):
            path.unlink(missing_ok=True)
            seconds.append(_seconds(lambda write=write: write(path, buffer.parts())))
    return {
        "hash_alone_seconds": min(_seconds(lambda: _hash(buffer)) for _ in range(WRITES)),
        "digest_seconds": statistics.median(h - p for h, p in zip(hashed, plain, strict=True)),
    }


def _write_plainly(path: Path, parts: Iterable[memoryview]) -> None:
    with path.open("xb", buffering=0) as file:
        for part in parts:
            for begin in range(0, len(part), WRITE_BYTES):
                file.write(part[begin : begin + WRITE_BYTES])
        os.fsync(file.fileno())


def _hash(buffer: HostBuffer) -> None:
    for part in buffer.parts():
        xxhash.xxh3_128(part).digest()


def _measure_slowdown(folder: Path, turns: int) -> dict[str, float]:
    """Training steps of the benchmark's GPT-2 with and without a save in the turn."""
    stage = make_stage()
    model = make_model()
    setup = EngineSetup(
        device=CPU,
        rank=0,
        world_size=1,
        micro_batch_size=MICRO,
        grad_accum_steps=ACCUM,
        max_grad_norm=1.0,
        make_optimizer=lambda made: make_optimizer(made, stage.optimizer),
        blocks=list(model.transformer.h),
    )
    engine = DDPEngine(model, DDPStrategy(name="ddp"), setup)
    saver = BackgroundSaver.start(folder, Retention(2), engine.neutral_state(), CPU)
    ids = torch.randint(0, VOCAB, (MICRO, SEQ_LEN))

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            for accum_index in range(ACCUM):
                with engine.micro_step(last=accum_index == ACCUM - 1):
                    logits = engine.model(input_ids=ids).logits[:, :-1]
                    loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                    engine.backward(loss / ACCUM)
            engine.step(1e-4, engine.gradient_norm())

    def train_and_save(step: int) -> None:
        saver.save(step, engine.neutral_state(), {}, lambda: None)
        train(STEPS_PER_TURN)
        # Nothing of the save may be left over for the turn that has none.
        saver.wait()

    train(2)
    with_save: list[float] = []
    without: list[float] = []
    for turn in range(turns):
        with_save.append(_seconds(lambda turn=turn: train_and_save(turn)))
        without.append(_seconds(lambda: train(STEPS_PER_TURN)))
    saver.close()
    step_seconds = statistics.median(without) / STEPS_PER_TURN
    cost = statistics.median(a - b for a, b in zip(with_save, without, strict=True))
    interval_seconds = INTERVAL * step_seconds
    return {
        "interval_seconds": interval_seconds,
        "saving_interval_seconds": interval_seconds + cost,
        "slowdown": 1 + cost / interval_seconds,
    }


if __name__ == "__main__":
    print(json.dumps(measure_saving(), indent=1))
