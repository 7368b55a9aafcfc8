"""Predict masked tokens, and optionally whether one segment follows another (Devlin et al. 2018, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.contracts import IGNORE_INDEX, Batch, Objective, Row, RowLayout, TokenInfo
from orchestrator.errors import DataError
from orchestrator.objectives.documents import document_fields, model_inputs
from orchestrator.objectives.language import (
    input_ids_of,
    loss_metrics,
    pad_rows,
    row_kind,
    summed_cross_entropy,
    without_rows_after,
)
from orchestrator.spec.training import Data, MaskedLMObjective

# Of the chosen tokens 80% become the mask, 10% a random token, 10% stay (Devlin et al. 2018, section 3.1).
MASKED_FRACTION = 0.8
RANDOM_FRACTION = 0.1
# Label of a pair whose second segment does not follow the first (BertForPreTraining's convention).
NOT_NEXT = 1


class MaskedLM(Objective):
    """Dynamic masking: other tokens every time a row is read, decided by the batch's own generator."""

    def __init__(self, section: MaskedLMObjective, tokens: TokenInfo, label_names: Sequence[str]) -> None:
        """Check that the tokenizer has a mask token.

        Raises:
            DataError: It has none.
        """
        if tokens.mask_id is None:
            raise DataError(
                f"objective masked_lm needs a tokenizer with a mask token; this one, of {tokens.vocab_size}"
                " tokens, has none. Take one made for masked models, such as"
                " 'google-bert/bert-base-uncased', let tokenizer.train make one, or use objective causal_lm"
            )
        self._mask_id = tokens.mask_id
        self._tokens = tokens
        self._section = section
        self.head = "pretraining" if section.next_sentence else "masked_lm"
        self.terms = ("mlm_loss", "nsp_loss") if section.next_sentence else ("loss",)
        self._maskable_tokens = np.setdiff1d(np.arange(tokens.vocab_size), tokens.special_ids)

    @classmethod
    def row_layout(cls, section: MaskedLMObjective, data: Data) -> RowLayout:
        """Pairs for next-sentence prediction, else packed rows or one document a row, as ``packing`` says."""
        return RowLayout(
            kind="pairs" if section.next_sentence else row_kind(data),
            seq_len=data.seq_len,
            framed=True,
            labelled=False,
        )

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """Masked ``input_ids``, ``labels``, ``attention_mask`` and, for pairs, ``token_type_ids``.

        Rows that tell their documents apart have those instead of the ``attention_mask``.
        """
        masked = [self._mask(ids, rng) for ids in input_ids_of(rows)]
        batch = {
            "input_ids": pad_rows([ids for ids, _ in masked], self._tokens.pad_id),
            "labels": pad_rows([labels for _, labels in masked], IGNORE_INDEX),
            **document_fields(rows),
        }
        if "document_ids" not in batch:
            batch["attention_mask"] = pad_rows([np.ones(len(ids), np.int64) for ids, _ in masked], 0)
        if self._section.next_sentence:
            batch["token_type_ids"] = pad_rows([_segments(row) for row in rows], 0)
            batch["next_sentence_label"] = torch.tensor([0 if row.is_next else NOT_NEXT for row in rows])
        return batch

    def _mask(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of one row, int64 ``(S,)`` both."""
        candidates = ~np.isin(ids, self._tokens.special_ids)
        chosen = self._choose(ids, candidates, rng)
        labels = np.where(chosen, ids, IGNORE_INDEX)
        action = rng.random(len(ids))
        random_tokens = rng.choice(self._maskable_tokens, len(ids))
        inputs = np.where(chosen & (action < MASKED_FRACTION), self._mask_id, ids)
        replaced = chosen & (action >= MASKED_FRACTION) & (action < MASKED_FRACTION + RANDOM_FRACTION)
        return np.where(replaced, random_tokens, inputs), labels

    def _choose(self, ids: np.ndarray, candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Bool ``(S,)``: tokens to predict; with ``whole_word`` a word's tokens share one decision."""
        draws = rng.random(len(ids))
        if self._section.whole_word:
            continues = self._tokens.continues_word[ids] & candidates
            continues[1:] &= candidates[:-1]
            word_of_token = np.cumsum(~continues) - 1
            draws = draws[np.maximum(word_of_token, 0)]
        return candidates & (draws < self._section.mlm_probability)

    def num_targets(self, batch: Batch) -> Tensor:
        """Masked tokens and, for pairs, pairs."""
        tokens = (batch["labels"] != IGNORE_INDEX).sum().view(1)
        if not self._section.next_sentence:
            return tokens
        return torch.cat([tokens, (batch["next_sentence_label"] != IGNORE_INDEX).sum().view(1)])

    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy of the masked tokens and, for pairs, of the next-sentence label."""
        labels = ("labels", "next_sentence_label")
        inputs = {name: value for name, value in batch.items() if name not in labels}
        if "document_ids" in batch:
            inputs = model_inputs(model, batch, is_causal=False)
        output = model(**inputs)
        if not self._section.next_sentence:
            return summed_cross_entropy(output.logits, batch["labels"]).view(1)
        tokens = summed_cross_entropy(output.prediction_logits, batch["labels"])
        pairs = summed_cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
        return torch.stack([tokens, pairs])

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """Summed losses, then numbers of targets."""
        batch = {**batch, "labels": without_rows_after(batch["labels"], num_valid)}
        if self._section.next_sentence:
            pairs = without_rows_after(batch["next_sentence_label"], num_valid)
            batch["next_sentence_label"] = pairs
        return torch.cat([self.loss_sums(model, batch).double(), self.num_targets(batch).double()])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss and perplexity of the masked tokens; with pairs, both losses and their sum."""
        if not self._section.next_sentence:
            return loss_metrics("", statistics[0].item(), statistics[1].item())
        metrics = loss_metrics("mlm_", statistics[0].item(), statistics[2].item())
        metrics["nsp_loss"] = statistics[1].item() / max(statistics[3].item(), 1.0)
        metrics["loss"] = metrics["mlm_loss"] + metrics["nsp_loss"]
        return metrics


def _segments(row: Row) -> np.ndarray:
    """Segment ids of a pair."""
    assert row.segment_ids is not None
    return row.segment_ids
