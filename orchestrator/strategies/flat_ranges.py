"""A parameter of which this rank holds flat ranges, as DeepSpeed ZeRO partitions it.

torch's distributed checkpoint (DCP) describes shards as N-dimensional boxes. A range of a row-major
tensor of N dimensions is at most 2N - 1 boxes, and each box is a contiguous view of the range, so
``FlatRanges`` offers DCP these views: saving and loading work in place, without a gather, for any
number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Box(NamedTuple):
    """An N-dimensional box and where it begins in the flattened tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int


def split_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The flat range ``[start, stop)`` of a row-major tensor of ``shape`` as boxes, in flat order.

    A partial first row, whole rows, a partial last row; the partial rows are split the same way.
    """
    if stop <= start:
        return []
    if not shape:
        return [Box((), (), 0)]
    if len(shape) == 1:
        return [Box((start,), (stop - start,), start)]
    row_numel = math.prod(shape[1:])
    first, first_start = divmod(start, row_numel)
    last, last_stop = divmod(stop, row_numel)
    if first == last:
        return _split_row(shape, first, first_start, last_stop)
    boxes = []
    if first_start:
        boxes += _split_row(shape, first, first_start, row_numel)
        first += 1
    if last > first:
        offsets = (first, *[0] * (len(shape) - 1))
        boxes.append(Box(offsets, (last - first, *shape[1:]), first * row_numel))
    return boxes + _split_row(shape, last, 0, last_stop)


def _split_row(shape: Sequence[int], row: int, start: int, stop: int) -> list[Box]:
    """Boxes of the range ``[start, stop)`` of one row."""
    begin = row * math.prod(shape[1:])
    return [
        Box((row, *box.offsets), (1, *box.sizes), begin + box.start)
        for box in split_range(shape[1:], start, stop)
    ]


class FlatRanges(Tensor):
    """This rank's ranges of a tensor, for DCP; nothing can be computed with it."""

    ranges: list[tuple[int, Tensor]]
    """Start in the flattened tensor, and the elements from there on: a one-dimensional view."""
    boxes: list[tuple[ChunkStorageMetadata, Tensor]]
    """The same elements as boxes, views too."""

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        ranges: Sequence[tuple[int, Tensor]],
        dtype: torch.dtype = torch.float32,
    ) -> FlatRanges:
        """Describe ``ranges`` of a tensor of ``shape``; a rank may hold none."""
        size = torch.Size(shape)
        new: FlatRanges = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=torch.device("cpu"))
        new.ranges = list(ranges)
        new.boxes = [
            (
                ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)),
                elements.narrow(0, box.start - start, math.prod(box.sizes)).view(box.sizes),
            )
            for start, elements in ranges
            for box in split_range(size, start, start + elements.numel())
        ]
        return new

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse every operation but the detaching that DCP does."""
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} on FlatRanges: it only describes what a rank holds")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Shape and ranges, without the elements."""
        held = [(start, start + elements.numel()) for start, elements in self.ranges]
        return f"FlatRanges(shape={tuple(self.shape)}, ranges={held})"

    def __create_write_items__(self, fqn: str, _object: object) -> list[WriteItem]:
        """What this rank saves, for DCP's save planner."""
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk, _ in self.boxes
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """What this rank loads, for DCP's load planner."""
        return [chunk for chunk, _ in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The view that DCP reads from or writes to."""
        for chunk, view in self.boxes:
            if chunk.offsets == index.offset:
                return view
        raise ValueError(f"{index.fqn}: this rank has no box at {index.offset}: {self!r}")
