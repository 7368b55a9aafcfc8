"""Flat ranges as boxes, against torch's own indexing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from orchestrator.strategies.flat_ranges import FlatRanges, split_range

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4)


@given(SHAPES, st.data())
def test_boxes_cover_exactly_the_range_and_are_at_most_2n_minus_1(
    shape: list[int], data: st.DataObject
) -> None:
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    boxes = split_range(shape, start, stop)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
    count = torch.zeros(shape)
    positions = torch.arange(numel).view(shape)
    for box in boxes:
        inside = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))
        count[inside] += 1
        expected = torch.arange(box.start, box.start + math.prod(box.sizes))
        assert torch.equal(positions[inside].flatten(), expected)
    expected_count = torch.zeros(numel)
    expected_count[start:stop] = 1
    assert torch.equal(count.flatten(), expected_count)


@pytest.fixture
def held() -> tuple[torch.Tensor, FlatRanges]:
    """A flat buffer, and elements 3 to 9 of a tensor of shape (4, 5) that lie in it from 1 on."""
    flat = torch.arange(20.0)
    return flat, FlatRanges((4, 5), [(3, flat.narrow(0, 1, 7))])


def test_what_is_written_into_a_box_is_in_the_flat_buffer(
    held: tuple[torch.Tensor, FlatRanges],
) -> None:
    flat, ranges = held
    items = ranges.__create_write_items__("w", ranges)
    assert [tuple(item.index.offset or ()) for item in items] == [(0, 3), (1, 0)]
    assert ranges.__create_chunk_list__() == [item.tensor_data.chunk for item in items]
    ranges.__get_tensor_shard__(MetadataIndex("w", (1, 0))).fill_(-1)
    assert flat.tolist() == [0.0, 1.0, 2.0, *[-1.0] * 5, *map(float, range(8, 20))]


def test_a_box_that_is_not_held_and_arithmetic_are_refused(
    held: tuple[torch.Tensor, FlatRanges],
) -> None:
    with pytest.raises(ValueError, match=r"no box at .*\[3, 0\].*ranges=\[\(3, 10\)\]"):
        held[1].__get_tensor_shard__(MetadataIndex("w", (3, 0)))
    with pytest.raises(NotImplementedError, match="FlatRanges"):
        held[1].add(1)


def test_a_rank_may_hold_nothing() -> None:
    ranges = FlatRanges((3,), [])
    assert ranges.__create_write_items__("w", ranges) == []
    assert ranges.shape == (3,)
