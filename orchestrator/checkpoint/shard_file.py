"""The bytes of one rank's shard file: from live tensors, or copied first into host memory.

Both give the same bytes. The copy is a ``HostBuffer`` laid out as the file will be, so that writing it needs
neither tensors nor a plan, and a thread may do it while training changes the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from orchestrator.checkpoint.finite import refuse_not_finite
from orchestrator.checkpoint.seal import FileDigest
from orchestrator.checkpoint.shard_plan import ShardPlan, StateChunks
from orchestrator.checkpoint.storage import Place

# Hashed and then written while it is in a core's own cache (L2: 1 MiB and more), yet large for a system call.
WRITE_BYTES = 1 << 18


def write_shard(path: Path, parts: Iterable[memoryview]) -> FileDigest:
    """Write a new file through to the disk, hashing on the way."""
    digest = xxhash.xxh3_128()
    num_bytes = 0
    with path.open("xb", buffering=0) as file:
        for part in parts:
            for begin in range(0, len(part), WRITE_BYTES):
                block = part[begin : begin + WRITE_BYTES]
                digest.update(block)
                _write_all(file, block)
            num_bytes += len(part)
        os.fsync(file.fileno())
    return FileDigest(num_bytes, digest.hexdigest())


def _write_all(file: BinaryIO, content: memoryview) -> None:
    """Write all of ``content`` to an unbuffered file; the system may take less at a time."""
    while len(content):
        content = content[file.write(content) :]


def live_parts(plan: ShardPlan, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The file's bytes from ``tensors`` as they are; a copy of one chunk at most.

    Raises:
        NotFiniteError: Before the first byte.
    """
    state = StateChunks(tensors)
    refuse_not_finite((chunk.item.index.fqn, state.find(chunk.item)) for chunk in plan.chunks)
    end = 0
    for chunk in plan.chunks:
        yield memoryview(bytes(chunk.place.position - end))
        yield _as_bytes(state.find(chunk.item))
        end = chunk.place.position + chunk.place.length


def _as_bytes(tensor: Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order; a copy only where it is not laid out so on the CPU."""
    return _memory_of(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8))


def _memory_of(content: Tensor) -> memoryview:
    """The bytes of a uint8 tensor, without a copy."""
    array: np.ndarray[tuple[int], np.dtype[np.uint8]] = content.numpy()
    return memoryview(array)  # type: ignore[arg-type]


class HostBuffer:
    """This rank's shard file in host memory, allocated once and filled by every save."""

    def __init__(self, plan: ShardPlan, device: torch.device) -> None:
        """Take the memory of one file.

        Args:
            device: Where the tensors are; copies from a GPU go to pinned memory, beside computation.
        """
        is_gpu = device.type == "cuda"
        self._bytes = torch.empty(plan.num_bytes, dtype=torch.uint8, pin_memory=is_gpu)
        # Every page is touched here, so that the first save is no slower than others; gaps stay 0.
        self._bytes.zero_()
        self._targets = [(chunk.item, self._view(chunk.place, chunk.item)) for chunk in plan.chunks]
        self._stream = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def _view(self, place: Place, item: WriteItem) -> Tensor:
        """Where a chunk goes, as a tensor of its dtype and sizes."""
        assert item.tensor_data is not None
        part = self._bytes.narrow(0, place.position, place.length)
        return part.view(item.tensor_data.properties.dtype).view(item.tensor_data.chunk.sizes)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy this rank's chunks of ``tensors``; from a GPU the copy only begins here.

        Until ``hold_back`` was called nobody may change the tensors.
        """
        state = StateChunks(tensors)
        if self._stream is None:
            for item, target in self._targets:
                target.copy_(state.find(item))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for item, target in self._targets:
                target.copy_(state.find(item), non_blocking=True)
            self._copied = self._stream.record_event()

    def hold_back(self) -> None:
        """Let the GPU work that is queued from here on wait for the copy; costs this process nothing."""
        if self._stream is not None and self._copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)

    def parts(self) -> Iterator[memoryview]:
        """The file's bytes, once the copy is done.

        Raises:
            NotFiniteError: Before the first byte.
        """
        if self._copied is not None:
            self._copied.synchronize()
        refuse_not_finite((item.index.fqn, target) for item, target in self._targets)
        yield _memory_of(self._bytes)
