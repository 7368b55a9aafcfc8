"""Tensors on disk for torch's distributed checkpoint (DCP): raw bytes and a JSON index, nothing pickled.

DCP plans who writes what and what to read for another number of ranks; here are only its two ends:

1. every rank writes one file ``shard-00000.bin``: the bytes of its chunks, aligned to ``ALIGNMENT``;
2. the coordinator writes ``metadata.json``: for each name dtype and shape, and for each chunk its
   offsets, sizes, file, position and length;
3. a reader maps the files into memory and copies what it needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from orchestrator.checkpoint.seal import FileDigest, read_json, write_json
from orchestrator.errors import CheckpointError

METADATA = "metadata.json"
FORMAT = "orchestrator-tensors-1"
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


def shard_name(rank: int) -> str:
    """File of one rank's chunks."""
    return f"shard-{rank:05d}.bin"


class ShardWriter(StorageWriter):
    """Writes this rank's chunks, and on the coordinator the index."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Write into ``folder``, which exists and has no shard of this rank."""
        self._folder = folder
        self._rank = rank
        self.files: dict[str, FileDigest] = {}
        """What this rank has written, each file on the disk already."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Start a save; the folder was given before."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing depends on the role."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write all chunks of ``plan`` one after the other, hashing on the way."""
        name = shard_name(self._rank)
        digest = xxhash.xxh3_128()
        results = []
        position = 0
        with (self._folder / name).open("xb", buffering=0) as file:
            for item in plan.items:
                value = planner.resolve_data(item)
                if not isinstance(value, Tensor):
                    raise CheckpointError(
                        f"'{item.index.fqn}' is a {type(value).__name__}, expected a tensor"
                    )
                content = as_bytes(value)
                padding = bytes(-position % ALIGNMENT)
                for part in (padding, content):
                    digest.update(part)
                    write_all(file, part)
                place = Place(name, position + len(padding), len(content))
                position = place.position + place.length
                results.append(WriteResult(item.index, place.length, place))
            os.fsync(file.fileno())
        self.files[name] = FileDigest(position, digest.hexdigest())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index."""
        places = {result.index: result.storage_data for rank in results for result in rank}
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            chunks = [
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    **asdict(places[MetadataIndex(name, chunk.offsets)]),
                }
                for chunk in stored.chunks
            ]
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(stored.size), "chunks": chunks}
        index = {"format": FORMAT, "tensors": tensors}
        self.files[METADATA] = write_json(self._folder / METADATA, index)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


def as_bytes(tensor: Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order; a copy only where it is not laid out so on the CPU."""
    plain = tensor.detach().cpu().contiguous()
    content: np.ndarray[Any, np.dtype[np.uint8]] = plain.view(-1).view(torch.uint8).numpy()
    return memoryview(content)  # type: ignore[arg-type]


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of ``content`` to an unbuffered file; the system may take less at a time."""
    view = memoryview(content)
    while len(view):
        view = view[file.write(view) :]


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """The index of a folder whose digests have been checked.

    Raises:
        CheckpointError: Not JSON, or a format that this version does not know.
    """
    index = read_json(folder / METADATA)
    if index.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / METADATA}: format {index.get('format')!r}, expected {FORMAT!r};"
            " read it with the version that wrote it"
        )
    return {name: _parse_entry(entry) for name, entry in index["tensors"].items()}


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
    assert isinstance(dtype, torch.dtype)
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
    """Reads what ``ShardWriter`` wrote, for any number of ranks."""

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


def count_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the whole tensors, however they are distributed."""
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
