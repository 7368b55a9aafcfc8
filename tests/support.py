"""Real process groups for tests: ``run_ranks`` starts a function on several gloo processes.

They are forked from one process that has imported torch and transformers: importing them anew takes each
process longer than most tests run.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# DeepSpeed compiles nothing, and its import takes seconds; on busy cores all take a multiple.
DEFAULT_TIMEOUT_SECONDS = 240.0
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["orchestrator.train.worker", "torch._dynamo"])
STARTED_ANEW = multiprocessing.get_context("spawn")


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    context: ForkServerContext | SpawnContext = FORKED,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> list[Any]:
    """Run ``function(*arguments)`` on ``world_size`` new processes of one gloo process group.

    Each process has one torch thread, the variables that torchrun sets, and meets the others through a
    file. Whatever happens, no process is left behind.

    Args:
        function: A module-level function; its arguments and results must pickle.
        context: ``STARTED_ANEW``: processes that import all they need themselves, and print where this one
            does.
        timeout_seconds: After this, the processes are killed.

    Returns:
        What each rank returned, by rank.

    Raises:
        AssertionError: A rank raised, died, or did not end in time; the message holds the tracebacks.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        processes = [
            context.Process(
                target=_run_rank,
                args=(function, arguments, dict(os.environ), rank, world_size, folder),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes, time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return _collect(processes, Path(folder), timeout_seconds)


def _wait(processes: list[BaseProcess], deadline: float) -> None:
    """Until all have ended, the deadline passes, or 20 s after one failed: its peers may wait for it."""
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 20)
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            return
        time.sleep(0.02)


def _collect(processes: list[BaseProcess], folder: Path, timeout_seconds: float) -> list[Any]:
    """Results by rank, or one error with every rank's traceback."""
    outcomes = []
    for rank in range(len(processes)):
        path = folder / f"result-{rank}"
        outcomes.append(pickle.loads(path.read_bytes()) if path.exists() else None)
    problems = []
    for rank, (process, outcome) in enumerate(zip(processes, outcomes, strict=True)):
        if outcome is None:
            crash = folder / f"crash-{rank}"
            stacks = crash.read_text() if crash.exists() else ""
            problems.append(f"rank {rank}: no result, exit code {process.exitcode}\n{stacks}")
        elif not outcome[0]:
            problems.append(f"rank {rank}: {outcome[1]}")
    if problems:
        raise AssertionError(f"ranks failed (limit {timeout_seconds:.0f} s):\n" + "\n".join(problems))
    return [outcome[1] for outcome in outcomes]


def _run_rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    rank: int,
    world_size: int,
    folder: str,
) -> None:
    """One process: set up, run, leave the result or the traceback in a file."""
    os.environ.clear()
    os.environ.update(environment)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update(OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", TOKENIZERS_PARALLELISM="false")
    with Path(folder, f"crash-{rank}").open("w") as crash:
        # Python's stacks, where a signal ends it, as one does whose heap is damaged.
        faulthandler.enable(crash)
        _work(function, arguments, rank, world_size, folder)
        faulthandler.disable()


def _work(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world_size: int, folder: str
) -> None:
    """The function in its process group."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        outcome = (True, function(*arguments))
    except BaseException:
        outcome = (False, traceback.format_exc())
    partial = Path(folder, f"partial-{rank}")
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(Path(folder, f"result-{rank}"))
    if not outcome[0]:
        # At once: destroying the group could wait for ranks that wait for this one.
        os._exit(1)
    dist.destroy_process_group()
