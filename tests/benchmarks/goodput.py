"""Useful time over wall time of a run whose worker is killed again and again, beside the Young-Daly optimum.

The worker is killed at times drawn from an exponential distribution, from a seed. Where the time went is what
``orchestrator status`` says. The optimum is that of checkpoints at the best interval, for the same failures,
the same restarts and the same cost of a save.

Sources: Young, "A first order approximation to the optimum checkpoint interval", 1974; Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps", 2006, equation 20.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from launchers.rehearsed_run import kill_tree
from launchers.runs import run_status
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines

SEED = 3
MEAN_SECONDS_BETWEEN_FAILURES = 90.0
NUM_FAILURES = 4
NAME, STAGE = "killed", "pretrain"
WORKER = "ray::RayTrainWorker"
MODEL = {"model_type": "gpt2", "n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128}


def write_job(folder: Path) -> Path:
    """A GPT-2 of a million parameters that is saved every 20 steps, and trains until it is told to stop."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(300)]
    lines = [" ".join(rng.choices(words, k=rng.randint(20, 80))) for _ in range(3000)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    stage = {
        "name": STAGE,
        "objective": {"name": "causal_lm"},
        "model": {"config": MODEL},
        "data": {"mixture": {"corpus": 1.0}, "seq_len": 128},
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 1_000_000},
        "checkpoint": {"every_steps": 20, "keep_last": 2},
        "logging": {"every_steps": 20},
    }
    job = {
        "name": NAME,
        "resources": {"num_workers": 1, "max_failures": 10 * NUM_FAILURES},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 1000, "datasets": ["corpus"]}},
        "datasets": {"corpus": {"source": "text", "files": "corpus.txt"}},
        "stages": [stage],
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def measure_goodput() -> dict[str, float]:
    """Kill the worker ``NUM_FAILURES`` times, then stop the run.

    Returns:
        ``goodput``, useful seconds over all since the first step; ``optimum``, the best that checkpoints of
        the same cost could do; ``save_seconds`` and ``restart_seconds`` of each; ``failures``.
    """
    with tempfile.TemporaryDirectory(prefix="goodput-") as folder:
        path = write_job(Path(folder))
        run = RunLayout(Path(folder, "runs", NAME))
        command = [
            sys.executable,
            "-m",
            "launchers.cli",
            "run",
            str(path),
            "--runs-dir",
            str(run.root.parent),
        ]
        driver = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait_for_steps(run, driver)
            _kill_again_and_again(driver)
            # The last interval counts like those before it.
            time.sleep(MEAN_SECONDS_BETWEEN_FAILURES)
            driver.terminate()
            driver.wait(timeout=120)
        finally:
            if driver.poll() is None:
                kill_tree(driver.pid)
                driver.wait()
        return _compare(run_status(run.root), list(read_json_lines(run.events)))


def _wait_for_steps(run: RunLayout, driver: subprocess.Popen[bytes]) -> None:
    while not any(event["event"] == "checkpoint" for event in read_json_lines(run.events)):
        if driver.poll() is not None:
            raise RuntimeError(f"the run ended with {driver.returncode} before its first checkpoint")
        time.sleep(0.5)


def _kill_again_and_again(driver: subprocess.Popen[bytes]) -> None:
    """Failures do not wait for a restart: one that finds no worker kills the next one as it comes."""
    rng, due = random.Random(SEED), time.monotonic()
    for _ in range(NUM_FAILURES):
        due += rng.expovariate(1 / MEAN_SECONDS_BETWEEN_FAILURES)
        time.sleep(max(0.0, due - time.monotonic()))
        while not (workers := _workers(driver)):
            time.sleep(0.2)
        for worker in workers:
            worker.kill()


def _workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _compare(status: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, float]:
    seconds = status["seconds"]
    num_saves = sum(event["event"] == "checkpoint" for event in events)
    save = seconds["save"] / num_saves
    restart = seconds["restart"] / NUM_FAILURES
    return {
        "goodput": (seconds["compute"] + seconds["data"]) / (seconds["total"] - seconds["startup"]),
        "optimum": young_daly(MEAN_SECONDS_BETWEEN_FAILURES, save, restart),
        "save_seconds": save,
        "restart_seconds": restart,
        "failures": NUM_FAILURES,
    }


def young_daly(mean: float, save: float, restart: float) -> float:
    """Useful time over wall time at the best interval between checkpoints.

    Args:
        mean: Seconds between failures, exponentially distributed.
        save: Seconds that a checkpoint holds training up.
        restart: Seconds from a failure to the first step after it.
    """
    intervals = np.geomspace(1e-3, 10 * mean, 20_000)
    walls = mean * math.exp(restart / mean) * np.expm1((intervals + save) / mean)
    return float((intervals / walls).max())


if __name__ == "__main__":
    print(f"{len(os.sched_getaffinity(0))} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}")
    print(json.dumps(measure_goodput(), indent=1))
