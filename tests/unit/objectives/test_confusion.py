"""Metrics from a confusion matrix equal scikit-learn's on the rows themselves."""

import numpy as np
import pytest
from sklearn import metrics as reference

from orchestrator.objectives.confusion import classification_metrics


def confusion_of(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    confusion = np.zeros((num_labels, num_labels))
    np.add.at(confusion, (labels, predictions), 1)
    return confusion


@pytest.mark.parametrize("num_labels", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_scikit_learn(num_labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_labels, size=200)
    predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(num_labels, size=200))
    average = "binary" if num_labels == 2 else "macro"
    found = classification_metrics(confusion_of(labels, predictions, num_labels))
    expected = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "precision": reference.precision_score(labels, predictions, average=average),
        "recall": reference.recall_score(labels, predictions, average=average),
        "f1": reference.f1_score(labels, predictions, average=average),
        "matthews_correlation": reference.matthews_corrcoef(labels, predictions),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_model_that_always_answers_the_same_has_no_correlation() -> None:
    found = classification_metrics(np.array([[5.0, 0.0], [3.0, 0.0]]))
    assert found["matthews_correlation"] == 0.0
    assert found["precision"] == 0.0
    assert found["accuracy"] == 5 / 8
