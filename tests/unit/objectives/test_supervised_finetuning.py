"""Conversations: the loss is that of the learned tokens, packed with others or alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.contracts import IGNORE_INDEX, Row, TokenInfo
from orchestrator.models import build_auto_model
from orchestrator.objectives.supervised_finetuning import SupervisedFinetuning
from orchestrator.spec.training import Data, SupervisedFinetuningObjective

VOCAB = 60
TOKENS = TokenInfo(VOCAB, 0, 1, None, (0, 1), np.zeros(VOCAB, dtype=bool))
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    },
}
NO_RNG: Any = None
PACKED = [[9, 3, 10], [8, 9], [20]]
OBJECTIVE = SupervisedFinetuning(SupervisedFinetuningObjective(name="supervised_finetuning"), TOKENS, ())


def build(kind: str) -> Any:
    torch.manual_seed(0)
    config = {"model_type": kind, **CONFIGS[kind], "initializer_range": 0.3}
    return build_auto_model(config, "causal_lm", TOKENS, ()).eval()


def conversations() -> list[list[Row]]:
    rng = np.random.default_rng(0)
    made = []
    for lengths in PACKED:
        in_row = []
        for length in lengths:
            learned = rng.random(length) < 0.5
            # The first token of a conversation may be learned, which no other token predicts.
            learned[[0, -1]] = True
            in_row.append(Row(rng.integers(2, VOCAB, length), is_learned=learned))
        made.append(in_row)
    return made


def pack(in_row: list[Row]) -> Row:
    numbers = np.repeat(np.arange(len(in_row)), [len(row.input_ids) for row in in_row])
    learned = [row.is_learned for row in in_row if row.is_learned is not None]
    ids = np.concatenate([row.input_ids for row in in_row])
    return Row(ids, document_ids=numbers, is_learned=np.concatenate(learned))


def test_labels_are_the_next_tokens_where_these_are_learned() -> None:
    row = Row(np.arange(10, 16), is_learned=np.array([1, 0, 1, 1, 0, 1], dtype=bool))
    batch = OBJECTIVE.collate([row, Row(np.arange(20, 22), is_learned=np.ones(2, bool))], NO_RNG)
    skip = IGNORE_INDEX
    assert batch["labels"].tolist() == [[skip, 12, 13, skip, 15, skip], [21, *[skip] * 5]]
    assert OBJECTIVE.num_targets(batch).tolist() == [4]
    assert batch["num_tokens"].tolist() == [6, 2]


@torch.no_grad()
def test_the_loss_is_that_of_the_model_itself() -> None:
    model = build("gpt2")
    row = conversations()[2][0]
    assert row.is_learned is not None
    ids = torch.from_numpy(row.input_ids)[None]
    own = model(input_ids=ids, labels=torch.where(torch.from_numpy(row.is_learned), ids, IGNORE_INDEX)).loss
    batch = OBJECTIVE.collate([row], NO_RNG)
    found = OBJECTIVE.loss_sums(model, batch) / OBJECTIVE.num_targets(batch)
    torch.testing.assert_close(found[0], own, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_of_each_packed_conversation_is_that_of_it_alone(kind: str) -> None:
    model = build(kind)
    rows = conversations()
    batch = OBJECTIVE.collate([pack(row) for row in rows], NO_RNG)
    alone = OBJECTIVE.collate([one for row in rows for one in row], NO_RNG)
    assert OBJECTIVE.num_targets(batch).tolist() == OBJECTIVE.num_targets(alone).tolist()
    torch.testing.assert_close(
        OBJECTIVE.loss_sums(model, batch), OBJECTIVE.loss_sums(model, alone), rtol=1e-5, atol=1e-5
    )
    for number, row in enumerate(rows):
        start = 0
        for one in row:
            end = start + len(one.input_ids)
            labels = torch.full_like(batch["labels"], IGNORE_INDEX)
            labels[number, start:end] = batch["labels"][number, start:end]
            found = OBJECTIVE.loss_sums(model, {**batch, "labels": labels})
            single = OBJECTIVE.loss_sums(model, OBJECTIVE.collate([one], NO_RNG))
            torch.testing.assert_close(found, single, rtol=1e-5, atol=1e-5)
            start = end


@torch.no_grad()
def test_metrics_are_of_the_targets_and_say_how_many_they_are() -> None:
    model = build("gpt2")
    rows = [one for row in conversations() for one in row]
    batch = OBJECTIVE.collate(rows, NO_RNG)
    whole = OBJECTIVE.statistics(model, batch, len(rows))
    (loss_sum,), (count,) = OBJECTIVE.loss_sums(model, batch).tolist(), OBJECTIVE.num_targets(batch).tolist()
    found = OBJECTIVE.metrics(whole)
    expected = {
        "loss": loss_sum / count,
        "perplexity": math.exp(loss_sum / count),
        "target_fraction": count / 59,
    }
    assert found == pytest.approx(expected)
    parts = [OBJECTIVE.statistics(model, OBJECTIVE.collate([row], NO_RNG), 1) for row in rows]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5)
    assert OBJECTIVE.statistics(model, batch, 0).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("packing", "kind"),
    [(True, "documents"), ("none", "documents"), (False, "documents"), ("best_fit", "best_fit")],
)
def test_conversations_share_a_row_with_best_fit_alone(packing: Any, kind: str) -> None:
    data = Data(mixture={"a": 1.0}, seq_len=32, packing=packing)
    section = SupervisedFinetuningObjective(name="supervised_finetuning", train_on="all")
    layout = SupervisedFinetuning.row_layout(section, data)
    assert (layout.kind, layout.document, layout.train_on) == (kind, "conversation", "all")
