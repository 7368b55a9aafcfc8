"""From the command to the first step on a Ray that is running, beside the least that Ray Train does.

Theirs is a ``TorchTrainer.fit`` of a loop that returns at once, in a process of its own. Ours is
``orchestrator run`` of two stages of one step on data that is prepared, to the end of the first; where its
time went is what the run's events say. Both in turn on one cluster, with two workers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.benchmarks.goodput import write_job
from tests.e2e.ray_cluster import ray_cluster

REPEATS = 3
WORKERS = 2
BARE = f"""
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def loop():
    pass


import sys

ray.init(log_to_driver=False, logging_level="ERROR")
TorchTrainer(
    loop, scaling_config=ScalingConfig(num_workers={WORKERS}), run_config=RunConfig(storage_path=sys.argv[1])
).fit()
ray.shutdown()
"""
# Part of a start: from the event that begins it to the one that ends it.
PARTS = {
    "command and data": ("run_started", "stage_starting"),
    "workers": ("stage_starting", "stage_started"),
    "model": ("stage_started", "training_started"),
    "first step": ("training_started", "training_ended"),
}


def measure_first_step(repeats: int = REPEATS) -> dict[str, float]:
    """Medians over turns, in seconds.

    Returns:
        ``run`` and ``bare``, the commands as a whole; ``first`` and ``second``, from a stage's start to the
        end of its only step; and the parts of the first by their names in ``PARTS``.
    """
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="first-") as name, ray_cluster() as cluster:
        folder = Path(name)
        env = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address}
        cluster.start("head", num_cpus=WORKERS)
        for turn in range(repeats + 1):
            both = _turn(folder, turn, env)
            # In the first one data is prepared, and modules are read from the disk.
            for key, seconds in both.items() if turn else ():
                found.setdefault(key, []).append(seconds)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


def _turn(folder: Path, turn: int, env: dict[str, str]) -> dict[str, float]:
    path = _write_job(folder, f"turn{turn}")
    run = RunLayout(folder / "runs" / f"turn{turn}")
    command = [sys.executable, "-m", "launchers.cli", "run", str(path), "--runs-dir", str(run.root.parent)]
    bare = _seconds([sys.executable, "-c", BARE, str(folder / "bare")], env)
    whole = _seconds(command, env)
    events = list(read_json_lines(run.events))
    # The run's own start is the first stage's.
    at = {(event.get("stage", "first"), event["event"]): _time(event) for event in events}
    first = at["first", "training_ended"] - at["first", "stage_starting"]
    second = at["second", "training_ended"] - at["first", "stage_finished"]
    parts = {name: at["first", end] - at["first", begin] for name, (begin, end) in PARTS.items()}
    rest = at["second", "stage_finished"] - at["first", "stage_finished"]
    return {"bare": bare, "run": whole - rest, "first": first, "second": second, **parts}


def _write_job(folder: Path, name: str) -> Path:
    """Two stages of one step."""
    path = write_job(folder)
    job: dict[str, Any] = yaml.safe_load(path.read_text())
    (stage,) = job["stages"]
    del stage["checkpoint"]
    stage |= {"limits": {"max_steps": 1}, "micro_batch_size": 4}
    job |= {"name": name, "resources": {"num_workers": WORKERS}}
    job["stages"] = [{**stage, "name": "first"}, {**stage, "name": "second"}]
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _seconds(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[1:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"{len(os.sched_getaffinity(0))} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}")
    for name, seconds in measure_first_step().items():
        print(f"{name:20}{seconds:8.2f} s")
