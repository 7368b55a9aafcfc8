"""How far two columns of numbers agree: Pearson's correlation, and ranks for Spearman's."""

from __future__ import annotations

import numpy as np


def mean_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of the columns' Pearson correlations; a column without variance has none, and counts as 0.

    Args:
        first: ``(N, C)``.
        second: ``(N, C)``.
    """
    if len(first) == 0:
        return 0.0
    centred_first, centred_second = first - first.mean(axis=0), second - second.mean(axis=0)
    covariance = (centred_first * centred_second).sum(axis=0)
    spread = np.sqrt((centred_first**2).sum(axis=0) * (centred_second**2).sum(axis=0))
    correlation = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    return float(correlation.mean())


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value in its column from 1, equal ones sharing their mean; float64 ``(N, C)``."""
    ranked = np.empty(values.shape)
    for column in range(values.shape[1]):
        _, group, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        ranked[:, column] = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return ranked
