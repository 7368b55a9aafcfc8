"""SIGKILL of the driver and all workers at a seeded step, for every strategy: the same command goes on,
and the final weights equal the uninterrupted run's bit for bit, dropout on.

With two micro-batches per step all strategies are one trajectory, so one uninterrupted ddp run is the
reference of all of them."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
import yaml

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import list_steps
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different, end_of
from tests.e2e.commands import kill_when, last_step, succeed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STRATEGIES = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero0": {"name": "zero", "stage": 0},
    "zero1": {"name": "zero", "stage": 1},
    "zero2": {"name": "zero", "stage": 2},
    "zero3": {"name": "zero", "stage": 3},
}
MAX_STEPS = 24
SAVE_EVERY = 5


def write_job(folder: Path, name: str, strategies: list[str]) -> Path:
    """One training stage per strategy, each from scratch."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    lines = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(300)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    model = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 30, "n_positions": 32}
    job = {
        "name": name,
        "seed": 11,
        "resources": {"num_workers": 2},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 301, "datasets": ["corpus"]}},
        "datasets": {"corpus": {"source": "text", "files": "corpus.txt"}},
        "defaults": {
            "objective": {"name": "causal_lm"},
            "model": {"config": model},
            "data": {"mixture": {"corpus": 1.0}, "seq_len": 32},
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "optimizer": {"name": "adamw", "lr": 3e-3, "max_grad_norm": 0.5},
            "schedule": {"name": "cosine", "warmup_steps": 3},
            "limits": {"max_steps": MAX_STEPS},
            "checkpoint": {"every_steps": SAVE_EVERY, "keep_last": 2},
            "logging": {"every_steps": 1},
        },
        "stages": [{"name": key, "strategy": STRATEGIES[key]} for key in strategies],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def reached(stage: StageLayout, step: int) -> bool:
    """Whether a step is logged; a checkpoint before it may still be on its way to the disk."""
    return last_step(stage.metrics) >= step and any(s.is_complete for s in list_steps(stage.checkpoints))


def losses(layout: RunLayout, stage: str) -> dict[int, float]:
    records = read_json_lines(layout.stage(stage).metrics)
    return {record["step"]: record["train/loss"] for record in records}


def spoil_rays_own_record(run: RunLayout, how: str) -> None:
    """Truncate or remove what Ray Train wrote of a run; it is no source of truth."""
    files = [path for path in run.root.glob("ray-*/**/*") if path.is_file()]
    assert files
    for path in files:
        if how == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()


@pytest.mark.timeout(1200)
def test_killed_runs_end_with_the_weights_of_the_uninterrupted_run(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    succeed("run", write_job(tmp_path, "whole", ["ddp"]), "--runs-dir", runs, home=home)
    killed = RunLayout(runs / "killed")
    command = ("run", write_job(tmp_path, "killed", list(STRATEGIES)), "--runs-dir", runs)
    rng = random.Random(2)
    for stage in STRATEGIES:
        step = rng.randint(SAVE_EVERY + 1, MAX_STEPS - 10)
        kill_when(partial(reached, killed.stage(stage), step), *command, home=home)
        assert not killed.stage(stage).result.exists(), "the kill came after the stage had ended"
        spoil_rays_own_record(killed, rng.choice(["truncate", "remove"]))
    succeed(*command, home=home)

    whole = RunLayout(runs / "whole")
    expected = end_of(whole.stage("ddp"))
    for stage in STRATEGIES:
        assert different(end_of(killed.stage(stage)), expected) == [], stage
        assert losses(killed, stage) == losses(whole, "ddp"), stage
        starts = [
            event["step"]
            for event in read_json_lines(killed.events)
            if event["event"] == "training_started" and event["stage"] == stage
        ]
        assert len(starts) == 2
        assert starts[0] == 0
        assert starts[1] % SAVE_EVERY == 0
        assert starts[1] > 0, "the second start must have gone on from a checkpoint"
    proof = json.loads(succeed("verify", killed.root, "--json", home=home))
    assert proof["ok"]
    assert [stage["ledger"]["rows"] for stage in proof["stages"]] == [MAX_STEPS * 8] * len(STRATEGIES)
    assert len(proof["checkpoints"]) == 2 * len(STRATEGIES)
    assert json.loads(killed.stage("zero3").result.read_text())["step"] == MAX_STEPS
