"""Objectives on real ranks: the same bits on every strategy, and the stages of the smoke job to their end."""

from __future__ import annotations

import functools
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launchers.cli import main
from launchers.predict import predict
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.contracts import IGNORE_INDEX, Objective, Row, TokenInfo
from orchestrator.data.loader import RowReader
from orchestrator.models import build_auto_model, find_blocks
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.objectives.supervised_finetuning import SupervisedFinetuning
from orchestrator.objectives.token_classification import TokenClassification
from orchestrator.spec.training import (
    SequenceClassificationObjective,
    SupervisedFinetuningObjective,
    TokenClassificationObjective,
)
from orchestrator.train.evaluate import evaluate_datasets
from orchestrator.train.inputs import StageInputs
from orchestrator.train.worker import run_stage
from tests.distributed.training import build_engine
from tests.support import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
VOCAB = 101
TOKENS = TokenInfo(VOCAB, 0, 1, None, (0, 1), np.zeros(VOCAB, dtype=bool))
SIZE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **SIZE},
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero 3": {"name": "zero", "stage": 3},
}
NAMES = ("O", "B-X", "I-X")
KINDS = {"pairs, sets of labels": "bert", "numbers": "gpt2", "words": "bert", "conversations": "gpt2"}


def objective_of(kind: str) -> tuple[Objective, tuple[str, ...]]:
    if kind == "words":
        tags = TokenClassificationObjective(name="token_classification", num_labels=3)
        return TokenClassification(tags, TOKENS, NAMES), NAMES
    if kind == "conversations":
        chat = SupervisedFinetuningObjective(name="supervised_finetuning")
        return SupervisedFinetuning(chat, TOKENS, ()), ()
    problem: Any = "regression" if kind == "numbers" else "multi_label"
    names = ("score",) if kind == "numbers" else NAMES
    section = SequenceClassificationObjective(name="sequence_classification", problem=problem, num_labels=3)
    return SequenceClassification(section, TOKENS, names), names


def rows_of(kind: str, seed: int) -> list[Row]:
    """Two rows of a micro-batch."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        length = int(rng.integers(6, 20))
        ids = rng.integers(2, VOCAB, length)
        half = np.arange(length) >= length // 2
        if kind == "words":
            labels = np.where(rng.random(length) < 0.6, rng.integers(0, 3, length), IGNORE_INDEX)
            made.append(Row(ids, token_labels=labels))
        elif kind == "conversations":
            made.append(Row(ids, is_learned=rng.random(length) < 0.7, document_ids=half.astype(np.int64)))
        elif kind == "numbers":
            made.append(Row(ids, label=rng.normal(size=1).astype(np.float32)))
        else:
            label = (rng.random(3) < 0.5).astype(np.float32)
            made.append(Row(ids, label=label, segment_ids=half.astype(np.int64)))
    return made


def losses(kind: str, strategy: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps of one micro-batch on each of two ranks, and the weights after them."""
    objective, names = objective_of(kind)
    torch.manual_seed(0)
    model = build_auto_model(CONFIGS[KINDS[kind]], objective.head, TOKENS, names)
    engine = build_engine(model, strategy, blocks=find_blocks(model))
    rng = np.random.default_rng(0)
    found = []
    for step in range(3):
        batches = [objective.collate(rows_of(kind, 10 * step + rank), rng) for rank in range(2)]
        count = sum(int(objective.num_targets(batch)) for batch in batches)
        torch.manual_seed(step * 2 + dist.get_rank())
        with engine.micro_step(last=True):
            loss = objective.loss_sums(engine.model, batches[dist.get_rank()])[0] / count
            engine.backward(loss)
        found.append(loss.item())
        engine.step(1e-3, engine.gradient_norm())
    return found, engine.full_weights() or {}


def run_all() -> dict[tuple[str, str], Any]:
    return {(kind, name): losses(kind, strategy) for kind in KINDS for name, strategy in STRATEGIES.items()}


@functools.cache
def trained() -> list[dict[tuple[str, str], Any]]:
    return run_ranks(run_all, 2)


