"""Which documents share a row: best-fit decreasing over a histogram of lengths, and its efficiency.

Pure numpy, nothing here reads files. A *piece* is a whole document, or a part of one that is longer
than a row; a *shape* is what equal rows hold, as lengths and how often each.

1. cut documents that are longer than a row, and only those, into pieces
2. fill rows from the longest pieces to the shortest, each into the fullest row that still takes it; on
   the histogram, so that equal rows are filled at once and the work does not grow with the documents
3. give every place of a shape a piece of its length, in the order of the corpus
4. number the rows by their first pieces, so that the first rows are a sample of the corpus

Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", section 3, for
packing on histograms; Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3, for
best-fit decreasing at scale. The packing is that of best-fit decreasing itself, item by item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DIGIT_BITS = 16


@dataclass(frozen=True)
class Plan:
    """Pieces, those of a row side by side, and where each row's are."""

    rows: np.ndarray
    """int32 or int64 ``(2, R)``: where the pieces of each row begin, and how many they are."""
    pieces: np.ndarray
    """int32 or int64 ``(2, P)``: where each piece begins, and where it ends, among the tokens."""
    num_split: int
    """Documents longer than a row, which had to be cut."""


class Shape(NamedTuple):
    """Rows that hold pieces of the same lengths."""

    num_rows: int
    content: tuple[tuple[int, int], ...]
    """Lengths of the pieces, each with its number of pieces in every row."""


def plan_best_fit(documents: np.ndarray, seq_len: int) -> Plan:
    """Rows of at most ``seq_len`` tokens in which every token of all documents stands once.

    A document that fits a row is never cut; a longer one becomes full rows and a rest. Depends on its
    arguments alone. Time: linear in the documents, and in the shapes, of which there are at most three
    for each length.

    Args:
        documents: int64 offsets of the documents into the tokens, one more than there are documents; none
            of them empty.
    """
    lengths, num_split = cut_long(documents, seq_len)
    ends = np.cumsum(lengths, dtype=_small_type(int(documents[-1])))
    shapes = fill_rows(np.bincount(lengths, minlength=seq_len + 1), seq_len)
    return Plan(*_assign(shapes, lengths, ends), num_split)


def fill_rows(counts: np.ndarray, seq_len: int) -> list[Shape]:
    """Shapes of the rows that best-fit decreasing makes of pieces of these lengths.

    Args:
        counts: Number of pieces of each length, from 0 to ``seq_len``; there are none of length 0.
    """
    closed: list[Shape] = []
    waiting: defaultdict[int, list[Shape]] = defaultdict(list)
    """Shapes by the room that is left in their rows."""
    rooms = 0
    """Bit ``r`` says that rows with room ``r`` are waiting."""
    for length in reversed(np.flatnonzero(counts).tolist()):
        left = int(counts[length])
        while left:
            enough = rooms >> length
            room = length + (enough & -enough).bit_length() - 1 if enough else seq_len
            # As many new rows as the pieces can need stand for the endless supply of empty ones.
            shape = waiting[room].pop() if enough else Shape(left, ())
            filled, left = _fill(shape, room, length, left)
            for made, room_left in filled:
                if made.content and room_left:
                    waiting[room_left].append(made)
                    rooms |= 1 << room_left
                elif made.content:
                    closed.append(made)
            if not waiting[room]:
                rooms &= ~(1 << room)
    return closed + [shape for shapes in waiting.values() for shape in shapes]


