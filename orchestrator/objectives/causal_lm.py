"""Predict the next token (Radford et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.contracts import IGNORE_INDEX, Batch, EqualRows, Objective, Row, RowLayout, TokenInfo
from orchestrator.objectives.documents import document_fields, model_inputs
from orchestrator.objectives.language import (
    input_ids_of,
    loss_metrics,
    next_token_labels,
    pad_rows,
    row_kind,
    summed_cross_entropy,
    without_rows_after,
)
from orchestrator.spec.training import CausalLMObjective, Data


class CausalLM(Objective):
    """Next-token prediction over packed rows, or over one document per row."""

    head = "causal_lm"
    terms = ("loss",)

    def __init__(self, section: CausalLMObjective, tokens: TokenInfo, label_names: Sequence[str]) -> None:
        """Remember the padding token."""
        self._pad_id = tokens.pad_id

    @classmethod
    def row_layout(cls, section: CausalLMObjective, data: Data) -> RowLayout:
        """Packed rows, or one document a row, as ``packing`` says."""
        return RowLayout(
            kind=row_kind(data),
            seq_len=data.seq_len,
            framed=False,
            labelled=False,
        )

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """``input_ids`` and already shifted ``labels``, both ``(B, S)``, and the rows' documents.

        Rows are padded at their end and attention is causal, so padding needs no attention mask.
        """
        if isinstance(rows, EqualRows):
            labels_BS = np.empty_like(rows.input_ids_BS)
            labels_BS[:, :-1] = rows.input_ids_BS[:, 1:]
            labels_BS[:, -1] = IGNORE_INDEX
            return {
                "input_ids": torch.from_numpy(rows.input_ids_BS),
                "labels": torch.from_numpy(labels_BS),
            }
        return {
            "input_ids": pad_rows(input_ids_of(rows), self._pad_id),
            "labels": pad_rows([next_token_labels(row) for row in rows], IGNORE_INDEX),
            **document_fields(rows),
        }

    def num_targets(self, batch: Batch) -> Tensor:
        """Tokens that have a successor; in their document, where rows tell documents apart."""
        return (batch["labels"] != IGNORE_INDEX).sum().view(1)

    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy of the next token."""
        inputs = {"input_ids": batch["input_ids"]}
        if "document_ids" in batch:
            inputs = model_inputs(model, batch, is_causal=True)
        return summed_cross_entropy(model(**inputs).logits, batch["labels"]).view(1)

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """Summed loss and number of targets."""
        batch = {**batch, "labels": without_rows_after(batch["labels"], num_valid)}
        return torch.cat([self.loss_sums(model, batch).double(), self.num_targets(batch).double()])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss and perplexity."""
        return loss_metrics("", statistics[0].item(), statistics[1].item())
