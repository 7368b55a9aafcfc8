"""What the language-modelling objectives share: padding, summed cross-entropy, loss and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.contracts import IGNORE_INDEX, Row
from orchestrator.spec.training import Data, Packing

# Perplexity of a diverged model would overflow a float; exp(700) is still finite.
LARGEST_EXPONENT = 700.0


def pad_rows(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    """Rows padded at their end, int64 ``(B, S)`` with S the longest row."""
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def next_token_labels(row: Row) -> np.ndarray:
    """The token after each, int64 ``(S,)``; none after a row's last, nor from one document to the next."""
    labels = np.append(row.input_ids[1:], IGNORE_INDEX)
    if row.document_ids is not None:
        labels[:-1][np.diff(row.document_ids) != 0] = IGNORE_INDEX
    return labels


def row_kind(data: Data) -> Literal["packed", "best_fit", "documents"]:
    """How documents become rows, where the objective leaves it to ``data.packing``."""
    kinds: dict[Packing, Literal["packed", "best_fit", "documents"]] = {
        "cut": "packed",
        "best_fit": "best_fit",
        "none": "documents",
    }
    return kinds[data.packing_mode]


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over targets, in float32; ``IGNORE_INDEX`` is no target."""
    return functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def without_rows_after(labels: Tensor, num_valid: int) -> Tensor:
    """Labels in which rows from ``num_valid`` on are no targets."""
    labels = labels.clone()
    labels[num_valid:] = IGNORE_INDEX
    return labels


def loss_metrics(prefix: str, loss_sum: float, num_targets: float) -> dict[str, float]:
    """Mean loss and perplexity, the exponential of the mean cross-entropy."""
    loss = loss_sum / max(num_targets, 1.0)
    return {f"{prefix}loss": loss, f"{prefix}perplexity": math.exp(min(loss, LARGEST_EXPONENT))}


def input_ids_of(rows: Sequence[Row]) -> list[np.ndarray]:
    """Token ids of each row."""
    return [row.input_ids for row in rows]