def _fill(shape: Shape, room: int, length: int, left: int) -> tuple[list[tuple[Shape, int]], int]:
    """Put pieces of one length into rows of one shape, row after row, as best-fit does.

    A row stays the best one for the next piece until it takes no more: its room only shrinks, and no
    other row had less that sufficed.

    Returns:
        What becomes of the rows, with the room that is left in them; and the pieces that are left.
    """
    per_row = room // length
    num_full = min(shape.num_rows, left // per_row)
    left -= num_full * per_row
    num_rest = shape.num_rows - num_full
    made = []
    if num_full:
        made.append((Shape(num_full, (*shape.content, (length, per_row))), room - per_row * length))
    if num_rest and left:
        made.append((Shape(1, (*shape.content, (length, left))), room - left * length))
        num_rest, left = num_rest - 1, 0
    if num_rest:
        made.append((Shape(num_rest, shape.content), room))
    return made, left


def cut_long(documents: np.ndarray, seq_len: int) -> tuple[np.ndarray, int]:
    """Lengths of the pieces in the order of the corpus, ``(P,)``, and the number of documents that were cut.

    Pieces follow each other as the documents do: each begins where the one before it ends.
    """
    lengths = np.diff(documents)
    long = np.flatnonzero(lengths > seq_len)
    num_cuts = (lengths[long] - 1) // seq_len
    lengths[long] -= num_cuts * seq_len
    rests = lengths.astype(np.min_scalar_type(seq_len))
    return np.insert(rests, np.repeat(long, num_cuts), seq_len), len(long)


def _assign(shapes: Sequence[Shape], lengths: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give every place of a shape a piece of its length, in the order of the corpus.

    Returns:
        ``Plan.rows`` and ``Plan.pieces``.
    """
    by_length = stable_order(lengths)
    ends_by_length = ends[by_length]
    counts = np.bincount(lengths)
    next_piece = (np.cumsum(counts) - counts).tolist()
    pieces = np.empty((2, len(lengths)), dtype=ends.dtype)
    first_pieces, sizes = [], []
    begin = 0
    for num_rows, content in shapes:
        size = sum(number for _, number in content)
        sizes.append(size)
        first = next_piece[content[0][0]]
        first_pieces.append(by_length[first : first + num_rows * content[0][1] : content[0][1]])
        starts_RP, ends_RP = pieces[:, begin : begin + num_rows * size].reshape(2, num_rows, size)
        column = 0
        for length, number in content:
            first, next_piece[length] = next_piece[length], next_piece[length] + num_rows * number
            found = ends_by_length[first : next_piece[length]].reshape(num_rows, number)
            ends_RP[:, column : column + number] = found
            np.subtract(found, length, out=starts_RP[:, column : column + number])
            column += number
        begin += num_rows * size
    row_sizes = np.repeat(np.array(sizes, _small_type(begin)), [shape.num_rows for shape in shapes])
    row_starts = np.cumsum(row_sizes, dtype=row_sizes.dtype) - row_sizes
    order = _corpus_order(np.concatenate(first_pieces), len(lengths))
    return np.stack([row_starts[order], row_sizes[order]]), pieces


def _corpus_order(first_pieces: np.ndarray, num_pieces: int) -> np.ndarray:
    """``np.argsort(first_pieces)``, of numbers that are all different; in linear time."""
    rows = np.empty(num_pieces, dtype=_small_type(num_pieces))
    rows[first_pieces] = np.arange(len(first_pieces))
    is_first = np.zeros(num_pieces, dtype=bool)
    is_first[first_pieces] = True
    return rows[np.flatnonzero(is_first)]


def _small_type(highest: int) -> type[np.signedinteger[Any]]:
    """The smaller of two types that hold ``highest``: most of the time goes to moving memory."""
    return np.int32 if highest < 2**31 else np.int64


def join_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The whole numbers of ``[start, start + length)`` of one range after the other; dtype as ``starts``."""
    shifts = starts - (np.cumsum(lengths, dtype=starts.dtype) - lengths)
    numbers = np.repeat(shifts, lengths)
    numbers += np.arange(len(numbers), dtype=starts.dtype)
    return numbers


def stable_order(keys: np.ndarray) -> np.ndarray:
    """``np.argsort(keys, kind="stable")`` of whole numbers that are not negative, int64.

    Digit by digit, since numpy sorts 16-bit numbers in linear time and larger ones by comparing them:
    measured on a million, 15 ms a digit instead of 130 in all.
    """
    order = np.argsort(keys.astype(np.uint16, copy=False), kind="stable")
    for shift in range(DIGIT_BITS, int(keys.max()).bit_length(), DIGIT_BITS):
        digits = (keys >> shift).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
