"""Predict one label per document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.contracts import IGNORE_INDEX, Batch, Objective, Row, RowLayout, TokenInfo
from orchestrator.errors import DataError
from orchestrator.objectives.confusion import classification_metrics
from orchestrator.objectives.document_heads import document_logits, document_places
from orchestrator.objectives.documents import document_fields
from orchestrator.objectives.language import input_ids_of, pad_rows, without_rows_after
from orchestrator.spec.training import Data, SequenceClassificationObjective


class SequenceClassification(Objective):
    """Cross-entropy of one label per row, from the model's own classification head."""

    head = "sequence_classification"
    terms = ("loss",)

    def __init__(
        self,
        section: SequenceClassificationObjective,
        tokens: TokenInfo,
        label_names: Sequence[str],
    ) -> None:
        """Check that the data's labels fit the head.

        Raises:
            DataError: The data has more labels than ``num_labels``.
        """
        if len(label_names) > section.num_labels:
            raise DataError(
                f"the data has {len(label_names)} labels {list(label_names)[:10]}, objective.num_labels is"
                f" {section.num_labels}; set num_labels to {len(label_names)}, or filter the dataset"
            )
        self._pad_id = tokens.pad_id
        self._num_labels = section.num_labels

    @classmethod
    def row_layout(cls, section: SequenceClassificationObjective, data: Data) -> RowLayout:
        """Labelled documents: one in each row, or as many as fit with ``packing: best_fit``."""
        kind: Literal["best_fit", "documents"] = "documents"
        if data.packing_mode == "best_fit":
            kind = "best_fit"
        return RowLayout(kind=kind, seq_len=data.seq_len, framed=True, labelled=True)

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """``input_ids`` and ``attention_mask`` ``(B, S)``, ``labels`` ``(B,)``.

        Packed rows have their documents instead of the ``attention_mask``, and ``labels`` ``(B, D)``.
        """
        ids = input_ids_of(rows)
        packed = [row.labels for row in rows if row.labels is not None]
        if packed:
            return {
                "input_ids": pad_rows(ids, self._pad_id),
                "labels": pad_rows(packed, IGNORE_INDEX),
                "places": document_places(rows),
                **document_fields(rows),
            }
        return {
            "input_ids": pad_rows(ids, self._pad_id),
            "attention_mask": pad_rows([np.ones(len(row), np.int64) for row in ids], 0),
            "labels": torch.tensor([row.label for row in rows]),
        }

    def num_targets(self, batch: Batch) -> Tensor:
        """Documents."""
        return (batch["labels"] != IGNORE_INDEX).sum().view(1)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 ``(B, num_labels)``, or ``(B, D, num_labels)`` of packed rows."""
        if "document_ids" in batch:
            return document_logits(model, batch, self._pad_id)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.float()

    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy of the labels."""
        return _label_loss(self._logits(model, batch), batch["labels"]).view(1)

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """Summed loss, then the confusion matrix ``[label, prediction]`` in row-major order."""
        logits = self._logits(model, batch)
        labels = without_rows_after(batch["labels"], num_valid)
        is_target = labels != IGNORE_INDEX
        cells = labels[is_target] * self._num_labels + logits.argmax(dim=-1)[is_target]
        confusion = torch.bincount(cells, minlength=self._num_labels**2)
        return torch.cat([_label_loss(logits, labels).double().view(1), confusion.double()])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss, accuracy, precision, recall, F1 and Matthews correlation."""
        confusion = statistics[1:].view(self._num_labels, self._num_labels).cpu().numpy()
        loss = statistics[0].item() / max(confusion.sum(), 1.0)
        return {"loss": loss, **classification_metrics(confusion)}


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over documents that have a label."""
    return functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
