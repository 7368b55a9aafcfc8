"""weights: best: the weights of the best evaluation are what a stage leaves to later ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from launchers.cli import main
from launchers.verification import verify_run
from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different
from tests.support import run_ranks
from tests.unit.data.corpus import make_texts

pytestmark = pytest.mark.slow
MAX_STEPS = 10
# Rises so high that later evaluations are worse.
OPTIMIZER = {"name": "sgd", "lr": 20.0, "max_grad_norm": 1.0}
MODEL = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 32}


def prepare(folder: Path, *, max_steps: int = MAX_STEPS, **checkpoint: Any) -> RunLayout:
    """A job whose evaluation is best somewhere in the middle."""
    (folder / "corpus.txt").write_text("\n".join(make_texts(80)))
    stage = {
        "name": "train",
        "objective": {"name": "causal_lm"},
        "model": {"config": MODEL},
        "data": {"mixture": {"corpus": 1.0}, "seq_len": 32},
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "strategy": {"name": "fsdp2"},
        "optimizer": OPTIMIZER,
        "schedule": {"name": "constant", "warmup_steps": max_steps},
        "limits": {"max_steps": max_steps},
        "evaluation": {"datasets": ["corpus"], "every_steps": 2},
        "checkpoint": {"every_steps": 2, "keep_last": 2, "keep_best": {"metric": "eval/loss"}, **checkpoint},
        "logging": {"every_steps": 1},
    }
    job = {
        "name": "run",
        "resources": {"num_workers": 2},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["corpus"]}},
        "datasets": {"corpus": {"source": "text", "files": "corpus.txt", "validation_fraction": 0.2}},
        "stages": [stage],
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    assert main(["prepare", str(path), "--runs-dir", str(folder / "runs")]) == 0
    return RunLayout(folder / "runs" / "run")


def run(root: str) -> str:
    from orchestrator.train.worker import run_stage

    return run_stage(Path(root), "train")


def damaged(layout: RunLayout) -> list[dict[str, Any]]:
    return [event for event in read_json_lines(layout.events) if event["event"] == "checkpoint_damaged"]


def evaluations(layout: RunLayout) -> dict[int, float]:
    """The loss of each evaluation, by step."""
    lines = read_json_lines(layout.stage("train").metrics)
    return {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}


def test_weights_are_the_best_evaluations_and_the_next_bests_where_that_is_damaged(
    tmp_path: Path,
) -> None:
    layout = prepare(tmp_path, weights="best", keep_last=MAX_STEPS)
    stage = layout.stage("train")
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    losses = evaluations(layout)
    assert all(losses.values()), losses
    first, second, third, *_ = sorted(losses, key=losses.__getitem__)
    assert MAX_STEPS not in (first, second, third), "the job must get worse"
    result = json.loads(stage.result.read_text())
    assert (result["step"], result["weights_step"]) == (MAX_STEPS, first)
    assert result["metrics"]["eval/loss"] == losses[first]
    weights = load_file(stage.weights / "model.safetensors")
    assert different(weights, CheckpointManager.read_weights(stage.checkpoints / step_name(first))) == []
    assert verify_run(layout.root, None)["ok"]

    # Weights that are lost are written anew by the next start.
    shutil.rmtree(stage.weights)
    stage.result.unlink()
    shard = max((stage.checkpoints / step_name(first)).iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    assert json.loads(stage.result.read_text())["weights_step"] == second
    assert [event["step"] for event in damaged(layout)] == [first]

    # So where it is the state, which says how good it was.
    stage.result.unlink()
    state = stage.checkpoints / step_name(second) / "state.json"
    state.write_text(state.read_text().replace('"eval/loss": ', '"eval/loss": 1'))
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    assert json.loads(stage.result.read_text())["weights_step"] == third
    assert [event["step"] for event in damaged(layout)] == [first, second]


def test_the_best_checkpoint_is_kept_and_the_last_weights_are_the_stages_unless_told(tmp_path: Path) -> None:
    layout = prepare(tmp_path)
    stage = layout.stage("train")
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    losses = evaluations(layout)
    best = min(losses, key=losses.__getitem__)
    assert best < MAX_STEPS - 2
    assert [found.step for found in list_steps(stage.checkpoints)] == [best, MAX_STEPS - 2, MAX_STEPS]
    result = json.loads(stage.result.read_text())
    assert (result["weights_step"], result["metrics"]["eval/loss"]) == (MAX_STEPS, losses[MAX_STEPS])
    last = CheckpointManager.read_weights(stage.checkpoints / step_name(MAX_STEPS))
    assert different(load_file(stage.weights / "model.safetensors"), last) == []
    shares = [record.get("goodput/fraction") for record in read_json_lines(stage.metrics)]
    told = [share for share in shares if share is not None]
    assert told and len(told) < len(shares) and all(0 < share < 1 for share in told), "once a checkpoint"
    assert not any(name.startswith("goodput/") for name in result["metrics"])


def test_the_last_checkpoint_says_how_good_it_is_and_its_evaluation_is_logged_once(tmp_path: Path) -> None:
    # The best one may be the last, and a stage whose limits are raised goes on from it.
    layout = prepare(tmp_path, max_steps=3)
    stage = layout.stage("train")
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    evaluated = evaluations(layout)
    assert list(evaluated) == [2, 3]
    for step, loss in evaluated.items():
        assert seal.read_state(stage.checkpoints / step_name(step))["metrics"]["eval/loss"] == loss
    # As after a death between the last checkpoint and the result.
    stage.result.unlink()
    lines = stage.metrics.read_text()
    assert run_ranks(run, 2, str(layout.root)) == ["finished", "finished"]
    assert stage.metrics.read_text() == lines
    assert json.loads(stage.result.read_text())["metrics"]["eval/loss"] == evaluated[3]
