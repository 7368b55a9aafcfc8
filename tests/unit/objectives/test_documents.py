"""Documents that share a row have the loss, and give the gradients, that each has in a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.contracts import IGNORE_INDEX, Batch, Objective, Row, TokenInfo
from orchestrator.errors import ModelError
from orchestrator.models import build_auto_model
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.documents import document_fields, model_inputs
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.spec.training import CausalLMObjective, MaskedLMObjective

VOCAB = 60
PAD, EOS, CLS, SEP, MASK = range(5)
TOKENS = TokenInfo(VOCAB, PAD, EOS, MASK, (PAD, EOS, CLS, SEP, MASK), np.zeros(VOCAB, dtype=bool))
SIZE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 34,
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "llama": {**SIZE, "num_key_value_heads": 1},
    "mistral": {**SIZE, "num_key_value_heads": 1, "sliding_window": 5},
}
MASKED: dict[str, dict[str, Any]] = {
    "bert": SIZE,
    "roberta": SIZE,
    "modernbert": {**SIZE, "local_attention": 8},
}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])
# Rows of 20, 17 and 20 tokens; a document of one token, and one that is a row alone.
PACKED = [[9, 1, 10], [8, 9], [20]]


def build(kind: str, attention: str, *, is_causal: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"model_type": kind, **(CAUSAL if is_causal else MASKED)[kind], "attn_implementation": attention}
    model = build_auto_model(config, "causal_lm" if is_causal else "masked_lm", TOKENS, ()).eval()
    for parameter in model.parameters():
        # Fresh weights of some architectures hardly attend at all.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def documents(*, framed: bool) -> list[list[np.ndarray]]:
    """The documents of each packed row."""
    rng = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        ids = rng.integers(5, VOCAB, length)
        return np.concatenate([[CLS], ids[2:], [SEP]]) if framed and length > 2 else ids

    return [[draw(length) for length in row] for row in PACKED]


def pack(in_row: Sequence[np.ndarray]) -> Row:
    ids = np.repeat(np.arange(len(in_row)), [len(document) for document in in_row])
    return Row(np.concatenate(in_row), document_ids=ids)


def loss_of_document(
    objective: Objective, model: nn.Module, batch: Batch, row: int, start: int, end: int
) -> Tensor:
    """The packed batch's loss with no targets outside of one document."""
    labels = torch.full_like(batch["labels"], IGNORE_INDEX)
    labels[row, start:end] = batch["labels"][row, start:end]
    return objective.loss_sums(model, {**batch, "labels": labels})


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@ATTENTION
@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_loss_of_packed_documents_is_that_of_each_alone(kind: str, attention: str) -> None:
    model = build(kind, attention, is_causal=True)
    objective = CausalLM(CausalLMObjective(name="causal_lm"), TOKENS, ())
    rng = np.random.default_rng(0)
    rows = documents(framed=False)
    batch = objective.collate([pack(row) for row in rows], rng)
    alone = objective.collate([Row(document) for row in rows for document in row], rng)
    assert objective.num_targets(batch).tolist() == objective.num_targets(alone).tolist() == [57 - 6]
    for number, row in enumerate(rows):
        start = 0
        for document in row:
            single = objective.collate([Row(document)], rng)
            end = start + len(document)
            found = loss_of_document(objective, model, batch, number, start, end)
            torch.testing.assert_close(found, objective.loss_sums(model, single), rtol=1e-5, atol=1e-5)
            start = end
    together, apart = objective.loss_sums(model, batch), objective.loss_sums(model, alone)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(model, together), gradients(model, apart), rtol=1e-4, atol=1e-4 * together.item()
    )


@ATTENTION
@pytest.mark.parametrize("kind", MASKED)
def test_masked_loss_of_packed_documents_is_that_of_each_alone(kind: str, attention: str) -> None:
    model = build(kind, attention, is_causal=False)
    objective = MaskedLM(MaskedLMObjective(name="masked_lm", mlm_probability=0.5), TOKENS, ())
    rows = documents(framed=True)
    batch = objective.collate([pack(row) for row in rows], np.random.default_rng(0))
    assert "attention_mask" not in batch
    num_targets = 0
    for number, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + len(document)
            # The same masks, in a row of its own as an unpacked stage has it.
            single = objective.collate([Row(document)], np.random.default_rng(0))
            for key in ("input_ids", "labels"):
                single[key] = batch[key][number : number + 1, start:end]
            num_targets += int(objective.num_targets(single))
            found = loss_of_document(objective, model, batch, number, start, end)
            torch.testing.assert_close(found, objective.loss_sums(model, single), rtol=1e-5, atol=1e-5)
            start = end
    assert objective.num_targets(batch).tolist() == [num_targets]
    assert num_targets > 10