@pytest.mark.parametrize("name", ["fsdp2", "zero 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_has_the_bits_of_ddp_on_every_strategy(kind: str, name: str) -> None:
    for rank in trained():
        (expected, weights), (found, others) = rank[kind, "ddp"], rank[kind, name]
        assert found == expected
        assert all(torch.equal(others[key], value) for key, value in weights.items())
    first, second = trained()
    assert first[kind, "ddp"][0] != second[kind, "ddp"][0]
    assert len(first[kind, "ddp"][1]) > 10


def run_stages(run_dir: str) -> list[str]:
    outcomes = [run_stage(Path(run_dir), stage) for stage in ("chat", "tags", "topics", "sum")]
    assert_evaluated_in_order(Path(run_dir))
    return outcomes


def assert_evaluated_in_order(run_dir: Path) -> None:
    """Metrics over both ranks' rows are those of all rows at once, to the bit."""
    objective, _ = objective_of("numbers")
    weights = RunLayout(run_dir).stage("sum").weights
    model = AutoModelForSequenceClassification.from_pretrained(weights).eval()
    inputs = StageInputs.read(RunLayout(run_dir).stage("sum"))
    reader = RowReader.open(Path(inputs.evaluation["sums"]), seed=0, source_name="sums")
    # Three micro-batches for two ranks, the last one short.
    size = reader.num_rows // 2 - 1
    metrics = evaluate_datasets(
        model,
        objective,
        {"sums": reader},
        micro_batch_size=size,
        max_rows=None,
        seed=0,
        device=torch.device("cpu"),
        forward_context=nullcontext,
    )
    found = []
    for start in range(0, reader.num_rows, size):
        rows = reader.read(np.arange(start, min(start + size, reader.num_rows)), 0)
        with torch.no_grad():
            batch = objective.collate(rows, np.random.default_rng(0))
            found.append(objective.statistics(model, batch, len(rows)))
    assert len(found) == 3
    assert metrics == {f"eval/{name}": value for name, value in objective.metrics(torch.cat(found)).items()}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """The smoke job of tasks, run on two ranks without Ray."""
    runs = tmp_path_factory.mktemp("tasks")
    assert main(["prepare", str(ROOT / "jobs" / "smoke_tasks.yaml"), "--runs-dir", str(runs)]) == 0
    run_dir = runs / "smoke-tasks"
    assert run_ranks(run_stages, 2, str(run_dir)) == [["finished"] * 4] * 2
    return RunLayout(run_dir)


METRICS = {
    "chat": {"loss", "perplexity", "target_fraction"},
    "tags": {"loss", "accuracy", "macro_f1", "precision", "recall", "f1"},
    "topics": {"loss", "micro_f1", "macro_f1", "exact_match"},
    "sum": {"loss", "mse", "mae", "pearson", "spearman"},
}


def test_stages_of_all_tasks_end_with_their_metrics(layout: RunLayout) -> None:
    for stage, wanted in METRICS.items():
        metrics = json.loads(layout.stage(stage).result.read_text())["metrics"]
        assert {name.removeprefix("eval/") for name in metrics if name.startswith("eval/")} == wanted
    assert main(["verify", str(layout.root)]) == 0


def test_weights_of_a_task_say_what_they_answer(layout: RunLayout) -> None:
    problems = {"topics": "multi_label_classification", "sum": "regression"}
    for stage, problem in problems.items():
        model = AutoModelForSequenceClassification.from_pretrained(layout.stage(stage).weights)
        assert model.config.problem_type == problem
    assert model.config.id2label == {0: "sum"}
    chat = AutoTokenizer.from_pretrained(layout.stage("chat").weights)
    asked = chat.apply_chat_template(
        [{"role": "user", "content": "add one"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "User: add one\nAssistant:"
    keys = {"chat": "reply", "tags": "tags", "topics": "labels", "sum": "values"}
    for stage, key in keys.items():
        pairs = ["two"] if stage in problems else []
        assert key in predict(layout.root, stage=stage, texts=["add one"], pairs=pairs)[0]
