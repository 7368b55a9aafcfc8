"""What the objectives make of rows: labels, masks, sums that add up over any split of the rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.contracts import IGNORE_INDEX, Row, TokenInfo
from orchestrator.errors import DataError
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.masked_lm import MaskedLM
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.spec.training import (
    CausalLMObjective,
    Data,
    MaskedLMObjective,
    SequenceClassificationObjective,
)

VOCAB = 50
PAD, EOS, CLS, SEP, MASK = range(5)


def token_info(mask_id: int | None = MASK) -> TokenInfo:
    continues = np.zeros(VOCAB, dtype=bool)
    continues[30:] = True
    return TokenInfo(VOCAB, PAD, EOS, mask_id, (PAD, EOS, CLS, SEP, MASK), continues)


def rows_of(lengths: list[int], seed: int = 0, **fields: object) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(5, VOCAB, size=length), **fields) for length in lengths]


class TinyModel(nn.Module):
    """Logits from an embedding: enough for sums of losses."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, outputs)

    def forward(self, input_ids: Tensor, **_: Tensor) -> SimpleNamespace:
        logits = self.table(input_ids)
        return SimpleNamespace(logits=logits, pooled=logits.mean(1))


class TinyClassifier(TinyModel):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        weights = attention_mask.unsqueeze(-1) / attention_mask.sum(1)[:, None, None]
        return SimpleNamespace(logits=(self.table(input_ids) * weights).sum(1))


def masked_lm(**keys: object) -> MaskedLM:
    return MaskedLM(MaskedLMObjective(name="masked_lm", **keys), token_info(), ())


def test_causal_lm_labels_are_the_next_tokens_and_padding_is_no_target() -> None:
    objective = CausalLM(CausalLMObjective(name="causal_lm"), token_info(), ())
    rows = rows_of([6, 3])
    batch = objective.collate(rows, np.random.default_rng(0))
    assert batch["input_ids"].shape == (2, 6)
    assert batch["labels"][0, :5].tolist() == rows[0].input_ids[1:].tolist()
    assert (batch["labels"][0, 5:] == IGNORE_INDEX).all()
    assert objective.num_targets(batch).tolist() == [5 + 2]


def test_causal_lm_loss_sum_equals_cross_entropy_token_by_token() -> None:
    objective = CausalLM(CausalLMObjective(name="causal_lm"), token_info(), ())
    rows = rows_of([7, 4, 2])
    model = TinyModel(VOCAB)
    expected = sum(
        functional.cross_entropy(
            model.table(torch.tensor(row.input_ids[:-1])),
            torch.tensor(row.input_ids[1:]),
            reduction="sum",
        )
        for row in rows
    )
    found = objective.loss_sums(model, objective.collate(rows, np.random.default_rng(0)))
    torch.testing.assert_close(found, expected.view(1))


def test_masking_follows_the_80_10_10_rule_and_spares_special_tokens() -> None:
    ids = np.concatenate([[CLS], np.random.default_rng(1).integers(5, 30, size=200_000), [SEP]])
    batch = masked_lm(mlm_probability=0.15).collate([Row(ids)], np.random.default_rng(2))
    labels, inputs = (
        batch["labels"][0, : len(ids)].numpy(),
        batch["input_ids"][0, : len(ids)].numpy(),
    )
    chosen = labels != IGNORE_INDEX
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    assert not chosen[[0, -1]].any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (inputs[~chosen] == ids[~chosen]).all()
    assert (inputs[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (inputs[chosen] == ids[chosen]).mean() == pytest.approx(0.1 + 0.1 / 45, abs=0.01)
    assert not np.isin(inputs[chosen & (inputs != MASK)], [PAD, EOS, CLS, SEP]).any()


def test_whole_word_masking_chooses_all_tokens_of_a_word_or_none() -> None:
    ids = np.array([CLS, *([10, 31, 32] * 400), SEP])
    batch = masked_lm(whole_word=True).collate([Row(ids)], np.random.default_rng(3))
    chosen = (batch["labels"][0, 1:1201] != IGNORE_INDEX).reshape(400, 3)
    assert (chosen.all(dim=1) == chosen.any(dim=1)).all()
    assert 0.05 < chosen.any(dim=1).float().mean() < 0.3


def test_masking_depends_on_the_generator_alone() -> None:
    rows = rows_of([40, 30])
    first, again, other = (
        masked_lm().collate(rows, np.random.default_rng(seed))["input_ids"] for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pairs_carry_segments_and_the_next_sentence_label() -> None:
    segments = np.array([0, 0, 0, 1, 1])
    rows = rows_of([5], segment_ids=segments, is_next=True) + rows_of(
        [5], segment_ids=segments, is_next=False
    )
    objective = masked_lm(next_sentence=True)
    batch = objective.collate(rows, np.random.default_rng(0))
    assert batch["next_sentence_label"].tolist() == [0, 1]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1]
    assert objective.terms == ("mlm_loss", "nsp_loss")
    assert objective.num_targets(batch).shape == (2,)


def test_a_tokenizer_without_mask_token_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        MaskedLM(MaskedLMObjective(name="masked_lm"), token_info(mask_id=None), ())
    assert str(caught.value) == (
        "objective masked_lm needs a tokenizer with a mask token; this one, of 50 tokens, has none. Take one"
        " made for masked models, such as 'google-bert/bert-base-uncased', let tokenizer.train make one, or"
        " use objective causal_lm"
    )


def test_more_labels_than_num_labels_is_refused_with_both_numbers() -> None:
    section = SequenceClassificationObjective(name="sequence_classification", num_labels=2)
    with pytest.raises(DataError, match=r"3 labels \['a', 'b', 'c'\].*num_labels is 2"):
        SequenceClassification(section, token_info(), ("a", "b", "c"))


@torch.no_grad()
def test_statistics_add_up_over_any_split_of_the_rows() -> None:
    section = SequenceClassificationObjective(name="sequence_classification", num_labels=3)
    objective = SequenceClassification(section, token_info(), ("a", "b", "c"))
    model = TinyClassifier(3)
    rows = [Row(row.input_ids, label=index % 3) for index, row in enumerate(rows_of([9, 4, 6, 3, 5]))]
    rng = np.random.default_rng(0)
    whole = objective.statistics(model, objective.collate(rows, rng), 5)
    parts = sum(
        objective.statistics(model, objective.collate(part, rng), len(part)) for part in (rows[:2], rows[2:])
    )
    torch.testing.assert_close(whole, parts)
    padded = objective.statistics(model, objective.collate(rows, rng), 3)
    assert padded[1:].sum() == 3
    assert set(objective.metrics(whole)) >= {"accuracy", "f1", "matthews_correlation", "loss"}


@pytest.mark.parametrize(
    ("packing", "next_sentence", "kind"),
    [
        (True, False, "packed"),
        ("cut", False, "packed"),
        (False, False, "documents"),
        ("none", False, "documents"),
        ("best_fit", False, "best_fit"),
        (True, True, "pairs"),
    ],
)
def test_row_layouts(packing: bool | str, next_sentence: bool, kind: str) -> None:
    data = Data(mixture={"a": 1.0}, seq_len=32, packing=packing)
    section = MaskedLMObjective(name="masked_lm", next_sentence=next_sentence)
    assert MaskedLM.row_layout(section, data).kind == kind
    labelled = SequenceClassificationObjective(name="sequence_classification")
    expected = "best_fit" if packing == "best_fit" else "documents"
    assert SequenceClassification.row_layout(labelled, data).kind == expected
    if not next_sentence:
        assert CausalLM.row_layout(CausalLMObjective(name="causal_lm"), data).kind == kind