def test_without_the_mask_documents_do_influence_each_other() -> None:
    """Or the tests above could not fail."""
    model = build("gpt2", "sdpa", is_causal=True)
    objective = CausalLM(CausalLMObjective(name="causal_lm"), TOKENS, ())
    rng = np.random.default_rng(0)
    rows = documents(framed=False)
    masked = objective.collate([pack(row) for row in rows], rng)
    plain = {key: masked[key] for key in ("input_ids", "labels")}
    found, expected = (objective.loss_sums(model, batch).item() for batch in (plain, masked))
    assert abs(found - expected) > 1.0


def test_no_document_predicts_the_next_one() -> None:
    objective = CausalLM(CausalLMObjective(name="causal_lm"), TOKENS, ())
    row = Row(np.arange(10, 16), document_ids=np.array([0, 0, 0, 1, 2, 2]))
    batch = objective.collate([row, Row(np.arange(20, 23), document_ids=np.zeros(3, int))], None)  # type: ignore[arg-type]
    skip = IGNORE_INDEX
    assert batch["labels"].tolist() == [[11, 12, skip, skip, 15, skip], [21, 22, skip, skip, skip, skip]]
    unmasked = objective.collate([Row(row.input_ids)], None)  # type: ignore[arg-type]
    assert unmasked["labels"].tolist() == [[11, 12, 13, 14, 15, skip]]
    assert set(unmasked) == {"input_ids", "labels"}


def test_positions_begin_anew_in_every_document_and_in_the_padding() -> None:
    rows = [pack([np.zeros(3), np.zeros(1), np.zeros(2)]), pack([np.zeros(2)])]
    fields = document_fields(rows)
    assert fields["document_ids"].tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1]]
    assert fields["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert document_fields([Row(np.zeros(3))]) == {}


def stand_in(attention: str) -> nn.Module:
    """Something with the configuration of a model whose attention does not run here."""
    module = nn.Linear(1, 1)
    module.config = SimpleNamespace(_attn_implementation=attention)  # type: ignore[assignment]
    return module


def test_flash_attention_gets_all_rows_as_one_whose_positions_tell_documents_apart() -> None:
    """From which transformers makes the bounds of flash attention, and a mask for any other kind."""
    rows = documents(framed=False)
    batch = {"input_ids": torch.zeros(3, 20, dtype=torch.long), **document_fields([pack(r) for r in rows])}
    for number, row in enumerate(rows):
        ids = torch.from_numpy(np.concatenate(row))
        batch["input_ids"][number, : len(ids)] = ids
    inputs = model_inputs(stand_in("flash_attention_2"), batch, is_causal=True)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "input_ids": (1, 60),
        "position_ids": (1, 60),
    }
    model = build("llama", "sdpa", is_causal=True)
    with torch.no_grad():
        logits = model(**inputs).logits.view(3, 20, VOCAB)
        for number, row in enumerate(rows):
            start = 0
            for document in row:
                end = start + len(document)
                alone = model(input_ids=torch.from_numpy(document)[None]).logits[0]
                torch.testing.assert_close(logits[number, start:end], alone, rtol=1e-5, atol=1e-5)
                start = end


def test_flex_attention_gets_a_block_mask_that_is_the_boolean_mask() -> None:
    rows = documents(framed=True)
    batch = {"input_ids": torch.zeros(3, 20, dtype=torch.long), **document_fields([pack(r) for r in rows])}
    found = model_inputs(stand_in("flex_attention"), batch, is_causal=False)["attention_mask"]
    expected = model_inputs(stand_in("sdpa"), batch, is_causal=False)["attention_mask"]
    row, query, key = torch.meshgrid(torch.arange(3), torch.arange(20), torch.arange(20), indexing="ij")
    assert torch.equal(found.mask_mod(row, row, query, key), expected[:, 0])
    same = batch["document_ids"]
    assert torch.equal(expected[:, 0], same[:, :, None] == same[:, None, :])


def test_an_implementation_that_is_not_known_is_refused() -> None:
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.long), **document_fields([pack([np.zeros(2)])])}
    with pytest.raises(ModelError, match=r"attn_implementation 'paged' cannot .* expected sdpa, eager"):
        model_inputs(stand_in("paged"), batch, is_causal=True)
