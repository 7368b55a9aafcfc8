"""A row that spoils its step: all ranks decide alike before the optimizer moves, as the job says."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from launchers.cli import main
from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import step_name
from orchestrator.data.prepared import Meta
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.agreement import AgreedError
from orchestrator.train.ledger import read_ledger
from tests.distributed.training import different
from tests.support import run_ranks

STAGE = "pretrain"
MAX_STEPS = 20
PLUGIN = '''
import json
from pathlib import Path

from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.spec.training import CausalLMObjective

INNER = CausalLMObjective(name="causal_lm")


class Poisoned(CausalLM):
    """The loss of a micro-batch with the poisonous token is multiplied by a factor."""

    def __init__(self, section, tokens, label_names):
        super().__init__(INNER, tokens, [])
        self.poison = json.loads(Path(__file__).with_name("poison.json").read_text())

    @classmethod
    def row_layout(cls, section, data):
        return super().row_layout(INNER, data)

    def loss_sums(self, model, batch):
        sums = super().loss_sums(model, batch)
        if (batch["input_ids"] == self.poison["token"]).any():
            sums = sums * float(self.poison["factor"])
        return sums
'''


def write_job(folder: Path, name: str, **changes: Any) -> Path:
    """A run of one stage on a corpus in which one line has a capital Z."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    lines = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(60)]
    lines[30] += "Z"
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "poisoned.py").write_text(PLUGIN)
    model = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 30, "n_positions": 32}
    stage: dict[str, Any] = {
        "name": STAGE,
        "objective": {"name": "poisoned:Poisoned", "options": {}},
        "model": {"config": model},
        "data": {"mixture": {"corpus": 1.0}, "seq_len": 32},
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "limits": {"max_steps": MAX_STEPS},
        "checkpoint": {"every_steps": 3, "keep_last": MAX_STEPS},
        "logging": {"every_steps": 1},
    }
    job = {
        "name": name,
        "seed": 11,
        "resources": {"num_workers": changes.pop("num_workers", 2)},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 301, "datasets": ["corpus"]}},
        "datasets": {"corpus": {"source": "text", "files": "corpus.txt"}},
        "stages": [{**stage, **changes}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def prepare(folder: Path, name: str, **changes: Any) -> StageLayout:
    """Make what the run's workers read."""
    path = write_job(folder, name, **changes)
    assert main(["prepare", str(path), "--runs-dir", str(folder / "runs")]) == 0
    return layout_of(folder, name)


def layout_of(folder: Path, name: str) -> StageLayout:
    return RunLayout(folder / "runs" / name).stage(STAGE)


def run(folder: str, names: list[str]) -> dict[str, str]:
    """Outcome or error of each run, on one rank."""
    sys.path.insert(0, folder)
    from orchestrator.train.worker import run_stage

    outcomes: dict[str, str] = {}
    for name in names:
        try:
            outcomes[name] = run_stage(Path(folder, "runs", name), STAGE)
        except AgreedError as error:
            outcomes[name] = str(error)
    return outcomes


def set_poison(folder: Path, layout: StageLayout, factor: float) -> None:
    """From now on the row with the Z is as bad as ``factor``."""
    rows = Path(json.loads(layout.inputs.read_text())["train"]["corpus"])
    tokenizer = json.loads(
        Path(json.loads(layout.inputs.read_text())["tokenizer"], "tokenizer.json").read_text()
    )
    assert Meta.open(rows).num_rows < 8 * MAX_STEPS, "every row is read at least once"
    poison = {"token": tokenizer["model"]["vocab"]["Z"], "factor": factor}
    (folder / "poison.json").write_text(json.dumps(poison))


CHANGES: dict[str, dict[str, Any]] = {
    "skip": {"anomalies": {"nonfinite": "skip"}},
    "skip-zero-1": {"anomalies": {"nonfinite": "skip"}, "strategy": {"name": "zero"}, "num_workers": 1},
    "stop": {},
    "rollback": {"anomalies": {"nonfinite": "rollback"}, "strategy": {"name": "fsdp2"}},
    "rollback-zero": {"anomalies": {"nonfinite": "rollback"}, "strategy": {"name": "zero", "stage": 3}},
    "spike": {"anomalies": {"loss_spike": {"action": "skip", "factor": 5, "window": 1}}},
    "overflow": {
        "optimizer": {"name": "sgd", "lr": 3e38, "weight_decay": 1e6},
        "schedule": {"name": "constant"},
        "checkpoint": {"every_steps": 1},
    },
}


Runs = tuple[Path, dict[str, list[str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The folder of all runs, each at its end, and what every rank said of it."""
    folder = tmp_path_factory.mktemp("anomalies")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        layouts = {name: prepare(folder, name, **changes) for name, changes in CHANGES.items()}
        set_poison(folder, layouts["skip"], float("nan"))
        outcomes: dict[str, list[str]] = {}
        one = [name for name, changes in CHANGES.items() if changes.get("num_workers") == 1]
        two = [name for name in CHANGES if name not in (*one, "spike")]
        for names, workers in ((one, 1), (two, 2)):
            for rank in run_ranks(run, workers, str(folder), names):
                for name, outcome in rank.items():
                    outcomes.setdefault(name, []).append(outcome)
        # What stopped goes on with another answer; beside it, a row that is bad and finite.
        prepare(folder, "stop", anomalies={"nonfinite": "skip"})
        for rank in run_ranks(run, 2, str(folder), ["stop"]):
            outcomes["stop"].append(rank["stop"])
        set_poison(folder, layouts["spike"], 50.0)
        outcomes["spike"] = [rank["spike"] for rank in run_ranks(run, 2, str(folder), ["spike"])]
        yield folder, outcomes


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(layout_of(folder, name).weights / "model.safetensors")


def anomalies(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in read_json_lines(folder / "runs" / name / "events.jsonl") if e["event"] == "anomaly"]


def left_out(folder: Path, name: str) -> list[tuple[int, int]]:
    return [steps for record in read_ledger(layout_of(folder, name).ledger) for steps in record.left_out]


@pytest.mark.slow
def test_a_step_with_nan_on_one_rank_is_left_out_by_all_and_counted(runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes["skip"] == ["finished", "finished"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder, "skip").values())
    found = anomalies(folder, "skip")
    assert len(found) >= 2, "the row comes once an epoch"
    for event in found:
        assert (event["what"], event["action"], len(event["ranks"])) == ("the loss is nan", "skip", 1)
        assert event["rows"] == [8 * (event["step"] - 1), 8 * event["step"]]
    assert left_out(folder, "skip") == [(event["step"] - 1, event["step"]) for event in found]
    metrics = {line["step"]: line for line in read_json_lines(layout_of(folder, "skip").metrics)}
    assert {step for step, line in metrics.items() if line.get("train/steps_left_out")} == {
        event["step"] for event in found
    }
    proof = verify_run(folder / "runs" / "skip", None)
    assert proof["ok"]
    assert proof["stages"][0]["ledger"]["steps_left_out"] == len(found)


@pytest.mark.slow
def test_what_is_left_out_does_not_depend_on_workers_and_strategy(runs: Runs) -> None:
    folder, _ = runs
    assert left_out(folder, "skip-zero-1") == left_out(folder, "skip")
    assert different(weights(folder, "skip-zero-1"), weights(folder, "skip")) == []


@pytest.mark.slow
def test_stop_names_the_step_saves_what_came_before_and_goes_on_once_told_how(runs: Runs) -> None:
    folder, outcomes = runs
    step = anomalies(folder, "stop")[0]["step"]
    rank = anomalies(folder, "stop")[0]["ranks"][0]
    for message in outcomes["stop"][:2]:
        assert f"step {step}: the loss is nan, with no finite loss on rank {rank}" in message
        assert f"rows {8 * (step - 1)} to {8 * step - 1}" in message
        assert "anomalies.nonfinite" in message
    assert outcomes["stop"][2:] == ["finished", "finished"]
    starts = [
        e["step"]
        for e in read_json_lines(folder / "runs" / "stop" / "events.jsonl")
        if e["event"] == "training_started"
    ]
    assert starts == [0, step - 1]
    assert different(weights(folder, "stop"), weights(folder, "skip")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollback", "rollback-zero"])
def test_rollback_passes_over_the_rows_since_the_newest_checkpoint(name: str, runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes[name] == ["finished", "finished"]
    gaps = left_out(folder, name)
    assert [end for _, end in gaps] == [event["step"] for event in anomalies(folder, name)]
    checkpoints = layout_of(folder, name).checkpoints
    for first, end in gaps:
        before, after = (
            CheckpointManager.read_weights(checkpoints / step_name(step)) for step in (first, end)
        )
        assert different(after, before) == []
    assert any(end - first > 1 for first, end in gaps), "some of them lie behind the checkpoint"
    assert verify_run(folder / "runs" / name, None)["ok"]


@pytest.mark.slow
def test_a_loss_that_jumps_is_left_out_as_well(runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes["spike"] == ["finished", "finished"]
    assert left_out(folder, "spike") == left_out(folder, "skip")
    assert "over 5 times the mean" in anomalies(folder, "spike")[0]["what"]


@pytest.mark.slow
def test_weights_that_overflowed_are_never_saved(runs: Runs) -> None:
    folder, outcomes = runs
    for message in outcomes["overflow"]:
        assert "tensors of weights or optimizer state hold NaN or infinity" in message
    assert not any(layout_of(folder, "overflow").checkpoints.glob("step-*/COMPLETE"))


STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "replicas": {"name": "fsdp2", "replicate_degree": 2},
    **{f"zero-{stage}": {"name": "zero", "stage": stage} for stage in (0, 1, 2, 3)},
}


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_nan_on_one_rank_is_left_out_alike_under_every_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    skip = {"anomalies": {"nonfinite": "skip"}}
    layouts = {
        name: prepare(tmp_path, name, strategy=strategy, **skip) for name, strategy in STRATEGIES.items()
    }
    set_poison(tmp_path, layouts["ddp"], float("nan"))
    for rank in run_ranks(run, 2, str(tmp_path), list(STRATEGIES), timeout_seconds=1000):
        assert rank == dict.fromkeys(STRATEGIES, "finished")
    reference = anomalies(tmp_path, "ddp")
    assert reference
    for name in STRATEGIES:
        assert [(e["step"], e["ranks"]) for e in anomalies(tmp_path, name)] == [
            (e["step"], e["ranks"]) for e in reference
        ]
        assert left_out(tmp_path, name) == left_out(tmp_path, "ddp")
        assert different(weights(tmp_path, name), weights(tmp_path, "ddp")) == [], name
        assert verify_run(tmp_path / "runs" / name, None)["ok"]
