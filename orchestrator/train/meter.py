"""Metrics of the steps since the last logged one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.data.mixture import Mixture


def source_metrics(mixture: Mixture, cursor: int) -> dict[str, float]:
    """Rows that each source has given to the first ``cursor`` rows, and as passes over it."""
    metrics: dict[str, float] = {}
    for name, drawn in mixture.drawn(cursor).items():
        metrics[f"data/{name}/rows"] = drawn
        metrics[f"data/{name}/epoch"] = drawn / mixture.size(name)
    return metrics


def over_ranks(losses: Tensor) -> Tensor:
    """Each term's mean over a step's targets, float64 ``(T,)``, from all ranks' micro-batches; collective.

    Added in the order of their global numbers, so that it does not depend on the number of ranks.

    Args:
        losses: Each of this rank's A micro-batches' part of it, float64 ``(A, T)``.
    """
    ranks = [losses]
    if dist.get_world_size() > 1:
        ranks = [torch.empty_like(losses) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, losses)
    # A step's micro-batches go to one rank after the other: (A, W, T).
    total, *others = torch.stack(ranks, dim=1).flatten(0, 1).unbind()
    for loss in others:
        total = total + loss
    return total


class Meter:
    """Accumulates loss, time and tokens over steps; ``read`` averages them and starts anew."""

    def __init__(self, terms: Sequence[str], device: torch.device) -> None:
        """Start with nothing measured."""
        self._terms = terms
        self._device = device
        self._reset()

    def _reset(self) -> None:
        """Forget all steps."""
        self._loss = torch.zeros(len(self._terms), dtype=torch.float64, device=self._device)
        self._steps = 0
        self._steps_left_out = 0
        self._steps_overflowed = 0
        self._tokens = 0
        self._data_wait_seconds = 0.0
        self._began = time.perf_counter()

    def add(self, *, tokens: int, data_wait_seconds: float) -> None:
        """Count one step; ``tokens``: token positions over all ranks."""
        self._tokens += tokens
        self._data_wait_seconds += data_wait_seconds
        self._steps += 1
        self._steps_left_out += 1

    def add_loss(self, loss: Tensor) -> None:
        """The last step made an update, at this mean of each term over all ranks, float64 ``(T,)``."""
        self._loss += loss
        self._steps_left_out -= 1

    def add_overflow(self) -> None:
        """The last step made no update, because float16 could not hold its gradients."""
        self._steps_overflowed += 1

    def exclude(self, seconds: float) -> None:
        """Leave out time spent on something else than steps, such as evaluation."""
        self._began += seconds

    def read(self) -> dict[str, float]:
        """Averages over the steps since the last call; the loss over those with an update, or NaN."""
        losses = (self._loss / (self._steps - self._steps_left_out)).tolist()
        seconds = time.perf_counter() - self._began
        metrics = {"train/loss": sum(losses)}
        if len(self._terms) > 1:
            metrics |= {f"train/{term}": value for term, value in zip(self._terms, losses, strict=True)}
        metrics["train/tokens_per_second"] = self._tokens / seconds
        metrics["train/step_seconds"] = seconds / self._steps
        metrics["train/data_wait_seconds"] = self._data_wait_seconds / self._steps
        if self._steps_left_out:
            metrics["train/steps_left_out"] = self._steps_left_out
        if self._steps_overflowed:
            metrics["train/steps_overflowed"] = self._steps_overflowed
        if self._device.type == "cuda":
            metrics["train/peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        self._reset()
        return metrics


def ranks_without_finite_loss(losses: Tensor) -> list[int]:
    """Ranks whose own part of the loss, float64 ``(A, T)``, is NaN or infinite; collective."""
    is_finite = torch.isfinite(losses).all().int().reshape(1)
    found = [torch.zeros_like(is_finite) for _ in range(dist.get_world_size())]
    dist.all_gather(found, is_finite)
    return [rank for rank, finite in enumerate(found) if not finite.item()]
