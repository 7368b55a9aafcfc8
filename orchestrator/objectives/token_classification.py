"""Predict a tag for every word, from the word's first token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.contracts import IGNORE_INDEX, Batch, Objective, Row, RowLayout, TokenInfo
from orchestrator.errors import DataError
from orchestrator.objectives.confusion import f1_scores
from orchestrator.objectives.entities import EntityCounter
from orchestrator.objectives.language import (
    input_ids_of,
    pad_rows,
    summed_cross_entropy,
    without_rows_after,
)
from orchestrator.spec.training import Data, TokenClassificationObjective


class TokenClassification(Objective):
    """Cross-entropy of the first token of each word; its other tokens have no target."""

    head = "token_classification"
    terms = ("loss",)

    def __init__(
        self, section: TokenClassificationObjective, tokens: TokenInfo, label_names: Sequence[str]
    ) -> None:
        """Check that the data's tags fit the head.

        Raises:
            DataError: The data has more tags than ``num_labels``.
        """
        if len(label_names) > section.num_labels:
            raise DataError(
                f"the data has {len(label_names)} tags {list(label_names)[:10]}, objective.num_labels is"
                f" {section.num_labels}; set num_labels to {len(label_names)}, or filter the dataset"
            )
        self._pad_id = tokens.pad_id
        self._num_labels = section.num_labels
        self._entities = EntityCounter.of_tags(label_names)

    @classmethod
    def row_layout(cls, section: TokenClassificationObjective, data: Data) -> RowLayout:
        """One list of words per row, each word with its tag."""
        return RowLayout(kind="documents", seq_len=data.seq_len, framed=True, labelled=True, document="words")

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """``input_ids``, ``attention_mask`` and ``labels``, all ``(B, S)``."""
        ids = input_ids_of(rows)
        return {
            "input_ids": pad_rows(ids, self._pad_id),
            "attention_mask": pad_rows([np.ones(len(row), np.int64) for row in ids], 0),
            "labels": pad_rows([_labels(row) for row in rows], IGNORE_INDEX),
        }

    def num_targets(self, batch: Batch) -> Tensor:
        """Words."""
        return (batch["labels"] != IGNORE_INDEX).sum().view(1)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """``(B, S, C)``."""
        logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy of the words' tags."""
        return summed_cross_entropy(self._logits(model, batch), batch["labels"]).view(1)

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """Summed loss; true, given and predicted words of each tag; the same of entities, all kinds."""
        logits = self._logits(model, batch)
        labels = without_rows_after(batch["labels"], num_valid)
        is_target = labels != IGNORE_INDEX
        predicted = logits.argmax(dim=-1)
        wanted_words, predicted_words = labels[is_target], predicted[is_target]
        counts = [
            summed_cross_entropy(logits, labels).view(1),
            self._count(wanted_words[wanted_words == predicted_words]),
            self._count(wanted_words),
            self._count(predicted_words),
        ]
        if self._entities is not None:
            counts.append(self._entity_counts(labels, predicted).to(labels.device))
        return torch.cat([count.double() for count in counts])

    def _count(self, tags: Tensor) -> Tensor:
        return torch.bincount(tags, minlength=self._num_labels)

    def _entity_counts(self, labels: Tensor, predicted: Tensor) -> Tensor:
        """Entities that are true, given and predicted, float64 ``(3,)``."""
        assert self._entities is not None
        total = np.zeros(3)
        for wanted, found in zip(labels.cpu().numpy(), predicted.cpu().numpy(), strict=True):
            is_word = wanted != IGNORE_INDEX
            total += self._entities.count(wanted[is_word], found[is_word])
        return torch.from_numpy(total)

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss, accuracy, macro F1 over the tags that occur or are predicted.

        For BIO tags precision, recall and F1 of whole entities besides.
        """
        words = statistics[1 : 1 + 3 * self._num_labels].view(3, -1).cpu().numpy()
        correct, wanted, predicted = words
        num_words = max(wanted.sum(), 1.0)
        f1 = f1_scores(correct, wanted, predicted)[1][wanted + predicted > 0]
        metrics = {
            "loss": statistics[0].item() / num_words,
            "accuracy": float(correct.sum() / num_words),
            "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        }
        if self._entities is not None:
            found, given, said = statistics[-3:].tolist()
            metrics["precision"] = found / max(said, 1.0)
            metrics["recall"] = found / max(given, 1.0)
            metrics["f1"] = 2 * found / max(given + said, 1.0)
        return metrics


def _labels(row: Row) -> np.ndarray:
    """Classes of a row's tokens."""
    assert row.token_labels is not None
    return row.token_labels
