"""Rows of several documents, each attending to itself alone: one trajectory on every strategy, bitwise."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from orchestrator.contracts import Objective, Row, TokenInfo
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.spec.training import CausalLMObjective, MaskedLMObjective
from tests.distributed.test_engines import STRATEGIES
from tests.distributed.training import (
    SEQ_LEN,
    VOCAB_SIZE,
    Trajectory,
    build_engine,
    build_model,
    different,
    merge,
)
from tests.support import run_ranks

TOKENS = TokenInfo(VOCAB_SIZE, 0, 1, 4, (0, 1, 2, 3, 4), np.zeros(VOCAB_SIZE, dtype=bool))
OPTIONS: dict[str, dict[str, Any]] = {
    **STRATEGIES,
    "ddp checkpointing": {"name": "ddp", "activation_checkpointing": True},
    "fsdp2 checkpointing": {"name": "fsdp2", "activation_checkpointing": True},
    "zero 3 checkpointing": {"name": "zero", "stage": 3, "activation_checkpointing": True},
}
NUM_STEPS = 4
ROWS = [(9, 4, 3), (16,), (1, 15), (7, 5)]


def make_objective(kind: str) -> Objective:
    if kind == "bert":
        return MaskedLM(MaskedLMObjective(name="masked_lm", mlm_probability=0.3), TOKENS, ())
    return CausalLM(CausalLMObjective(name="causal_lm"), TOKENS, ())


def make_rows(step: int, micro: int) -> list[Row]:
    """The two rows of a micro-batch."""
    rng = np.random.default_rng((step, micro))
    rows = []
    for lengths in (ROWS[(step + micro) % 4], ROWS[(step + micro + 1) % 4]):
        assert sum(lengths) <= SEQ_LEN
        ids = rng.integers(5, VOCAB_SIZE, sum(lengths))
        rows.append(Row(ids, document_ids=np.repeat(np.arange(len(lengths)), lengths)))
    return rows


def train_packed(kind: str, strategy: dict[str, Any]) -> Trajectory:
    """This rank's part of a few steps of two micro-batches."""
    # Masked LM needs the model without its next-sentence head, whose logits it does not ask for.
    model = build_model(kind)
    if kind == "bert":
        from transformers import BertForMaskedLM

        torch.manual_seed(5)
        model = BertForMaskedLM(model.config)
    engine = build_engine(model, strategy)
    objective, found, rank = make_objective(kind), Trajectory(), dist.get_rank()
    for step in range(NUM_STEPS):
        batches = [
            objective.collate(make_rows(step, micro), np.random.default_rng((step, micro)))
            for micro in range(dist.get_world_size())
        ]
        count = sum(objective.num_targets(batch) for batch in batches)
        torch.manual_seed(step * 1_000_003 + rank)
        with engine.micro_step(last=True):
            loss = (objective.loss_sums(engine.model, batches[rank]) / count).sum()
            engine.backward(loss)
        found.losses[step, rank] = loss.item()
        found.norms.append(engine.step(1e-3))
    found.weights = engine.full_weights() or {}
    return found


def run_packed() -> dict[tuple[str, str], Trajectory]:
    """Every strategy's trajectory on this rank, by model and strategy."""
    return {
        (kind, name): train_packed(kind, strategy)
        for kind in ("gpt2", "llama", "bert")
        for name, strategy in OPTIONS.items()
    }


@functools.cache
def trajectories() -> dict[tuple[str, str], Trajectory]:
    ranks = run_ranks(run_packed, 2)
    return {key: merge([rank[key] for rank in ranks]) for key in ranks[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "ddp"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_packed_rows_give_one_trajectory_on_every_strategy(kind: str, name: str) -> None:
    found, expected = trajectories()[kind, name], trajectories()[kind, "ddp"]
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    assert different(found.weights, expected.weights) == []
    assert len(set(expected.norms)) == NUM_STEPS
