"""What a classification head's outputs mean: one label, a set of labels, or numbers.

Legend of shapes: B rows, C outputs of the head, N rows of an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.contracts import IGNORE_INDEX, Row
from orchestrator.objectives.agreement import mean_correlation, ranks
from orchestrator.objectives.confusion import classification_metrics, f1_scores
from orchestrator.objectives.language import without_rows_after


class Problem(ABC):
    """Targets, loss and metrics of one kind of problem."""

    problem_type: str
    """Hugging Face's name of it."""
    evaluates: Literal["sums", "rows"] = "sums"

    def __init__(self, num_outputs: int) -> None:
        """Remember how many outputs the head has."""
        self.num_outputs = num_outputs

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Tensor:
        """Labels of rows; the first dimension is B."""

    @abstractmethod
    def num_targets(self, labels: Tensor) -> Tensor:
        """Terms that the loss sums, int64 ``()``."""

    @abstractmethod
    def loss_sum(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over targets, float32 ``()``."""

    @abstractmethod
    def statistics(self, logits_BC: Tensor, labels: Tensor, num_valid: int) -> Tensor:
        """What ``metrics`` needs of the first ``num_valid`` rows, float64; see ``Objective.statistics``."""

    @abstractmethod
    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Evaluation metrics."""


class SingleLabel(Problem):
    """One label a row: cross-entropy."""

    problem_type = "single_label_classification"

    def collate(self, rows: Sequence[Row]) -> Tensor:
        """Label ids, int64 ``(B,)``."""
        return torch.tensor([row.label for row in rows])

    def num_targets(self, labels: Tensor) -> Tensor:
        """Documents."""
        return (labels != IGNORE_INDEX).sum()

    def loss_sum(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over documents that have a label; of packed rows, ``(B, D, C)``."""
        logits = logits_BC.flatten(0, -2)
        return functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")

    def statistics(self, logits_BC: Tensor, labels: Tensor, num_valid: int) -> Tensor:
        """Summed loss, then the confusion matrix ``[label, prediction]`` in row-major order."""
        labels = without_rows_after(labels, num_valid)
        is_target = labels != IGNORE_INDEX
        cells = labels[is_target] * self.num_outputs + logits_BC.argmax(dim=-1)[is_target]
        confusion = torch.bincount(cells, minlength=self.num_outputs**2)
        return torch.cat([self.loss_sum(logits_BC, labels).double().view(1), confusion.double()])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss, accuracy, precision, recall, F1 and Matthews correlation."""
        confusion = statistics[1:].view(self.num_outputs, self.num_outputs).cpu().numpy()
        loss = statistics[0].item() / max(confusion.sum(), 1.0)
        return {"loss": loss, **classification_metrics(confusion)}


class MultiLabel(Problem):
    """Any number of labels a row: binary cross-entropy of each label; a logit above 0 says yes."""

    problem_type = "multi_label_classification"

    def collate(self, rows: Sequence[Row]) -> Tensor:
        """1 for each label of a row and 0 for others, float32 ``(B, C)``."""
        return _stacked(rows)

    def num_targets(self, labels: Tensor) -> Tensor:
        """Rows times labels."""
        return torch.tensor(labels.numel(), device=labels.device)

    def loss_sum(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy summed over rows and labels."""
        return functional.binary_cross_entropy_with_logits(logits_BC, labels, reduction="sum")

    def statistics(self, logits_BC: Tensor, labels: Tensor, num_valid: int) -> Tensor:
        """Summed loss, rows, rows without a mistake; then true, given and predicted of each label."""
        logits_BC, labels = logits_BC[:num_valid], labels[:num_valid]
        predicted, wanted = logits_BC > 0, labels > 0
        counts = [
            self.loss_sum(logits_BC, labels).view(1),
            torch.tensor([num_valid], device=labels.device),
            (predicted == wanted).all(dim=1).sum().view(1),
            (predicted & wanted).sum(dim=0),
            wanted.sum(dim=0),
            predicted.sum(dim=0),
        ]
        return torch.cat([count.double() for count in counts])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss, micro and macro F1 over all labels, and the fraction of rows with exactly their labels."""
        loss, num_rows, num_exact = statistics[:3].tolist()
        correct, wanted, predicted = statistics[3:].view(3, -1).cpu().numpy()
        micro, f1 = f1_scores(correct, wanted, predicted)
        return {
            "loss": loss / max(num_rows * self.num_outputs, 1.0),
            "micro_f1": micro,
            "macro_f1": float(f1.mean()),
            "exact_match": num_exact / max(num_rows, 1.0),
        }


class Regression(Problem):
    """Numbers: squared error."""

    problem_type = "regression"
    # A correlation of ranks is no sum over rows.
    evaluates = "rows"

    def collate(self, rows: Sequence[Row]) -> Tensor:
        """Numbers of a row, float32 ``(B, C)``."""
        return _stacked(rows)

    def num_targets(self, labels: Tensor) -> Tensor:
        """Numbers of all rows."""
        return torch.tensor(labels.numel(), device=labels.device)

    def loss_sum(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Squared error summed over numbers."""
        return functional.mse_loss(logits_BC, labels, reduction="sum")

    def statistics(self, logits_BC: Tensor, labels: Tensor, num_valid: int) -> Tensor:
        """A row's predictions and its numbers, ``(num_valid, 2 * C)``."""
        return torch.cat([logits_BC, labels], dim=1)[:num_valid].double()

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Loss, mean squared and absolute error; Pearson's and Spearman's correlation, means over numbers."""
        predicted_NC, wanted_NC = np.split(statistics.cpu().numpy(), 2, axis=1)
        error = predicted_NC - wanted_NC
        mse = float((error**2).mean()) if len(error) else 0.0
        return {
            "loss": mse,
            "mse": mse,
            "mae": float(np.abs(error).mean()) if len(error) else 0.0,
            "pearson": mean_correlation(predicted_NC, wanted_NC),
            "spearman": mean_correlation(ranks(predicted_NC), ranks(wanted_NC)),
        }


def _stacked(rows: Sequence[Row]) -> Tensor:
    """Labels that are arrays, float32 ``(B, C)``."""
    return torch.from_numpy(np.stack([np.asarray(row.label, dtype=np.float32) for row in rows]))
