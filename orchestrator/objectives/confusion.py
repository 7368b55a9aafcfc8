"""Classification metrics from a confusion matrix, which adds up over batches and workers."""

from __future__ import annotations

import numpy as np


def classification_metrics(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and Matthews correlation.

    With two labels, precision, recall and F1 are those of label 1; with more, unweighted means over the
    labels that occur or are predicted (scikit-learn's ``average="binary"`` and ``"macro"``). A ratio
    without cases is 0, as there.

    Args:
        confusion: ``(C, C)`` counts, ``[label, prediction]``.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient",
    equation 8 for the Matthews correlation of C labels.
    """
    total = confusion.sum()
    correct = np.diag(confusion)
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(correct, predicted), _ratio(correct, labelled)
    f1 = _ratio(2 * precision * recall, precision + recall)
    picked = np.arange(len(confusion)) == 1 if len(confusion) == 2 else labelled + predicted > 0
    covariance = correct.sum() * total - labelled @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - labelled @ labelled)
    return {
        "accuracy": float(correct.sum() / max(total, 1)),
        "precision": _mean(precision[picked]),
        "recall": _mean(recall[picked]),
        "f1": _mean(f1[picked]),
        "matthews_correlation": float(covariance / np.sqrt(spread)) if spread > 0 else 0.0,
    }


def f1_scores(correct: np.ndarray, wanted: np.ndarray, predicted: np.ndarray) -> tuple[float, np.ndarray]:
    """F1 of all labels together (the micro average), and of each alone, ``(C,)``; 0 without cases.

    Args:
        correct: ``(C,)``: how often a label is given and predicted.
        wanted: ``(C,)``: how often it is given.
        predicted: ``(C,)``: how often it is predicted.
    """
    micro = 2 * correct.sum() / max(float(wanted.sum() + predicted.sum()), 1.0)
    return float(micro), _ratio(2 * correct, wanted + predicted)


def _mean(values: np.ndarray) -> float:
    """The mean; 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise ratio; 0 where the denominator is 0."""
    ratio = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
