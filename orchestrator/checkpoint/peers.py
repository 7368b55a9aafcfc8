"""What ranks that save and load together tell each other, so that they fail together and never hang."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def my_rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def tell_all(value: Value, group: dist.ProcessGroup | None = None) -> list[Value]:
    """What every rank passed, by rank; collective.

    Args:
        group: Of all ranks, for a thread of its own; absent: the one that training uses.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Value] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def from_first(value: Value, group: dist.ProcessGroup | None = None) -> Value:
    """What rank 0 passed; collective over ``group`` as in ``tell_all``."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]
