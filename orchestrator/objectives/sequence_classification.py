"""Predict the label of a text or of a pair of texts; or a set of labels, or numbers (``problems.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor, nn

from orchestrator.contracts import IGNORE_INDEX, Batch, Objective, Row, RowLayout, TokenInfo
from orchestrator.errors import DataError
from orchestrator.objectives.document_heads import document_logits, document_places
from orchestrator.objectives.documents import config_of, document_fields
from orchestrator.objectives.language import input_ids_of, pad_rows
from orchestrator.objectives.problems import MultiLabel, Problem, Regression, SingleLabel
from orchestrator.spec.training import Data, SequenceClassificationObjective

PROBLEMS: dict[str, type[Problem]] = {
    "single_label": SingleLabel,
    "multi_label": MultiLabel,
    "regression": Regression,
}
LABELS: dict[str, Literal["class", "classes", "numbers"]] = {
    "single_label": "class",
    "multi_label": "classes",
    "regression": "numbers",
}


class SequenceClassification(Objective):
    """The loss of a row's label, from the model's own classification head."""

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
            DataError: The data has more labels than the head has outputs.
        """
        if len(label_names) > section.num_outputs:
            key = "num_values" if section.problem == "regression" else "num_labels"
            raise DataError(
                f"the data has {len(label_names)} labels {list(label_names)[:10]}, objective.{key} is"
                f" {section.num_outputs}; set {key} to {len(label_names)}, or filter the dataset"
            )
        self._pad_id = tokens.pad_id
        self._problem = PROBLEMS[section.problem](section.num_outputs)
        self.problem_type = self._problem.problem_type
        self.evaluates = self._problem.evaluates

    @classmethod
    def row_layout(cls, section: SequenceClassificationObjective, data: Data) -> RowLayout:
        """Labelled documents: one in each row, or as many as fit with ``packing: best_fit``."""
        kind: Literal["best_fit", "documents"] = "documents"
        if data.packing_mode == "best_fit":
            kind = "best_fit"
        return RowLayout(
            kind=kind,
            seq_len=data.seq_len,
            framed=True,
            labelled=True,
            labels=LABELS[section.problem],
        )

    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """``input_ids`` and ``attention_mask`` ``(B, S)``, ``labels`` ``(B, ...)``.

        Pairs of texts have ``token_type_ids`` ``(B, S)`` besides. Packed rows have their documents instead
        of the ``attention_mask``, and ``labels`` ``(B, D)``.
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
        batch = {
            "input_ids": pad_rows(ids, self._pad_id),
            "attention_mask": pad_rows([np.ones(len(row), np.int64) for row in ids], 0),
            "labels": self._problem.collate(rows),
        }
        if any(row.segment_ids is not None for row in rows):
            batch["token_type_ids"] = pad_rows([_segments(row) for row in rows], 0)
        return batch

    def num_targets(self, batch: Batch) -> Tensor:
        """Documents; or their labels or numbers, where each counts for itself."""
        return self._problem.num_targets(batch["labels"]).view(1)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 ``(B, C)``, or ``(B, D, C)`` of packed rows."""
        if "document_ids" in batch:
            return document_logits(model, batch, self._pad_id)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if "token_type_ids" in inputs and not _knows_segments(model):
            del inputs["token_type_ids"]
        logits: Tensor = model(**inputs).logits
        return logits.float()

    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss of the labels."""
        return self._problem.loss_sum(self._logits(model, batch), batch["labels"]).view(1)

    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """What the problem's metrics need."""
        return self._problem.statistics(self._logits(model, batch), batch["labels"], num_valid)

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss and the problem's own metrics."""
        return self._problem.metrics(statistics)


def _segments(row: Row) -> np.ndarray:
    """Segment ids; a row without them, from another dataset, is one segment."""
    return np.zeros(len(row.input_ids), np.int64) if row.segment_ids is None else row.segment_ids


def _knows_segments(model: nn.Module) -> bool:
    """Whether the model tells two segments apart, as BERT does; GPT-2 would take their ids for tokens."""
    return getattr(config_of(model), "type_vocab_size", 0) >= 2
