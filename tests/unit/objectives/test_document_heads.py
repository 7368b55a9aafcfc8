"""Documents that share a row are classified as each is in a row of its own, whatever the head pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from orchestrator.contracts import IGNORE_INDEX, Row, TokenInfo
from orchestrator.errors import ModelError
from orchestrator.models import build_auto_model
from orchestrator.objectives.document_heads import document_logits, document_places
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.spec.training import SequenceClassificationObjective
from orchestrator.train.confinement import check_confined

VOCAB = 60
NAMES = ("a", "b", "c")
TOKENS = TokenInfo(VOCAB, 0, 1, 4, (0, 1, 2, 3, 4), np.zeros(VOCAB, dtype=bool))
SIZE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 34,
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "llama": {**SIZE, "num_key_value_heads": 1},
    "bert": SIZE,
    "roberta": SIZE,
    "distilbert": {"n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32},
    "electra": {**SIZE, "embedding_size": 16},
    "modernbert": {**SIZE, "local_attention": 8, "classifier_pooling": "mean"},
}
# Two, three and one documents; the longest row has 20 tokens.
PACKED = [[9, 11], [4, 1, 8], [17]]


def build(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"model_type": kind, **MODELS[kind], "attn_implementation": attention}
    model = build_auto_model(config, "sequence_classification", TOKENS, NAMES).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_objective() -> SequenceClassification:
    section = SequenceClassificationObjective(name="sequence_classification", num_labels=3)
    return SequenceClassification(section, TOKENS, NAMES)


def packed_and_alone() -> tuple[list[Row], list[Row]]:
    """The same documents in packed rows, and in rows of their own."""
    rng = np.random.default_rng(0)
    packed, alone = [], []
    for lengths in PACKED:
        documents = [rng.integers(5, VOCAB, length) for length in lengths]
        labels = rng.integers(0, 3, len(lengths))
        ids = np.repeat(np.arange(len(lengths)), lengths)
        packed.append(Row(np.concatenate(documents), labels=labels, document_ids=ids))
        alone += [Row(ids, label=int(label)) for ids, label in zip(documents, labels, strict=True)]
    return packed, alone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_gradients_and_metrics_of_packed_documents_are_those_of_each_alone(
    kind: str, attention: str
) -> None:
    model, objective, rng = build(kind, attention), make_objective(), np.random.default_rng(0)
    packed, alone = (objective.collate(rows, rng) for rows in packed_and_alone())
    assert objective.num_targets(packed).tolist() == objective.num_targets(alone).tolist() == [6]
    logits_BDC, logits_NC = (objective._logits(model, batch) for batch in (packed, alone))
    is_document = packed["labels"] != IGNORE_INDEX
    torch.testing.assert_close(logits_BDC[is_document], logits_NC, rtol=1e-5, atol=1e-5)
    together, apart = (objective.loss_sums(model, batch) for batch in (packed, alone))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (together, apart)),
        rtol=1e-4,
        atol=1e-4,
    )
    with torch.no_grad():
        for num_rows, num_documents in ((3, 6), (2, 5), (0, 0)):
            found = objective.statistics(model, packed, num_rows)
            expected = objective.statistics(model, alone, num_documents)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_models_pass_the_trial(kind: str) -> None:
    check_confined(build(kind), TOKENS, head="sequence_classification", seq_len=32, where="stage 'a'")


def test_a_body_that_pools_in_a_way_of_its_own_is_refused() -> None:
    """ALBERT's pooler is a part of what its body does to the first token."""
    config = {"model_type": "albert", **SIZE, "embedding_size": 8}
    model = build_auto_model(config, "sequence_classification", TOKENS, NAMES)
    with pytest.raises(ModelError, match=r"stage 'a': model_type 'albert' .*document_mask"):
        check_confined(model, TOKENS, head="sequence_classification", seq_len=32, where="stage 'a'")


def test_rows_with_fewer_documents_repeat_their_first_one() -> None:
    rows = [
        Row(np.arange(5), document_ids=np.array([0, 0, 1, 1, 1])),
        Row(np.arange(2), document_ids=np.array([0, 0])),
    ]
    assert document_places(rows).tolist() == [[[0, 1, -1], [2, 3, 4]], [[0, 1, -1], [0, 1, -1]]]


def test_no_hook_is_left_behind_even_after_an_error() -> None:
    model, objective = build("bert"), make_objective()
    batch = objective.collate(packed_and_alone()[0], np.random.default_rng(0))
    document_logits(model, batch, 0)
    with pytest.raises(IndexError):
        document_logits(model, {**batch, "input_ids": batch["input_ids"] + VOCAB}, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_body_that_takes_arguments_without_names_is_refused() -> None:
    class Positional(nn.Module):
        """Calls its body in a way that leaves open which argument is which."""

        base_model_prefix = "body"

        def __init__(self, inner: PreTrainedModel) -> None:
            super().__init__()
            self.base_model = inner.base_model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return self.base_model(input_ids, attention_mask)

    batch = make_objective().collate(packed_and_alone()[0], np.random.default_rng(0))
    with pytest.raises(ModelError, match="BertModel is called with 2 arguments that have no name"):
        document_logits(Positional(build("bert")), batch, 0)
