"""Predict the next token of an assistant's turns (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.contracts import IGNORE_INDEX, Batch, Row, RowLayout
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.objectives.language import loss_metrics, next_token_labels, pad_rows
from orchestrator.spec.training import Data, SupervisedFinetuningObjective


class SupervisedFinetuning(CausalLM):
    """Next-token prediction in conversations, of the tokens that are to be learned."""

    @classmethod
    def row_layout(cls, section: SupervisedFinetuningObjective, data: Data) -> RowLayout:  # type: ignore[override]
        """Whole conversations side by side with ``best_fit``, or else one a row."""
        kind: Literal["best_fit", "documents"] = (
            "best_fit" if data.packing_mode == "best_fit" else "documents"
        )
        return RowLayout(
            kind=kind,
            seq_len=data.seq_len,
            framed=False,
            labelled=False,
            document="conversation",
            train_on=section.train_on,
            chat_date=section.chat_date,
        )

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """As for any causal LM, with labels where a token is learned; ``num_tokens`` ``(B,)`` of each row."""
        batch = super().collate(rows, rng)
        batch["labels"] = pad_rows([_learned_labels(row) for row in rows], IGNORE_INDEX)
        batch["num_tokens"] = torch.tensor([len(row.input_ids) for row in rows])
        return batch

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """Summed loss, targets and tokens."""
        num_tokens = batch["num_tokens"][:num_valid].sum().double().view(1)
        return torch.cat([super().statistics(model, batch, num_valid), num_tokens])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss and perplexity of the targets, and which fraction of all tokens these are."""
        loss_sum, num_targets, num_tokens = statistics.tolist()
        fraction = num_targets / max(num_tokens, 1.0)
        return {**loss_metrics("", loss_sum, num_targets), "target_fraction": fraction}


def _learned_labels(row: Row) -> np.ndarray:
    """The token after each where that is learned, int64 ``(S,)``."""
    assert row.is_learned is not None
    is_learned_next = np.append(row.is_learned[1:], False)
    return np.where(is_learned_next, next_token_labels(row), IGNORE_INDEX)
