"""Tensors on disk for torch's distributed checkpoint (DCP): raw bytes and a JSON index, nothing pickled.

DCP plans who writes what and what to read for another number of ranks; the files are ours:

1. every rank has one file ``shard-00000.bin``: the bytes of its chunks, aligned to ``ALIGNMENT``;
2. ``metadata.json`` says for each name dtype and shape, and for each chunk its offsets, sizes, file,
   position and length;
3. a reader maps the files into memory and copies what it needs.

``shard_plan.py`` lays them out, ``shard_file.py`` writes them, and here they are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from orchestrator.checkpoint.seal import FORMAT, METADATA, read_json
from orchestrator.errors import CheckpointError

# A cache line, and a multiple of every element size, so that a mapped chunk is a valid tensor.
ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where the bytes of a chunk are."""

    file: str
    position: int
    """First byte."""
    length: int
    """Bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the index."""

    dtype: torch.dtype
    shape: torch.Size
    chunks: tuple[tuple[ChunkStorageMetadata, Place], ...]


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """The index of a folder whose digests have been checked.

    Raises:
        CheckpointError: Not JSON, a format that this version does not know, or no index at all.
    """
    index = read_json(folder / METADATA)
    if index.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / METADATA}: format {index.get('format')!r}, expected {FORMAT!r};"
            " read it with the version that wrote it"
        )
    try:
        return {name: _parse_entry(entry) for name, entry in index["tensors"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / METADATA}: {error!r}, expected dtype, shape and chunks of each tensor; it was not"
            " written by a save: use another checkpoint"
        ) from error


def _parse_entry(entry: Mapping[str, Any]) -> StoredTensor:
    """One entry of the index."""
    chunks = tuple(
        (
            ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"])),
            Place(chunk["file"], chunk["position"], chunk["length"]),
        )
        for chunk in entry["chunks"]
    )
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype {entry['dtype']!r} is none of torch")
    return StoredTensor(dtype, torch.Size(entry["shape"]), chunks)


class ChunkReader:
    """Chunks of a folder as tensors on mapped memory."""

    def __init__(self, folder: Path) -> None:
        """Map nothing yet."""
        self._folder = folder
        self._maps: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def view(self, place: Place, dtype: torch.dtype, sizes: torch.Size) -> Tensor:
        """The chunk at ``place``; changes to it stay in this process."""
        if place.length == 0:
            return torch.empty(sizes, dtype=dtype)
        if place.file not in self._maps:
            # Copy-on-write, since torch has no read-only tensors.
            self._maps[place.file] = np.memmap(self._folder / place.file, np.uint8, mode="c")
        content = self._maps[place.file][place.position : place.position + place.length]
        return torch.from_numpy(content).view(dtype).view(sizes)


class ShardReader(StorageReader):
    """Reads what a save wrote, for any number of ranks."""

    def __init__(self, folder: Path) -> None:
        """Read from ``folder``, whose digests have been checked."""
        self._index = read_index(folder)
        self._chunks = ChunkReader(folder)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Start a load; the folder was given before."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index as DCP describes it."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=stored.dtype),
                    stored.shape,
                    [chunk for chunk, _ in stored.chunks],
                )
                for name, stored in self._index.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing depends on the role."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the parts of chunks that ``plan`` names into the tensors of ``planner``."""
        for item in plan.items:
            stored = self._index[item.storage_index.fqn]
            place, sizes = next(
                (place, chunk.sizes)
                for chunk, place in stored.chunks
                if chunk.offsets == item.storage_index.offset
            )
            part = self._chunks.view(place, stored.dtype, sizes)
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(dim, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


def read_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Whole tensors whose name begins with ``prefix``, in this process alone, names without it.

    The folder's digests have been checked before.
    """
    chunks = ChunkReader(folder)
    tensors = {}
    for name, stored in read_index(folder).items():
        if not name.startswith(prefix):
            continue
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        for chunk, place in stored.chunks:
            box = tuple(
                slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)
            )
            whole[box].copy_(chunks.view(place, stored.dtype, chunk.sizes))
        tensors[name.removeprefix(prefix)] = whole
    return tensors
