"""Rows of several documents, each attending to itself alone: one trajectory on every strategy, bitwise."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.contracts import Head, Objective, Row, TokenInfo
from orchestrator.heads import AUTO_CLASSES
from orchestrator.models import find_blocks
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.spec.training import (
    CausalLMObjective,
    MaskedLMObjective,
    SequenceClassificationObjective,
)
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
NUM_LABELS = 3
ROWS = [(9, 4, 3), (16,), (1, 15), (7, 5)]
KINDS: dict[str, tuple[str, Head]] = {
    "gpt2": ("gpt2", "causal_lm"),
    "llama": ("llama", "causal_lm"),
    "bert": ("bert", "masked_lm"),
    "gpt2 classifier": ("gpt2", "sequence_classification"),
    "bert classifier": ("bert", "sequence_classification"),
}


def make_objective(head: Head) -> Objective:
    if head == "masked_lm":
        return MaskedLM(MaskedLMObjective(name="masked_lm", mlm_probability=0.3), TOKENS, ())
    if head == "causal_lm":
        return CausalLM(CausalLMObjective(name="causal_lm"), TOKENS, ())
    section = SequenceClassificationObjective(name="sequence_classification", num_labels=NUM_LABELS)
    return SequenceClassification(section, TOKENS, ())


def make_model(kind: str, head: Head) -> nn.Module:
    """The tiny models of the other tests, with the head that is asked for."""
    config = build_model(kind).config
    config.num_labels, config.pad_token_id = NUM_LABELS, TOKENS.pad_id
    torch.manual_seed(5)
    model: nn.Module = AUTO_CLASSES[head].from_config(config)
    return model


def make_rows(step: int, micro: int, head: Head) -> list[Row]:
    """The two rows of a micro-batch."""
    rng = np.random.default_rng((step, micro))
    rows = []
    for lengths in (ROWS[(step + micro) % 4], ROWS[(step + micro + 1) % 4]):
        assert sum(lengths) <= SEQ_LEN
        ids = rng.integers(5, VOCAB_SIZE, sum(lengths))
        labels = rng.integers(0, NUM_LABELS, len(lengths))
        document_ids = np.repeat(np.arange(len(lengths)), lengths)
        labelled = head == "sequence_classification"
        rows.append(Row(ids, labels=labels if labelled else None, document_ids=document_ids))
    return rows


def train_packed(name: str, strategy: dict[str, Any]) -> Trajectory:
    """This rank's part of a few steps of two micro-batches."""
    kind, head = KINDS[name]
    model = make_model(kind, head)
    engine = build_engine(model, strategy, blocks=find_blocks(model))
    objective, found, rank = make_objective(head), Trajectory(), dist.get_rank()
    for step in range(NUM_STEPS):
        batches = [
            objective.collate(make_rows(step, micro, head), np.random.default_rng((step, micro)))
            for micro in range(dist.get_world_size())
        ]
        count = sum(objective.num_targets(batch) for batch in batches)
        torch.manual_seed(step * 1_000_003 + rank)
        with engine.micro_step(last=True):
            loss = (objective.loss_sums(engine.model, batches[rank]) / count).sum()
            engine.backward(loss)
        found.losses[step, rank] = loss.item()
        found.norms.append(engine.gradient_norm())
        engine.step(1e-3, found.norms[-1])
    found.weights = engine.full_weights() or {}
    return found


def run_packed() -> dict[tuple[str, str], Trajectory]:
    """Every strategy's trajectory on this rank, by model and strategy."""
    return {
        (kind, name): train_packed(kind, strategy) for kind in KINDS for name, strategy in OPTIONS.items()
    }


@functools.cache
def trajectories() -> dict[tuple[str, str], Trajectory]:
    ranks = run_ranks(run_packed, 2)
    return {key: merge([rank[key] for rank in ranks]) for key in ranks[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "ddp"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_one_trajectory_on_every_strategy(kind: str, name: str) -> None:
    found, expected = trajectories()[kind, name], trajectories()[kind, "ddp"]
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    assert different(found.weights, expected.weights) == []
    assert len(set(expected.norms)) == NUM_STEPS
