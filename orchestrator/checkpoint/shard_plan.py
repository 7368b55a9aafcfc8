"""Which rank writes which bytes where, worked out once for all saves of a start.

Names, shapes and shards do not change while a stage trains, so neither does what a rank writes:

1. every rank lists its chunks, and all ranks learn all lists;
2. DCP's planner leaves a chunk that several ranks hold to one of them, evenly by bytes;
3. the chunks of a rank lie in its file one after the other, aligned to ``ALIGNMENT``.

From the same lists every rank works out the same plan, so none has to tell another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from orchestrator.checkpoint.peers import my_rank, tell_all
from orchestrator.checkpoint.seal import FORMAT, json_bytes
from orchestrator.checkpoint.storage import ALIGNMENT, Place
from orchestrator.errors import CheckpointError


@dataclass(frozen=True)
class PlannedChunk:
    """One chunk that this rank writes."""

    item: WriteItem
    place: Place


@dataclass(frozen=True)
class ShardPlan:
    """What one rank writes at every save."""

    file: str
    """Name of this rank's file."""
    chunks: tuple[PlannedChunk, ...]
    """In the order of the file."""
    num_bytes: int
    """Of the file, with the gaps before aligned chunks."""
    index: bytes | None
    """Content of ``metadata.json`` on rank 0, which writes it."""
    state_bytes: int
    """Of the whole state, over all ranks."""


def shard_name(rank: int) -> str:
    """File of one rank's chunks."""
    return f"shard-{rank:05d}.bin"


def plan_shards(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> ShardPlan:
    """The plan for a state with the names, shapes and shards of ``tensors``; collective over ``group``.

    Raises:
        CheckpointError: Something in it is no tensor.
    """
    rank = my_rank()
    planner = _planner(tensors)
    plans = tell_all(planner.create_local_plan(), group)
    _refuse_objects(plans)
    plans, metadata = planner.create_global_plan(plans)
    placed = [list(_place(plan, shard_name(number))) for number, plan in enumerate(plans)]
    mine = tuple(placed[rank])
    last = mine[-1].place if mine else Place(shard_name(rank), 0, 0)
    return ShardPlan(
        file=shard_name(rank),
        chunks=mine,
        num_bytes=last.position + last.length,
        index=_index(metadata.state_dict_metadata, placed) if rank == 0 else None,
        state_bytes=sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values()),
    )


class StateChunks:
    """The chunks of a state whose plan is known."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Look into ``tensors``."""
        self._planner = _planner(tensors)

    def find(self, item: WriteItem) -> Tensor:
        """This rank's elements of a planned chunk, a view."""
        chunk = self._planner.resolve_data(item)
        assert isinstance(chunk, Tensor)
        return chunk.detach()


def _planner(tensors: Mapping[str, Tensor]) -> DefaultSavePlanner:
    """DCP's planner of this rank's part of ``tensors``."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=my_rank() == 0)
    return planner


def _refuse_objects(plans: list[SavePlan]) -> None:
    """Refuse a state that a checkpoint could only pickle."""
    for plan in plans:
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise CheckpointError(f"'{item.index.fqn}' is no tensor; a checkpoint holds tensors alone")


def _place(plan: SavePlan, file: str) -> Iterator[PlannedChunk]:
    """Chunks of one rank, one after the other."""
    end = 0
    for item in plan.items:
        assert item.tensor_data is not None
        position = end + -end % ALIGNMENT
        length = math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
        end = position + length
        yield PlannedChunk(item, Place(file, position, length))


def _index(stored: Mapping[str, Any], placed: list[list[PlannedChunk]]) -> bytes:
    """``metadata.json``: where each chunk of each name is."""
    places = {chunk.item.index: chunk.place for rank in placed for chunk in rank}
    tensors = {}
    for name, entry in stored.items():
        assert isinstance(entry, TensorStorageMetadata)
        chunks = [
            {
                "offsets": list(chunk.offsets),
                "sizes": list(chunk.sizes),
                **asdict(places[MetadataIndex(name, chunk.offsets)]),
            }
            for chunk in entry.chunks
        ]
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        tensors[name] = {"dtype": dtype, "shape": list(entry.size), "chunks": chunks}
    return json_bytes({"format": FORMAT, "tensors": tensors})
