"""Evaluation of a model on rows, split over ranks by micro-batch; no row left out, none counted twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.contracts import Objective
from orchestrator.data.loader import RowReader
from orchestrator.train.randomness import derive_generator

ForwardContext = Callable[[], AbstractContextManager[None]]


def evaluate_datasets(
    model: nn.Module,
    objective: Objective,
    readers: Mapping[str, RowReader],
    *,
    micro_batch_size: int,
    max_rows: int | None,
    seed: int,
    device: torch.device,
    forward_context: ForwardContext,
) -> dict[str, float]:
    """Metrics of each dataset: ``eval/<metric>`` for one, ``eval/<dataset>/<metric>`` for several.

    Args:
        max_rows: Evaluate at most this many rows of each dataset.
        forward_context: Entered around every forward pass.
    """
    metrics: dict[str, float] = {}
    for name, reader in readers.items():
        prefix = "eval/" if len(readers) == 1 else f"eval/{name}/"
        num_rows = reader.num_rows if max_rows is None else min(max_rows, reader.num_rows)
        statistics = _collect_statistics(
            model, objective, reader, num_rows, micro_batch_size, seed, device, forward_context
        )
        found = objective.metrics(statistics)
        metrics |= {f"{prefix}{key}": float(value) for key, value in found.items()}
    return metrics


def _collect_statistics(
    model: nn.Module,
    objective: Objective,
    reader: RowReader,
    num_rows: int,
    micro_batch_size: int,
    seed: int,
    device: torch.device,
    forward_context: ForwardContext,
) -> Tensor:
    """Statistics of the first ``num_rows`` rows, over all ranks: summed, or row after row.

    Every rank makes the same number of forward passes, because sharded models communicate in each;
    a rank without a micro-batch of its own repeats the first and counts none of its rows.
    Micro-batches and their masks do not depend on the number of ranks.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    num_micro = -(-num_rows // micro_batch_size)
    model.eval()
    found: list[Tensor] = []
    for first in range(0, num_micro, world_size):
        micro = first + rank if first + rank < num_micro else 0
        begin = micro * micro_batch_size
        ids = np.arange(begin, min(begin + micro_batch_size, num_rows))
        rows = reader.read(ids, epoch=0)
        batch = objective.collate(rows, derive_generator(seed, "evaluate", micro))
        batch = {name: value.to(device) for name, value in batch.items()}
        num_valid = len(rows) if first + rank < num_micro else 0
        with torch.no_grad(), forward_context():
            statistics = objective.statistics(model, batch, num_valid)
        if objective.evaluates == "rows":
            found.append(statistics)
        else:
            found = [_added([*found, *_of_all_ranks(statistics)])]
    return found[0] if objective.evaluates == "sums" else _in_order(found)


def _of_all_ranks(statistics: Tensor) -> list[Tensor]:
    """Every rank's, by rank."""
    if dist.get_world_size() == 1:
        return [statistics]
    gathered = [torch.empty_like(statistics) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, statistics)
    return gathered


def _added(terms: list[Tensor]) -> Tensor:
    """The sum from left to right: the order of micro-batches, which ranks take turns at."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _in_order(statistics: list[Tensor]) -> Tensor:
    """The rows of all micro-batches, which went to one rank after the other; on the CPU."""
    own = [rows.cpu() for rows in statistics]
    gathered: list[list[Tensor]] = [own] * dist.get_world_size()
    if dist.get_world_size() > 1:
        dist.all_gather_object(gathered, own)
    # strict: every rank made the same number of forward passes.
    return torch.cat([rows for turn in zip(*gathered, strict=True) for rows in turn])
